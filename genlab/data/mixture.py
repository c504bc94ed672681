"""Mixtures of Gaussians, whose modes can be counted."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Mixture(NamedTuple):
    """A mixture of equally likely isotropic Gaussians, and the radius of a high-quality sample.

    Attributes:
        centres: [K, D].
        std: Standard deviation of each Gaussian, per coordinate.
        radius: Largest distance of a high-quality sample from the nearest centre, in standard deviations.
        dim: Number of coordinates, among D, in which the Gaussians vary; None: all.
    """

    centres: Tensor
    std: float
    radius: float = 3.0
    dim: int | None = None
