"""Learning-rate schedules beyond torch's, and the types of the factories of optimizers and schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class WindowedPlateau(ReduceLROnPlateau):
    """Lowers the learning rate when the mean of a recorded value over a window has stopped falling.

    Single values are too noisy, and reading each would wait for the device; the sum stays on the device and is read
    once per window. Sum and count are part of the state, so that a resumed run decides alike.
    """

    def __init__(
        self, optimizer: Optimizer, monitor: str, window: int, factor: float, patience: int, min_lr: float
    ) -> None:
        """Sets the rule.

        Args:
            optimizer: The player's optimizer.
            monitor: Name of a value that the method records, `m_global` for BEGAN.
            window: Iterations per mean.
            factor: Factor on the learning rate.
            patience: Number of windows without improvement (of at least 1e-4, relative) that are tolerated.
            min_lr: Floor of the learning rate.
        """
        super().__init__(optimizer, mode="min", factor=factor, patience=patience, min_lr=min_lr)
        self.monitor, self.window = monitor, window
        self.total, self.count = torch.zeros(()), 0

    def observe(self, value: Tensor, average: Callable[[Tensor], Tensor]) -> None:
        """Adds one iteration's value; `average` is the mean over processes."""
        self.total = self.total.to(value.device) + value.detach()
        self.count += 1
        if self.count == self.window:
            self.step(float(average(self.total / self.count)))
            self.total, self.count = torch.zeros_like(self.total), 0
