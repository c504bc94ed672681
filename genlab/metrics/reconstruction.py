"""Reconstruction errors of autoencoding models."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from genlab.floats import in_float64
from genlab.metrics.features import FeatureStats
from genlab.metrics.scores import Scores
from genlab.metrics.ssim import ssim

FLOOR = (0.5 / 255) ** 2  # mean squared error of half a grey value: bytes cannot show a smaller one


def reconstruction_scores(pairs: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Mean squared error, PSNR and SSIM of images and their reconstructions, each the mean over images.

    SSIM of Wang et al. (2004), doi:10.1109/TIP.2003.819861, over valid windows; images below 11 pixels use the largest
    odd window that fits, with sigma in proportion.

    Args:
        pairs: Batches of originals and reconstructions in [-1, 1], [N, C, H, W] each.

    Returns:
        {"recon_mse", "recon_psnr", "recon_ssim"}: pixels in [0, 1], reconstructions clamped to that range; PSNR in
        dB, at most 54.2 (a smaller error counts as half a grey value). SSIM is left out below 3 pixels.

    Raises:
        ValueError: If there is no image, or the shapes differ.
    """
    squares, similar, window = [], [], 0
    for x, x_recon in pairs:
        if x.shape != x_recon.shape or x.ndim != 4:
            raise ValueError(f"Images must be of one shape, got {tuple(x.shape)} and {tuple(x_recon.shape)}.")
        a, b = ((each.float().clamp(-1, 1) + 1) / 2 for each in (x, x_recon))
        squares.append(in_float64(a - b).square().flatten(1).mean(dim=1).cpu())
        side = min(x.shape[2:])
        window = min(11, side - 1 + side % 2)
        if window >= 3:
            similar.append(ssim(b, a, window, 1.5 * window / 11).cpu())
    if not squares:
        raise ValueError("reconstruction_scores needs images.")
    mse = torch.cat(squares)
    values = {"recon_mse": mse.mean().item(), "recon_psnr": (-10 * mse.clamp_min(FLOOR).log10()).mean().item()}
    if similar:
        values["recon_ssim"] = torch.cat(similar).mean().item()
    return Scores(values, {"n_real": len(mse), "ssim_window": window, "psnr_cap": -10 * math.log10(FLOOR)})


def feature_error(real: FeatureStats, recon: FeatureStats) -> float:
    """The share of the variance of an extractor's features that reconstructions lose.

    E|f(x) - f(x^)|^2 / E|f(x) - E f(x)|^2: 0 if the features are equal, 1 if the reconstructions are no better than
    the mean feature, 2 for reconstructions of other images drawn at random.

    Args:
        real: Statistics of the originals.
        recon: Statistics of their reconstructions, in the same order and with the same `keep`.

    Raises:
        ValueError: If there are fewer than two images, or the kept features belong to different images.
    """
    if real.n < 2:
        raise ValueError("feature_error needs at least two images.")
    if not torch.equal(real.keys, recon.keys):
        raise ValueError("The kept features must belong to the same images.")
    lost = (real.features.double() - recon.features.double()).square().sum(dim=1).mean()
    return (lost / (real.scatter.trace() / real.n)).item()
