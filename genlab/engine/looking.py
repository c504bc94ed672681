"""Inference, during training too: eval mode, averaged weights, no gradients; the state is restored afterwards."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

from genlab.engine.averages import Averages
from genlab.engine.loop import SWAPPING
from genlab.losses.numerics import eager


class Looked(Protocol):
    """A module with averages."""

    averages: Averages
    training: bool
    differentiable: bool  # inside `inference(gradients=True)`

    def modules(self) -> Iterator[nn.Module]:
        """As modules have it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As modules have it."""
        ...


F = TypeVar("F", bound=Callable[..., Any])


def inference(method: F) -> F:
    """Marks a capability (``sample``, ``encode``, ...): it runs in eval mode, without gradients, on the EMA weights.

    A method that takes ``rng`` and is called without one gets a generator seeded from torch's global stream, so that
    `torch.manual_seed` controls it; the noise stream of training is not used.
    """
    names = list(inspect.signature(method).parameters)
    place = names.index("rng") - 1 if "rng" in names else None  # among the arguments after self

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if place is not None:
            args, rng = args[:place] + args[place + 1 :], args[place] if len(args) > place else kwargs.get("rng")
            if rng is None:
                rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            kwargs["rng"] = rng
        with self.inference():
            return method(self, *args, **kwargs)

    return cast(F, wrapper)


@contextmanager
def looking(model: Looked, gradients: bool = False) -> Iterator[None]:
    """See `GenerativeModel.inference`."""
    if model.differentiable:  # called inside `inference(gradients=True)`: all is set already
        yield
        return
    with SWAPPING if model.averages.values or model.training or gradients else contextlib.nullcontext():
        yield from _looking(model, gradients)


def _looking(model: Looked, gradients: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    learned = [p for p in model.parameters() if p.requires_grad] if gradients else []
    for module, _ in modes:
        module.training = False
    for parameter in learned:
        parameter.requires_grad_(False)
    # The model itself, and its first stages.
    nested: list[Any] = [module for module, _ in modes if hasattr(module, "differentiable")]
    for each in nested:
        each.differentiable = gradients
    try:
        with torch.set_grad_enabled(gradients), eager(), model.averages.inside():
            yield
    finally:
        for each in nested:
            each.differentiable = False
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
