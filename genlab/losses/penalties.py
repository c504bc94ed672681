"""Penalties on the gradient of a critic. Training on them takes second derivatives, computed in float32."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.numerics import at_least_float32, eager

Critic = Callable[..., Tensor]  # maps samples [N, ...], and conditions of as many rows, to values


def pack_size(critic: Critic) -> int:
    """Number of samples per value of the critic: 1, or m for a critic of packs (`tricks.packing`)."""
    modules = critic.modules() if isinstance(critic, nn.Module) else ()
    return max((getattr(module, "samples_per_value", 1) for module in modules), default=1)


def gradient_norms(critic: Critic, x: Tensor, *told: Batch) -> Tensor:
    """|grad_x critic(x)| of each sample, [N], differentiable in the critic's parameters.

    A critic of packs is a function of m samples together; the norm is that of each pack, [N / m].
    """
    with torch.autocast(x.device.type, enabled=False), eager():
        x = at_least_float32(x.detach())
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(x, *told).sum(), x, create_graph=True)
    return gradient.unflatten(0, (-1, pack_size(critic))).flatten(1).norm(dim=1)


def gradient_penalty(
    critic: Critic, x_real: Tensor, x_fake: Tensor, alpha: Tensor | None = None, *told: Batch
) -> Tensor:
    """E (|grad D(x_hat)| - 1)^2 at random points between real and fake samples.

    Gulrajani et al. (2017), arXiv:1704.00028, Eq. 3 and Algorithm 1, lines 4-7.

    Args:
        critic: Maps samples [N, ...] to values [N], each a function of its own sample alone (no batch normalisation),
            or packs to values [N / m].
        x_real: Real samples, [N, ...].
        x_fake: Generated samples of the same shape.
        alpha: Position of each point between its fake (0) and its real sample (1), [N]; for packs [N / m], because a
            point lies on the line between two packs. None: drawn from torch's global stream.
        *told: Conditions [N] of a critic that is told some; each point between a pair has the pair's.

    Returns:
        The penalty, a scalar, before its weight lambda.

    Raises:
        ValueError: If the shapes differ.
    """
    if x_real.shape != x_fake.shape:
        raise ValueError(f"Real and fake must have one shape, got {tuple(x_real.shape)} and {tuple(x_fake.shape)}.")
    m = pack_size(critic)
    if alpha is None:
        alpha = torch.rand(len(x_real) // m, dtype=x_real.dtype, device=x_real.device)
    alpha = alpha.repeat_interleave(m).view(-1, *[1] * (x_real.dim() - 1))
    x_hat = alpha * x_real + (1 - alpha) * x_fake
    return (gradient_norms(critic, x_hat, *told) - 1).square().mean()


def check_one_of_each_sample(critic: nn.Module) -> None:
    """Refuses a critic whose gradient at one sample (or pack) depends on the other samples of the batch.

    Raises:
        ValueError: If the critic has batch normalisation or minibatch discrimination.
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules()):
        raise ValueError(
            "The gradient penalty needs a gradient per sample, and batch normalisation in the critic couples samples. "
            "Try network.norm=none."
        )
    if any(getattr(m, "couples_samples", False) and not hasattr(m, "samples_per_value") for m in critic.modules()):
        raise ValueError(
            "The gradient penalty needs a gradient per sample, and minibatch discrimination couples samples: the "
            "gradient at one contains terms of the others. Try tricks.minibatch_discrimination=false, or penalty=none "
            "if the method does not need a penalty."
        )


class Penalty(nn.Module):
    """A gradient penalty in the loss of an adversarial discriminator. `penalty=...` chooses one of the subclasses.

    It uses the gradient at each sample, or at each pack for a discriminator of packs. Discriminators that couple the
    samples of a batch (batch normalisation, minibatch discrimination) have no such gradient.
    """

    @abstractmethod
    def forward(
        self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor], *told: Batch
    ) -> Tensor:
        """The weighted penalty, a scalar.

        Args:
            critic: Maps samples [N, ...] to logits [N], each a function of its own sample alone; packs to [N / m].
            x_real: Real samples, [N, ...].
            x_fake: Generated samples of the same shape.
            rand: `rand(n, *shape)` returns uniform draws in [0, 1), [n, *shape], from the model's stream.
            *told: Conditions [N] of a critic that is told some, passed on to it.
        """


class GradientPenalty(Penalty):
    """The penalty of WGAN-GP, lambda E (|grad D(x_hat)| - 1)^2 between real and fake. See `gradient_penalty`."""

    def __init__(self, weight: float = 10.0) -> None:
        """Sets lambda."""
        super().__init__()
        self.weight = weight

    def forward(
        self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor], *told: Batch
    ) -> Tensor:
        """`gradient_penalty` at a uniformly drawn position per sample (or pack), times lambda."""
        alpha = rand(len(x_real) // pack_size(critic))
        return self.weight * gradient_penalty(critic, x_real, x_fake, alpha, *told)


class R1(Penalty):
    """gamma / 2 E |grad D(x)|^2 at real samples. Mescheder, Geiger & Nowozin (2018), arXiv:1801.04406, Eq. 9."""

    def __init__(self, gamma: float = 10.0) -> None:
        """Sets gamma."""
        super().__init__()
        self.gamma = gamma

    def forward(
        self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor], *told: Batch
    ) -> Tensor:
        """Uses only `critic` and `x_real`."""
        return 0.5 * self.gamma * gradient_norms(critic, x_real, *told).square().mean()


class R2(Penalty):
    """gamma / 2 E |grad D(G(z))|^2 at fake samples. Mescheder, Geiger & Nowozin (2018), arXiv:1801.04406, Eq. 10."""

    def __init__(self, gamma: float = 10.0) -> None:
        """Sets gamma."""
        super().__init__()
        self.gamma = gamma

    def forward(
        self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor], *told: Batch
    ) -> Tensor:
        """Uses only `critic` and `x_fake`."""
        return 0.5 * self.gamma * gradient_norms(critic, x_fake, *told).square().mean()


class DRAGAN(Penalty):
    """lambda E (|grad D(x + delta)| - k)^2 near real samples. Kodali et al. (2017), arXiv:1705.07215, Algorithm 1.

    The noise delta is that of the authors' code (the paper has a Gaussian): alpha c u, with alpha uniform on [0, 1) per
    sample and u uniform on [0, 1) per dimension. Their c is half the standard deviation of the batch. Here c is a
    constant, so that no sample depends on its batch.
    """

    def __init__(self, weight: float = 10.0, k: float = 1.0, noise: float = 0.3) -> None:
        """Sets the constants.

        Args:
            weight: lambda.
            k: Target of the gradient norm.
            noise: c, in units of the data.

        Raises:
            ValueError: If a constant is negative.
        """
        super().__init__()
        if weight < 0 or k < 0 or noise < 0:
            raise ValueError(f"penalty.weight, k and noise must be at least 0, got {weight}, {k} and {noise}.")
        self.weight, self.k, self.noise = weight, k, noise

    def forward(
        self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor], *told: Batch
    ) -> Tensor:
        """Draws alpha per sample (or pack), then u per dimension."""
        m = pack_size(critic)
        alpha = rand(len(x_real) // m).repeat_interleave(m).view(-1, *[1] * (x_real.dim() - 1))
        x_hat = x_real + alpha * self.noise * rand(*x_real.shape)
        return self.weight * (gradient_norms(critic, x_hat, *told) - self.k).square().mean()


def penalty_of_pairs(
    penalty: Penalty,
    critic: Callable[[Tensor, Tensor], Tensor],
    real: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    rand: Callable[..., Tensor],
) -> Tensor:
    """The penalty of a critic of pairs, on its gradient in sample and latent together: a scalar.

    Args:
        penalty: Any penalty of a critic of samples; it gets the pairs as vectors.
        critic: Maps samples [N, *shape] and latents [N, Z] to logits [N], each a function of its own pair alone.
        real: Samples and latents of the positive pairs.
        fake: Samples and latents of the negative pairs.
        rand: See `Penalty.forward`.
    """
    shape = real[0].shape[1:]
    size = shape.numel()

    def of_joined(joined: Tensor) -> Tensor:
        return critic(joined[:, :size].unflatten(1, shape), joined[:, size:])

    x_real, x_fake = (torch.cat([x.detach().flatten(1), z.detach()], dim=1) for x, z in (real, fake))
    return penalty(of_joined, x_real, x_fake, rand)
