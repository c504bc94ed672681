"""Moving averages of weights: what they average, where they go, and when they stand in for the live ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized

from genlab.engine.loop import SWAPPING
from genlab.errors import UserError

POWER_ITERATIONS = 15  # that find the spectral norm of an averaged layer, from the vectors of its live twin


class Averaged(Protocol):
    """A module that names the parts whose averages are kept."""

    ema_modules: tuple[str, ...]

    def get_submodule(self, target: str) -> nn.Module:
        """As modules have it."""
        ...


class Averages:
    """The moving averages of some parts of a model.

    Attributes:
        values: "generator.weight" -> its average; empty while there is none.
        settled: Whether the averages have replaced the live weights.
    """

    def __init__(self, model: Averaged) -> None:
        """Keeps none yet.

        Args:
            model: Whose weights are averaged.
        """
        self.model = model
        self.values: dict[str, Tensor] = {}
        self.settled = False
        self._inside = False  # whether the modules hold the averages now
        self._live: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    def sources(self) -> dict[str, Tensor]:
        """The live tensors, by the names that their averages have."""
        return {
            f"{name}.{key}": value
            for name in self.model.ema_modules
            for key, value in self.model.get_submodule(name).state_dict(keep_vars=True).items()
        }

    def start(self, decay: float, device: torch.device) -> None:
        """Pairs each live tensor with its average; tensors without an average are copied (`averaged_names`)."""
        sources = self.sources()
        if decay <= 0 or not sources:
            self.values = {}
            return
        if not self.values:
            self.values = {key: value.detach().clone() for key, value in sources.items()}
        self.values = {key: value.to(device) for key, value in self.values.items()}
        parts = {name: self.model.get_submodule(name) for name in self.model.ema_modules}
        averaged = {f"{name}.{key}" for name, part in parts.items() for key in averaged_names(part)}
        self._live = [value for key, value in sources.items() if key in averaged]
        self._averages = [self.values[key] for key in sources if key in averaged]
        self._copied = [(self.values[key], sources[key]) for key in sources if key not in averaged]

    def update(self, decay: float, done: int) -> None:
        """Takes in the weights after an iteration.

        Args:
            decay: Of the averages, in the end: early ones would remember the random start, so that it grows to this.
            done: Iterations before it.
        """
        if not self.values:
            return
        decay = min(decay, (2 + done) / (11 + done))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._live, 1 - decay)
            for average, live in self._copied:
                average.copy_(live)

    def apply(self, fn: Callable[[Tensor], Tensor], decay: float, device: torch.device) -> None:
        """Takes the averages along wherever the weights go."""
        if not self.values:
            return
        with torch.no_grad():
            self.values = {key: fn(average) for key, average in self.values.items()}
        if self._live:  # paired already: the new tensors take the place of the old
            self.start(decay, device)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, the modules hold their averaged weights (nothing changes where no average is kept)."""
        if not self.values:
            yield
            return
        with SWAPPING:
            yield from self._swapped()

    def _swapped(self) -> Iterator[None]:
        wanted = not self._inside  # a block within a block must not swap them back
        pairs = [(source, self.values[key]) for key, source in self.sources().items()] if wanted else []
        for live, average in pairs:
            live.data, average.data = average.data, live.data
        before, self._inside = self._inside, True
        vectors = self._fit_spectral_norms() if wanted else []
        try:
            yield
        finally:
            self._inside = before
            for vector, value in vectors:
                vector.copy_(value)
            for live, average in pairs:
                live.data, average.data = average.data, live.data

    def _fit_spectral_norms(self) -> list[tuple[Tensor, Tensor]]:
        """Finds the singular vectors of the weights as they are now; gives the vectors and what they were before.

        Those of the live weights belong to other matrices than the averaged ones.
        """
        before = []
        parts = [part for name in self.model.ema_modules for part in self.model.get_submodule(name).modules()]
        chains: list[Any] = []
        for part in filter(is_parametrized, parts):
            chains += cast(nn.ModuleDict, part.parametrizations).values()
        for chain in chains:
            if not hasattr(chain, "original"):
                continue  # several tensors in place of one: no weight that spectral norm could stand on
            weight, training = chain.original.detach(), chain.training
            chain.eval()  # in training mode spectral norm would go on from here, and a loaded model differ by a bit
            for step in chain:
                if isinstance(step, _SpectralNorm) and hasattr(step, "_u"):
                    before += [(step._u, step._u.clone()), (step._v, step._v.clone())]
                    step._power_method(step._reshape_weight_to_matrix(weight), POWER_ITERATIONS)
                weight = step(weight).detach()
            chain.train(training)
        return before

    @torch.no_grad()
    def settle(self) -> None:
        """Puts the averages, if there are any, in place of the live weights for good.

        Such a model has nothing to swap when it is asked, so that several threads may ask it.
        """
        if not self.values:
            return
        for key, live in self.sources().items():
            live.copy_(self.values[key])
        self.values = {}
        self._fit_spectral_norms()
        self.settled = True

    def load(self, values: dict[str, Tensor]) -> None:
        """Puts averages from a checkpoint in place.

        Raises:
            UserError: If they do not belong to the model's averaged parts.
        """
        odd = sorted(self.sources().keys() ^ values.keys()) if values else []
        if odd:
            where = "the model" if odd[0] in values else "the checkpoint"
            raise UserError(f"The checkpoint's moving averages do not fit the model: {odd[0]} is missing from {where}.")
        self.values = {key: value.detach().clone() for key, value in values.items()}


def averaged_names(module: nn.Module) -> set[str]:
    """Names of the tensors in a module's state that a moving average averages; all others are copied.

    These are its floating-point parameters, running statistics of norms, and buffers that a part lists in
    its `averaged_buffers`. Any other buffer may be anything: the mean of spectral norm's unit vectors is none.
    """
    names = {name for name, value in module.named_parameters(remove_duplicate=False) if value.is_floating_point()}
    for prefix, part in module.named_modules(remove_duplicate=False):
        norm = isinstance(part, _NormBase) and part.running_mean is not None
        listed = ("running_mean", "running_var") if norm else getattr(part, "averaged_buffers", ())
        names |= {f"{prefix}.{name}" if prefix else name for name in listed}
    return names
