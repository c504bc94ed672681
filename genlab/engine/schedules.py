"""Learning-rate schedules beyond torch's, and the types of the factories of optimizers and schedulers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from genlab.errors import UserError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class Schedule(ABC):
    """A factor on the learning rate that depends on the share of training that is done. Options of `scheduler`.

    It has no state, so a resumed run continues it exactly, and with another `trainer.max_steps` follows the new length.
    """

    def __call__(self, optimizer: Optimizer) -> ByShare:
        """The scheduler of an optimizer; the factor is on its present rates."""
        return ByShare(optimizer, self)

    @abstractmethod
    def factor(self, share: float) -> float:
        """The factor for the iteration before which a share of training in [0, 1] is done."""


class Constant(Schedule):
    """The same factor throughout."""

    def __init__(self, factor: float = 1.0) -> None:
        """Sets the factor.

        Args:
            factor: At least 0.

        Raises:
            UserError: If it is not.
        """
        self._factor = _checked("factor", factor, math.inf)

    def factor(self, share: float) -> float:
        """The factor itself."""
        return self._factor


class Linear(Schedule):
    """Stays at 1 for a share of training, then falls linearly."""

    def __init__(self, end: float = 0.0, after: float = 0.0) -> None:
        """Sets the line.

        Args:
            end: Factor at the end, in [0, 1].
            after: Share of training before the fall, in [0, 1].

        Raises:
            UserError: If a value is out of its range.
        """
        self.end, self.after = _checked("end", end), _checked("after", after)

    def factor(self, share: float) -> float:
        """1 until `after`, then the line to `end`."""
        if share <= self.after:
            return 1.0
        return 1 - (1 - self.end) * (share - self.after) / (1 - self.after)


class Cosine(Schedule):
    """Falls along half a cosine. Loshchilov & Hutter (2017), "SGDR", arXiv:1608.03983, Eq. 5, without restarts.

    With a warm-up the factor first rises linearly from 0 to 1, and the cosine takes the rest of training.
    """

    def __init__(self, end: float = 0.0, warm_up: float = 0.0) -> None:
        """Sets the curve.

        Args:
            end: Factor at the end, in [0, 1].
            warm_up: Share of training in which the factor rises, in [0, 1].

        Raises:
            UserError: If a value is out of its range.
        """
        self.end, self.warm_up = _checked("end", end), _checked("warm_up", warm_up)

    def factor(self, share: float) -> float:
        """end + (1 - end) (1 + cos(pi t)) / 2, with t in [0, 1] after the warm-up."""
        if share < self.warm_up:
            return share / self.warm_up
        t = (share - self.warm_up) / (1 - self.warm_up) if self.warm_up < 1 else 0.0
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * t)) / 2


class Step(Schedule):
    """Falls by a factor at some shares of training."""

    def __init__(self, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> None:
        """Sets the steps.

        Args:
            at: Shares of training, rising, in [0, 1].
            factor: Factor of each step, at least 0.

        Raises:
            UserError: If a value is out of its range.
        """
        if isinstance(at, (str, Mapping)) or not isinstance(at, Iterable):
            raise UserError(f"scheduler.at must be a list of shares of training, such as [0.5,0.75], got {at!r}.")
        self.at, self._factor = [_checked("at", share) for share in at], _checked("factor", factor, math.inf)
        if any(later <= earlier for earlier, later in pairwise(self.at)):
            raise UserError(f"scheduler.at must rise, got {self.at}. Try scheduler.at=[0.5,0.75].")

    def factor(self, share: float) -> float:
        """The factor to the power of the number of steps so far."""
        return self._factor ** sum(at <= share for at in self.at)


def _checked(key: str, value: Any, most: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most or value == math.inf:
        allowed = "a number in [0, 1]" if most == 1 else "a number of at least 0"
        raise UserError(f"scheduler.{key} must be {allowed}, got {value!r}.")
    return float(value)


class ByShare(LRScheduler):
    """Sets the learning rates of an optimizer by a `Schedule`."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        """Starts at the beginning of training.

        Args:
            optimizer: The player's optimizer.
            schedule: Gives the factor on its present rates.
        """
        self.schedule, self.share = schedule, 0.0
        super().__init__(optimizer)

    def follow(self, share: float) -> None:
        """Sets the rates of the next iteration, before which a share of training in [0, 1] is done."""
        self.share = share
        self.step()

    def step(self, epoch: int | None = None) -> None:
        """Sets the rates for the present share."""
        factor = self.schedule.factor(self.share)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Empty: the rates follow from the config and the share."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


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
