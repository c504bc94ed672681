"""Mixtures of Gaussians, whose modes can be counted."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Mixture(NamedTuple):
    """Equal isotropic Gaussians, and what passes for a sample of one of them.

    Attributes:
        centres: [K, D].
        std: Standard deviation of each, per coordinate in which it spreads.
        radius: Distance to the nearest centre within which a sample is of high quality, in standard deviations.
        dim: In how many of the D coordinates the Gaussians spread; None: in all.
    """

    centres: Tensor
    std: float
    radius: float = 3.0
    dim: int | None = None
