"""Errors of reconstructions, and of outputs that have a target."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genlab.floats import in_float64
from genlab.metrics.features import Features
from genlab.metrics.scores import Scores
from genlab.metrics.ssim import SSIM

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
    found, card = _errors((x_recon, x, None) for x, x_recon in pairs)
    return Scores({f"recon_{name}": value for name, value in found.items() if name != "l1"}, card)


def pair_scores(pairs: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> Scores:
    """L1, PSNR and SSIM of outputs and their targets, each the mean over images.

    Args:
        pairs: Batches of outputs and targets in [-1, 1], [N, C, H, W] each, and which pixels were to be made,
            [N, 1, H, W] of 0 and 1; None for all. L1 and PSNR are of these pixels alone, SSIM of whole images.

    Returns:
        {"pair_l1", "pair_psnr", "pair_ssim"}, as in `reconstruction_scores`; the card says whether all pixels count.

    Raises:
        ValueError: If there is no image, or the shapes differ.
    """
    found, card = _errors(pairs)
    return Scores({f"pair_{name}": value for name, value in found.items() if name != "mse"}, card)


def _errors(pairs: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean squared and absolute error, PSNR and SSIM of images (outputs first), and their card."""
    squares, lengths, window, hidden = [], [], 0, False
    similar: SSIM | None = None
    for made, x, mask in pairs:
        if x.shape != made.shape or x.ndim != 4:
            raise ValueError(f"Images must be of one shape, got {tuple(x.shape)} and {tuple(made.shape)}.")
        a, b = ((each.float().clamp(-1, 1) + 1) / 2 for each in (x, made))
        hidden = mask is not None
        weights = torch.ones_like(a) if mask is None else mask.to(a).expand_as(a)
        error, share = in_float64(a - b), in_float64(weights).flatten(1)
        count = share.sum(dim=1).clamp_min(1)
        squares.append(((error.square().flatten(1) * share).sum(dim=1) / count).cpu())
        lengths.append(((error.abs().flatten(1) * share).sum(dim=1) / count).cpu())
        side = min(x.shape[2:])
        window = min(11, side - 1 + side % 2)
        if window >= 3:
            similar = similar or SSIM(window, 1.5 * window / 11)
            similar.update(b.cpu(), a.cpu())
    if not squares:
        raise ValueError("Reconstruction scores need images.")
    mse = torch.cat(squares)
    values = {
        "mse": mse.mean().item(),
        "l1": torch.cat(lengths).mean().item(),
        "psnr": (-10 * mse.clamp_min(FLOOR).log10()).mean().item(),
    }
    if similar is not None:
        values["ssim"] = torch.as_tensor(similar.compute()).mean().item()
    card = {"n_real": len(mse), "ssim_window": window, "psnr_cap": -10 * math.log10(FLOOR)}
    return values, {**card, "pixels": "hidden"} if hidden else card


def feature_error(real: Features, recon: Features) -> float:
    """The share of the variance of an extractor's features that reconstructions lose.

    E|f(x) - f(x^)|^2 / E|f(x) - E f(x)|^2: 0 if the features are equal, 1 if the reconstructions are no better than
    the mean feature, 2 for reconstructions of other images drawn at random.

    Args:
        real: Features of the originals.
        recon: Features of their reconstructions, in the same order.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if real.n < 2:
        raise ValueError("feature_error needs at least two images.")
    x, x_recon = real.features.double(), recon.features.double()
    lost = (x - x_recon).square().sum(dim=1).mean()
    return (lost / (x - x.mean(dim=0)).square().sum(dim=1).mean()).item()
