"""Moving averages of weights: their updates, and their use in place of the live weights."""

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

POWER_ITERATIONS = 15  # for the spectral norm of an averaged layer, from the vectors of the live layer


class Averaged(Protocol):
    """A module that names its averaged parts."""

    ema_modules: tuple[str, ...]

    def get_submodule(self, target: str) -> nn.Module:
        """See `nn.Module`."""
        ...


class Averages:
    """The moving averages of some parts of a model.

    Attributes:
        values: Averages by name, such as "generator.weight"; empty while there are none.
        settled: Whether the averages have replaced the live weights.
    """

    def __init__(self, model: Averaged) -> None:
        """Starts without averages.

        Args:
            model: The model whose weights are averaged.
        """
        self.model = model
        self.values: dict[str, Tensor] = {}
        self.settled = False
        self._inside = False  # whether the modules hold the averages now
        self._live: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    def sources(self) -> dict[str, Tensor]:
        """The live tensors, by the names of their averages."""
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
        """Updates the averages after an iteration.

        Args:
            decay: Final decay of the averages. It grows to this value, so that early averages forget the random start.
            done: Number of iterations before this one.
        """
        if not self.values:
            return
        decay = min(decay, (2 + done) / (11 + done))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._live, 1 - decay)
            for average, live in self._copied:
                average.copy_(live)

    def apply(self, fn: Callable[[Tensor], Tensor], decay: float, device: torch.device) -> None:
        """Applies a conversion of the weights, such as a change of device, to the averages."""
        if not self.values:
            return
        with torch.no_grad():
            self.values = {key: fn(average) for key, average in self.values.items()}
        if self._live:  # already paired: pair the new tensors
            self.start(decay, device)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Puts the averaged weights into the modules within the block; without averages nothing changes."""
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
        """Computes the singular vectors of spectral norm for the current weights.

        The vectors of the live weights do not belong to the averaged ones.

        Returns:
            The vectors' tensors, each with its earlier value.
        """
        before = []
        parts = [part for name in self.model.ema_modules for part in self.model.get_submodule(name).modules()]
        chains: list[Any] = []
        for part in filter(is_parametrized, parts):
            chains += cast(nn.ModuleDict, part.parametrizations).values()
        for chain in chains:
            if not hasattr(chain, "original"):
                continue  # several tensors in place of one: not spectral norm
            weight, training = chain.original.detach(), chain.training
            chain.eval()  # in training mode spectral norm would iterate again, and a loaded model differ slightly
            for step in chain:
                if isinstance(step, _SpectralNorm) and hasattr(step, "_u"):
                    before += [(step._u, step._u.clone()), (step._v, step._v.clone())]
                    step._power_method(step._reshape_weight_to_matrix(weight), POWER_ITERATIONS)
                weight = step(weight).detach()
            chain.train(training)
        return before

    @torch.no_grad()
    def settle(self) -> None:
        """Replaces the live weights by the averages for good, if there are any.

        Inference then swaps no weights, so several threads may use the model at once.
        """
        if not self.values:
            return
        for key, live in self.sources().items():
            live.copy_(self.values[key])
        self.values = {}
        self._fit_spectral_norms()
        self.settled = True

    def load(self, values: dict[str, Tensor]) -> None:
        """Loads averages from a checkpoint.

        Raises:
            UserError: If their names are not those of the model's averaged tensors.
        """
        odd = sorted(self.sources().keys() ^ values.keys()) if values else []
        if odd:
            where = "the model" if odd[0] in values else "the checkpoint"
            raise UserError(f"The checkpoint's moving averages do not fit the model: {odd[0]} is missing from {where}.")
        self.values = {key: value.detach().clone() for key, value in values.items()}


def averaged_names(module: nn.Module) -> set[str]:
    """Names of the averaged tensors in a module's state; all others are copied.

    Averaged are floating-point parameters, running statistics of norms, and the buffers that a part lists in
    `averaged_buffers`. A mean of other buffers may be invalid: that of spectral norm's unit vectors is no unit vector.
    """
    names = {name for name, value in module.named_parameters(remove_duplicate=False) if value.is_floating_point()}
    for prefix, part in module.named_modules(remove_duplicate=False):
        norm = isinstance(part, _NormBase) and part.running_mean is not None
        listed = ("running_mean", "running_var") if norm else getattr(part, "averaged_buffers", ())
        names |= {f"{prefix}.{name}" if prefix else name for name in listed}
    return names
