"""Modes of stacked digits: how many of the 1,000 triples of classes a generator draws, and how evenly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics.scores import Scores


def tuple_coverage(classes: Tensor, num_classes: int) -> Scores:
    """Distinct tuples of classes among samples, and KL of their histogram to the uniform one over all tuples.

    Args:
        classes: [N, C], each 0..num_classes - 1.
        num_classes: K.

    Returns:
        {"modes", "kl_modes"}: 1..K^C, and 0..C log K in nats (of the counted frequencies, without bias correction).

    Raises:
        ValueError: If there is no sample.
    """
    n, channels = classes.shape
    if n == 0:
        raise ValueError("tuple_coverage needs samples.")
    cells = num_classes**channels
    weights = num_classes ** torch.arange(channels - 1, -1, -1)
    counts = torch.bincount((classes.long().cpu() * weights).sum(dim=1), minlength=cells).double()
    share = counts / n
    kl = math.log(cells) + torch.special.xlogy(share, share).sum().item()
    return Scores({"modes": float((counts > 0).sum()), "kl_modes": max(kl, 0.0)}, {"n_fake": n, "num_modes": cells})


def perfect_coverage(n: int, share: Tensor, channels: int = 3) -> dict[str, float]:
    """The expected `tuple_coverage` of n true samples with independent channels.

    The expected KL is not 0: the classes are not all equally frequent, and n samples fall unevenly into K^C cells
    (which adds about (K^C - 1) / 2n). The result is exact: a cell's count is binomial.

    Args:
        n: Samples.
        share: Frequency of each class [K], summing to 1.
        channels: C.

    Returns:
        {"modes", "kl_modes"}.
    """
    p = share.double()
    cell = p
    for _ in range(channels - 1):
        cell = (cell[:, None] * p).flatten()
    empty = (n * torch.log1p(-cell)).exp()
    # E[(c/n) log(c/n)] = p E[log((1 + B)/n)], B binomial with n - 1 trials: no term for c = 0, all terms of one sign.
    values, inverse = cell.unique(return_inverse=True)
    b = torch.arange(n, dtype=torch.float64)
    choose = math.lgamma(n) - torch.lgamma(b + 1) - torch.lgamma(n - b)
    log_share = ((1 + b) / n).log()
    terms = [
        q * ((choose + b * q.log() + (n - 1 - b) * torch.log1p(-q)).exp() * log_share).sum() if 0 < q < 1 else 0 * q
        for q in values
    ]
    expected = torch.stack(terms)[inverse].sum()
    return {"modes": (1 - empty).sum().item(), "kl_modes": (channels * math.log(len(p)) + expected).item()}
