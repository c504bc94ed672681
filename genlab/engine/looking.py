"""Looks at a model, in training or not: eval mode, averaged weights, no gradients, and no trace left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from genlab.engine.averages import Averages
from genlab.engine.loop import SWAPPING
from genlab.losses.numerics import eager


class Looked(Protocol):
    """What can be looked at: a module with averages."""

    averages: Averages
    training: bool
    differentiable: bool  # inside a look that lets gradients flow

    def modules(self) -> Iterator[nn.Module]:
        """As modules have it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As modules have it."""
        ...


@contextmanager
def looking(model: Looked, gradients: bool = False) -> Iterator[None]:
    """See `GenerativeModel.inference`."""
    if model.differentiable:  # a capability, called inside `inference(gradients=True)`: all is as it should be
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
    # This one, and first stages.
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
