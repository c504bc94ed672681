"""Closed-form divergences, per sample, in nats."""

from __future__ import annotations

import math

from torch import Tensor


def kl_standard_normal_terms(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each latent of each sample, in nats.

    Kingma & Welling (2014), "Auto-Encoding Variational Bayes", arXiv:1312.6114, Appendix B (which gives minus this).

    Args:
        mu: Posterior means, [N, Z].
        logvar: Posterior log-variances, [N, Z].

    Returns:
        Divergences [N, Z], >= 0 and zero only at mu = 0, logvar = 0.

    Raises:
        ValueError: If the shapes differ (broadcasting would hide it).
    """
    if mu.shape != logvar.shape:
        raise ValueError(f"mu and logvar must have one shape, got {tuple(mu.shape)} and {tuple(logvar.shape)}.")
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) of each sample, [N]: the sum of `kl_standard_normal_terms` over the latents."""
    return kl_standard_normal_terms(mu, logvar).sum(dim=1)


def kl_gaussians(mu: Tensor, logvar: Tensor, mu_2: Tensor, logvar_2: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(mu_2, exp(logvar_2))) of diagonal Gaussians [N, Z], summed over Z: [N] nats."""
    difference = logvar - logvar_2
    return 0.5 * (difference.exp() + (mu - mu_2).square() * (-logvar_2).exp() - 1 - difference).sum(dim=1)


def kl_uniform_categorical(logits: Tensor) -> Tensor:
    """KL(Cat(softmax(logits)) || uniform) over the last dimension, of size K, in nats: log K - entropy, >= 0."""
    log_p = logits.log_softmax(dim=-1)
    return math.log(logits.shape[-1]) + (log_p.exp() * log_p).sum(dim=-1)
