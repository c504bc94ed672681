"""Scores on toy data: how many modes of a known mixture are captured, how precisely and how evenly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.floats import in_float64
from genlab.metrics.scores import Scores


def high_quality_ceiling(dim: int = 2, radius: float = 3.0) -> float:
    """Share of a Gaussian in `dim` dimensions within `radius` std of its centre: 1 - e^-4.5 for 3 in the plane.

    A perfect sampler reaches this share; a higher one means that the modes have shrunk.
    """
    return torch.special.gammainc(torch.tensor(dim / 2).double(), torch.tensor(radius**2 / 2).double()).item()


def mode_coverage(x: Tensor, centres: Tensor, std: float, radius: float = 3.0, dim: int | None = None) -> Scores:
    """Modes captured and high-quality samples of a mixture of equal isotropic Gaussians.

    The protocol of VEEGAN and PacGAN (Srivastava et al., 2017; Lin et al., 2018): a sample is of high quality if it
    lies within `radius` std of its nearest centre; a mode is captured if it is nearest to at least one such sample.

    Args:
        x: Samples [N, D]; a non-finite sample is not of high quality.
        centres: Centres [K, D].
        std: Standard deviation of each mode, per coordinate.
        radius: Radius of high quality, in standard deviations.
        dim: Number of coordinates in which the modes spread, for the ceiling; None: all.

    Returns:
        {"modes", "hq", "kl_modes"}: count of modes (0..K), share of high-quality samples, and KL of their histogram
        over modes to uniform in nats (0..log K; log K, the worst, if there is no such sample). The card holds
        the ceiling of "hq".

    Raises:
        ValueError: If the shapes do not fit, there is no sample or std is not positive.
    """
    if x.ndim != 2 or centres.ndim != 2 or x.shape[1] != centres.shape[1] or len(x) == 0 or not std > 0:
        raise ValueError(
            f"Samples [N, D], centres [K, D] and std > 0 wanted, got {tuple(x.shape)}, {tuple(centres.shape)}, {std}."
        )
    # By differences: the product form would lose distances of 0.02 between points at radius 2 to rounding.
    x = in_float64(x)
    distance = torch.cdist(x, centres.to(x.device).double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest, mode = distance.min(dim=1)
    good = nearest <= radius * std  # false for NaN
    counts = torch.bincount(mode[good], minlength=len(centres)).double()
    number = len(centres)
    kl = math.log(number)
    if counts.sum() > 0:
        share = counts / counts.sum()
        kl = math.log(number) + torch.special.xlogy(share, share).sum().item()
    values = {
        "modes": float((counts > 0).sum()),
        "hq": good.double().mean().item(),
        "kl_modes": max(kl, 0.0),
    }
    card = {"n_fake": len(x), "num_modes": number, "hq_ceiling": high_quality_ceiling(dim or x.shape[1], radius)}
    return Scores(values, card)


def energy_distance(x: Tensor, y: Tensor) -> Scores:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, zero only for equal distributions. Szekely & Rizzo (2013).

    Args:
        x: Samples [N, D]; N * M distances are held at once.
        y: Real samples [M, D].

    Returns:
        {"energy"}; pairs of a sample with itself are left out, so that it is unbiased and may be slightly negative.
    """

    def mean_distance(a: Tensor, b: Tensor, same: bool) -> float:
        total = torch.cdist(in_float64(a), in_float64(b)).sum()
        return (total / (len(a) * (len(b) - same))).item()

    value = 2 * mean_distance(x, y, False) - mean_distance(x, x, True) - mean_distance(y, y, True)
    return Scores({"energy": value}, {"n_fake": len(x), "n_real": len(y)})
