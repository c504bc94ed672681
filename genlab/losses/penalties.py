"""Penalties on the gradient of a critic. Their gradients are second derivatives: keep them in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_norms(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """|grad_x critic(x)| of each sample, [N], differentiable in the critic's parameters."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], x_real: Tensor, x_fake: Tensor, alpha: Tensor | None = None
) -> Tensor:
    """E (|grad D(x_hat)| - 1)^2 at random points between real and fake samples.

    Gulrajani et al. (2017), arXiv:1704.00028, Eq. 3 and Algorithm 1, lines 4-7.

    Args:
        critic: Maps samples [N, ...] to values [N], each from its own sample alone (no batch normalisation).
        x_real: Real samples, [N, ...].
        x_fake: Generated samples of the same shape.
        alpha: Position of each point between its fake (0) and its real sample (1), [N]; drawn here when not given.

    Returns:
        The penalty, a scalar, before its weight lambda.

    Raises:
        ValueError: If the shapes differ.
    """
    if x_real.shape != x_fake.shape:
        raise ValueError(f"Real and fake must have one shape, got {tuple(x_real.shape)} and {tuple(x_fake.shape)}.")
    if alpha is None:
        alpha = torch.rand(len(x_real), dtype=x_real.dtype, device=x_real.device)
    alpha = alpha.view(-1, *[1] * (x_real.dim() - 1))
    x_hat = alpha * x_real + (1 - alpha) * x_fake
    return (gradient_norms(critic, x_hat) - 1).square().mean()
