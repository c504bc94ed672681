"""Mixtures of Gaussians in the plane: densities in log space, and draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.losses.numerics import exact

MOST_CORRELATION = 0.99  # and
LEAST_LOG_SIGMA = math.log(0.005)  # keep the density of data on a line finite


def numbers_of(components: int) -> int:
    """How many numbers a mixture has: of each component a weight, two means, two deviations and a correlation."""
    return 6 * components


def _parts(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [..., M], means and log deviations [..., M, 2] and correlations [..., M]."""
    logits, *rest, correlation = parameters.chunk(6, dim=-1)
    mean, log_sigma = torch.stack(rest[:2], dim=-1), torch.stack(rest[2:], dim=-1)
    return logits, mean, log_sigma.clamp_min(LEAST_LOG_SIGMA), MOST_CORRELATION * torch.tanh(correlation)


@exact
def log_mixture(values: Tensor, parameters: Tensor) -> Tensor:
    """log p of points [..., 2] under mixtures of M bivariate Gaussians, [...] nats. Graves (2013), arXiv:1308.0850.

    Args:
        values: Points [..., 2].
        parameters: [..., 6 M]: logits, means x, means y, log deviations x, log deviations y, and correlations before a
            tanh. All 0: a standard normal, -log 2 pi - (x^2 + y^2) / 2.
    """
    logits, mean, log_sigma, rho = _parts(parameters)
    x, y = ((values.unsqueeze(-2) - mean) * (-log_sigma).exp()).unbind(dim=-1)
    rest = 1 - rho.square()
    distance = (x.square() + y.square() - 2 * rho * x * y) / rest
    log_component = -0.5 * (distance + rest.log()) - math.log(2 * math.pi) - log_sigma.sum(dim=-1)
    return (logits.log_softmax(dim=-1) + log_component).logsumexp(dim=-1)


@exact
def draw_mixture(parameters: Tensor, u: Tensor, eps: Tensor, temperature: float = 1.0) -> Tensor:
    """Draws from such mixtures, [..., 2]. A temperature below 1 sharpens the weights and shrinks the variances.

    Args:
        parameters: As for `log_mixture`.
        u: Uniform draws [...] that choose the components.
        eps: Standard normal draws [..., 2].
        temperature: Divides the logits and multiplies the variances; Ha & Eck (2018), arXiv:1704.03477, Eq. 8.
    """
    logits, mean, log_sigma, rho = _parts(parameters)
    chosen = choose(logits / temperature, u).unsqueeze(-1)
    rho = rho.take_along_dim(chosen, dim=-1).squeeze(-1)
    mean, log_sigma = (part.take_along_dim(chosen.unsqueeze(-1), dim=-2).squeeze(-2) for part in (mean, log_sigma))
    first, second = eps.unbind(dim=-1)
    shape = torch.stack([first, rho * first + (1 - rho.square()).sqrt() * second], dim=-1)
    return mean + math.sqrt(temperature) * log_sigma.exp() * shape


def choose(logits: Tensor, u: Tensor) -> Tensor:
    """Classes [...] of logits [..., M], by uniform draws [...] in [0, 1)."""
    bounds = logits.softmax(dim=-1).cumsum(dim=-1)
    return (u.unsqueeze(-1) > bounds).sum(dim=-1).clamp_max(logits.shape[-1] - 1)
