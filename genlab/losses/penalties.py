"""Penalties on the gradient of a critic. Their gradients are second derivatives: keep them in float32."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.losses.numerics import at_least_float32, eager


def pack_size(critic: Callable[[Tensor], Tensor]) -> int:
    """How many samples a value of the critic is of: 1, or m where it judges packs (`tricks.packing`)."""
    modules = critic.modules() if isinstance(critic, nn.Module) else ()
    return max((getattr(module, "samples_per_value", 1) for module in modules), default=1)


def gradient_norms(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """|grad_x critic(x)| of each sample, [N], differentiable in the critic's parameters.

    A critic of packs is a function of m samples together, so that the gradient is one of each pack: [N / m].
    """
    with torch.autocast(x.device.type, enabled=False), eager():
        x = at_least_float32(x.detach())
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.unflatten(0, (-1, pack_size(critic))).flatten(1).norm(dim=1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], x_real: Tensor, x_fake: Tensor, alpha: Tensor | None = None
) -> Tensor:
    """E (|grad D(x_hat)| - 1)^2 at random points between real and fake samples.

    Gulrajani et al. (2017), arXiv:1704.00028, Eq. 3 and Algorithm 1, lines 4-7.

    Args:
        critic: Maps samples [N, ...] to values [N], each from its own sample alone (no batch normalisation), or to
            values [N / m] of packs.
        x_real: Real samples, [N, ...].
        x_fake: Generated samples of the same shape.
        alpha: Position of each point between its fake (0) and its real sample (1), [N], of packs [N / m]: a pack lies
            on the line between two packs. Drawn here when not given.

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
    return (gradient_norms(critic, x_hat) - 1).square().mean()


def check_one_of_each_sample(critic: nn.Module) -> None:
    """Refuses a critic whose gradient at one sample, or one pack, depends on the others of its batch.

    Raises:
        ValueError: If it normalises over the batch, or looks at batch mates.
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules()):
        raise ValueError(
            "The gradient penalty is one of each sample, and batch normalisation in the critic couples samples. "
            "Try network.norm=none."
        )
    if any(getattr(m, "couples_samples", False) and not hasattr(m, "samples_per_value") for m in critic.modules()):
        raise ValueError(
            "The gradient penalty is one of each sample, and minibatch discrimination couples samples: the gradient at "
            "one would hold terms of its batch mates. Try tricks.minibatch_discrimination=false, or penalty=none where "
            "the method lives without one."
        )


Critic = Callable[[Tensor], Tensor]


class Penalty(nn.Module):
    """A term that any adversarial discriminator can add to its loss. `penalty=...` chooses one of the subclasses.

    It is one of each sample, or of each pack where the discriminator judges packs: one that couples the samples of a
    batch (batch normalisation, minibatch discrimination) has no gradient of its own at each.
    """

    @abstractmethod
    def forward(self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor]) -> Tensor:
        """The weighted penalty, a scalar.

        Args:
            critic: Maps samples [N, ...] to logits [N], each from its own sample alone, or [N / m], from packs.
            x_real: Real samples, [N, ...].
            x_fake: Generated samples of the same shape.
            rand: `rand(n, *shape)` gives uniform draws in [0, 1), [n, *shape]: the model's own stream.
        """


class GradientPenalty(Penalty):
    """WGAN-GP's, lambda E (|grad D(x_hat)| - 1)^2 between real and fake. See `gradient_penalty`."""

    def __init__(self, weight: float = 10.0) -> None:
        """Sets lambda."""
        super().__init__()
        self.weight = weight

    def forward(self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor]) -> Tensor:
        """One position per sample (per pack), uniform between its fake and its real one."""
        return self.weight * gradient_penalty(critic, x_real, x_fake, alpha=rand(len(x_real) // pack_size(critic)))


class R1(Penalty):
    """gamma / 2 E |grad D(x)|^2 at real samples. Mescheder, Geiger & Nowozin (2018), arXiv:1801.04406, Eq. 9."""

    def __init__(self, gamma: float = 10.0) -> None:
        """Sets gamma."""
        super().__init__()
        self.gamma = gamma

    def forward(self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor]) -> Tensor:
        """Looks at real samples only, and draws nothing."""
        return 0.5 * self.gamma * gradient_norms(critic, x_real).square().mean()


class R2(Penalty):
    """gamma / 2 E |grad D(G(z))|^2 at fake samples. Mescheder, Geiger & Nowozin (2018), arXiv:1801.04406, Eq. 10."""

    def __init__(self, gamma: float = 10.0) -> None:
        """Sets gamma."""
        super().__init__()
        self.gamma = gamma

    def forward(self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor]) -> Tensor:
        """Looks at fake samples only, and draws nothing."""
        return 0.5 * self.gamma * gradient_norms(critic, x_fake).square().mean()


class DRAGAN(Penalty):
    """lambda E (|grad D(x + delta)| - k)^2 near real samples. Kodali et al. (2017), arXiv:1705.07215, Algorithm 1.

    The noise is that of the authors' code, alpha c u with alpha uniform on [0, 1) for each sample and u for each of
    its dimensions, where the paper has a Gaussian. Their c is half the standard deviation of the batch; here it is a
    number, so that no sample depends on its batch.
    """

    def __init__(self, weight: float = 10.0, k: float = 1.0, noise: float = 0.3) -> None:
        """Sets the constants.

        Args:
            weight: lambda.
            k: The slope that is wanted.
            noise: c, in units of the data.
        """
        super().__init__()
        self.weight, self.k, self.noise = weight, k, noise

    def forward(self, critic: Critic, x_real: Tensor, x_fake: Tensor, rand: Callable[..., Tensor]) -> Tensor:
        """Two draws: how far, and in which direction."""
        m = pack_size(critic)
        alpha = rand(len(x_real) // m).repeat_interleave(m).view(-1, *[1] * (x_real.dim() - 1))
        x_hat = x_real + alpha * self.noise * rand(*x_real.shape)
        return self.weight * (gradient_norms(critic, x_hat) - self.k).square().mean()


def penalty_of_pairs(
    penalty: Penalty,
    critic: Callable[[Tensor, Tensor], Tensor],
    real: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    rand: Callable[..., Tensor],
) -> Tensor:
    """A penalty on the gradient of a critic of pairs, in sample and latent together: a scalar.

    Args:
        penalty: Of a critic of one argument.
        critic: Maps samples [N, *shape] and latents [N, Z] to logits [N], each from its own pair alone.
        real: Samples and latents of the positive pairs.
        fake: Of the negative ones.
        rand: See `Penalty.forward`.
    """
    shape = real[0].shape[1:]
    size = shape.numel()

    def of_joined(joined: Tensor) -> Tensor:
        return critic(joined[:, :size].unflatten(1, shape), joined[:, size:])

    x_real, x_fake = (torch.cat([x.detach().flatten(1), z.detach()], dim=1) for x, z in (real, fake))
    return penalty(of_joined, x_real, x_fake, rand)
