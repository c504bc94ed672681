"""Readouts: what a network reads from the picture that a value goes with, and its agreement with what was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Column


def _as_they_are(values: Column) -> Tensor:
    assert isinstance(values, Tensor)
    return values


@dataclass(frozen=True)
class Readout:
    """The outputs of a network that reads one kind of column from pictures.

    Attributes:
        agreement: Noun for the agreement, a number from 0 to 1, the best.
        shape: Of one output: (M,); or (M, H, W), a map with the picture's sides.
        compared: Outputs [N, *shape] and targets to how much of each part is right, and how much was asked for, [N, P]
            each. The agreement is the mean over parts of the quotients of their sums; without parts never asked for.
        target: Values as a model sees them to targets [N, ...].
        loss: Outputs and targets to the scalar that training minimises.
        weights: The training values to the weights [P] of the parts in that mean, or [1].
    """

    agreement: str
    shape: tuple[int, ...]
    compared: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    target: Callable[[Column], Tensor] = _as_they_are
    loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy_with_logits
    weights: Callable[[Column], Tensor] = lambda training: torch.ones(1)


def overlap(read: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of areas, bool [N, C, H, W] each, in pixels [N, C]."""
    return (read & told).flatten(2).sum(dim=2), (read | told).flatten(2).sum(dim=2)
