"""Families of approximate posteriors q(z | x), parametrised by an encoder's output."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genlab.networks.flows import InverseAutoregressiveFlow, zuko_flow
from genlab.networks.init import check_positive


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) over the last dimension, in nats."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)


class DiagonalGaussian(NamedTuple):
    """N(mu, diag exp(logvar)), [N, Z] each."""

    mu: Tensor
    logvar: Tensor

    @property
    def mean(self) -> Tensor:
        """mu."""
        return self.mu

    def rsample(self, eps: Tensor) -> Tensor:
        """mu + sigma eps, for standard normal eps [..., N, Z]."""
        return self.mu + (0.5 * self.logvar).exp() * eps

    def draw(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """z = mu + sigma eps [..., N, Z] and log q(z) [..., N]."""
        return self.rsample(eps), log_standard_normal(eps) - 0.5 * self.logvar.sum(dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) of any z [..., N, Z], [..., N]."""
        return log_standard_normal((z - self.mu) * (-0.5 * self.logvar).exp()) - 0.5 * self.logvar.sum(dim=-1)

    def detached(self) -> DiagonalGaussian:
        """The same Gaussian without gradient to mu and logvar."""
        return DiagonalGaussian(self.mu.detach(), self.logvar.detach())


class FlowedGaussian:
    """The distribution of T(z_0) for z_0 from a diagonal Gaussian. Its density is known only at its own draws."""

    def __init__(self, base: DiagonalGaussian, flow: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Takes the base and the map z_0 -> T(z_0), log |det dT/dz_0|."""
        self.base, self.flow = base, flow

    @property
    def mean(self) -> Tensor:
        """T at the base's mean, [N, Z]: the draw at eps = 0, used in place of the mean."""
        with torch.autocast(self.base.mu.device.type, enabled=False):
            return self.flow(self.base.mu)[0]

    def draw(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """z = T(mu + sigma eps) [..., N, Z] and log q(z) [..., N]."""
        z, log_q = self.base.draw(eps)
        # The log-determinant sums many small terms: float32, also under autocast.
        with torch.autocast(z.device.type, enabled=False):
            z, log_det = self.flow(z)
        return z, log_q - log_det


class Posterior(nn.Module):
    """A family q(z | x).

    Attributes:
        features: Width of the encoder's output.
        diagonal: Whether it is a diagonal Gaussian.
        density: Whether its density is known; otherwise there is no KL and no bound.
    """

    features: int
    diagonal = False
    density = True

    @abstractmethod
    def forward(self, features: Tensor) -> DiagonalGaussian | FlowedGaussian:
        """q(z | x) from the encoder's output [N, features]."""


class Diagonal(Posterior):
    """A Gaussian with a mean and a variance for each latent. Kingma & Welling (2014), arXiv:1312.6114, Eq. 9.

    Args:
        latent_dim: Z.
        features: 2 Z: means, then log-variances.
    """

    diagonal = True

    def __init__(self, latent_dim: int, features: int) -> None:
        super().__init__()
        self.features = _checked(features, 2 * latent_dim, "2 * latent_dim")

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """The two halves of [N, 2 Z]."""
        mu, logvar = features.chunk(2, dim=1)
        return DiagonalGaussian(mu, logvar)


class Deterministic(Posterior):
    """One code per sample (variance 0), for methods that match codes to the prior by a discriminator.

    Args:
        latent_dim: Z.
        features: Z.
    """

    density = False

    def __init__(self, latent_dim: int, features: int) -> None:
        super().__init__()
        self.features = _checked(features, latent_dim, "latent_dim")

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """The encoder's output itself, independent of the noise."""
        return DiagonalGaussian(features, torch.full_like(features, -torch.inf))


class Universal(Posterior):
    """A network on the encoder's output and Z standard normal numbers.

    The universal approximator posterior of Makhzani et al. (2016), arXiv:1511.05644, section 2.1: codes f(x, noise),
    whose distribution may have any form and has no known density.

    Args:
        latent_dim: Z.
        features: Width of the encoder's output.
        hidden: Widths of the hidden layers on encoder output and noise.
    """

    density = False

    def __init__(self, latent_dim: int, features: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.features, self.latent_dim = features, latent_dim
        layers: list[nn.Module] = []
        width = features + latent_dim
        for out in hidden:
            check_positive("posterior.hidden", out, cure="[64]")
            layers += [nn.Linear(width, out), nn.ReLU()]
            width = out
        self.body = nn.Sequential(*layers, nn.Linear(width, latent_dim))

    def forward(self, features: Tensor) -> FlowedGaussian:
        """The distribution of f(x, noise); log q of its draws is NaN."""

        def join(noise: Tensor) -> tuple[Tensor, Tensor]:
            z = self.body(torch.cat([features.expand(*noise.shape[:-1], -1), noise], dim=-1))
            return z, z.new_full(z.shape[:-1], torch.nan)

        nothing = features.new_zeros(len(features), self.latent_dim)
        return FlowedGaussian(DiagonalGaussian(nothing, nothing), join)


class IAF(Posterior):
    """A diagonal Gaussian transformed by an inverse autoregressive flow. Kingma et al. (2016), arXiv:1606.04934.

    Args:
        latent_dim: Z.
        features: 2 Z plus the length of the context h, at least 1.
        steps: T of the paper.
        hidden: Widths of the autoregressive networks' hidden layers.
        bias: Bias of the gates.
    """

    def __init__(
        self,
        latent_dim: int,
        features: int,
        steps: int = 2,
        hidden: Sequence[int] = (320, 320),
        bias: float = 1.5,
    ) -> None:
        super().__init__()
        self.features, self.latent_dim = features, latent_dim
        self.flow = InverseAutoregressiveFlow(latent_dim, _context(features, latent_dim), steps, hidden, bias)

    def forward(self, features: Tensor) -> FlowedGaussian:
        """Means, log-variances and h of [N, features]."""
        mu, logvar, h = features.tensor_split((self.latent_dim, 2 * self.latent_dim), dim=1)
        return FlowedGaussian(DiagonalGaussian(mu, logvar), lambda z: self.flow(z, h))


class ZukoFlow(Posterior):
    """A diagonal Gaussian transformed by a zuko flow, in its one-pass direction.

    Rezende & Mohamed (2015), arXiv:1505.05770, section 3, with the transformations of `kind`.

    Args:
        latent_dim: Z.
        features: 2 Z plus the length of the context, at least 1.
        kind: "maf" (affine; in this direction an IAF with scales in place of gates) or "nsf" (splines).
        transforms: Number of layers of the flow.
        hidden: Widths of the hidden layers of each layer's network.
    """

    def __init__(
        self, latent_dim: int, features: int, kind: str = "nsf", transforms: int = 2, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.features, self.latent_dim = features, latent_dim
        context = _context(features, latent_dim)
        self.flow = zuko_flow(kind, latent_dim, context, transforms, hidden, f"posterior={kind}")

    def forward(self, features: Tensor) -> FlowedGaussian:
        """Means, log-variances and the context of [N, features]."""
        mu, logvar, h = features.tensor_split((self.latent_dim, 2 * self.latent_dim), dim=1)
        return FlowedGaussian(DiagonalGaussian(mu, logvar), lambda z: self.flow(h).transform.call_and_ladj(z))


def _checked(features: int, needed: int, what: str) -> int:
    if features != needed:
        raise ValueError(f"The encoder must give {what} = {needed} numbers, not {features}.")
    return features


def _context(features: int, latent_dim: int) -> int:
    if features <= 2 * latent_dim:
        raise ValueError(
            f"posterior.features must exceed 2 * latent_dim = {2 * latent_dim} by the length of the flow's context, "
            f"got {features}."
        )
    return features - 2 * latent_dim
