"""Divergences in closed form, per sample and in nats."""

from __future__ import annotations

from torch import Tensor


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) of each sample, in nats.

    Kingma & Welling (2014), "Auto-Encoding Variational Bayes", arXiv:1312.6114, Appendix B (which gives minus this).

    Args:
        mu: Posterior means, [N, Z].
        logvar: Posterior log-variances, [N, Z].

    Returns:
        Divergences [N], >= 0 and zero only at mu = 0, logvar = 0. Summed over Z, not averaged.

    Raises:
        ValueError: If the shapes differ (broadcasting would hide it).
    """
    if mu.shape != logvar.shape:
        raise ValueError(f"mu and logvar must have one shape, got {tuple(mu.shape)} and {tuple(logvar.shape)}.")
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1)
