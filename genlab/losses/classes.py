"""Losses of classifiers whose labels may be missing, and of discriminators with a class for fakes. In nats."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.losses.numerics import exact


@exact
def known_cross_entropy(logits: Tensor, y: Tensor, averaged: Callable[[Tensor], Tensor]) -> Tensor:
    """The cross-entropy, a mean over the samples of all processes that have a label; 0 if none has.

    Args:
        logits: [N, K].
        y: Labels [N]; -1 where one is missing.
        averaged: The mean of a value over processes; a model's `averaged`.

    Returns:
        A scalar; its mean over processes is the mean over the labelled samples of all of them.
    """
    known = y >= 0
    each = F.cross_entropy(logits, y.clamp_min(0), reduction="none")
    count = averaged(known.sum().to(each)).clamp_min(1e-6)
    return torch.where(known, each, 0).sum() / count


@exact
def nats_of_real(logits: Tensor) -> Tensor:
    """-log(1 - p_{K+1}) of each sample, [N], from logits [N, K + 1] whose last class is that of fakes.

    Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, section 5.
    """
    return F.softplus(-real_logits(logits))


@exact
def nats_of_fake(logits: Tensor) -> Tensor:
    """-log p_{K+1} of each sample, [N], from logits [N, K + 1]; see `nats_of_real`."""
    return F.softplus(real_logits(logits))


@exact
def nats_of_class(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y of each sample, [N], from logits [N, K + 1]; -log(1 - p_{K+1}) where the label y [N] is missing (-1)."""
    known = y >= 0
    each = F.cross_entropy(logits, y.clamp_min(0), reduction="none")
    return torch.where(known, each, nats_of_real(logits))


@exact
def real_logits(logits: Tensor) -> Tensor:
    """log (1 - p_{K+1}) / p_{K+1} of each sample, [N], from logits [N, K + 1]."""
    return logits[:, :-1].logsumexp(dim=1) - logits[:, -1]
