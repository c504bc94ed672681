"""Priors p(z) of latent-variable models, fixed or learned with them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.flows import zuko_flow
from genlab.networks.posteriors import DiagonalGaussian, FlowedGaussian, log_standard_normal

Approximation = Callable[[Tensor], DiagonalGaussian | FlowedGaussian]  # q(z | x) of samples
ROWS = 512  # latents at a time against all components of a mixture


class Prior(nn.Module):
    """p(z).

    Attributes:
        standard: Whether it is N(0, I).
        extra: Standard normal numbers that a draw needs beyond one for each latent.
        mixes_posteriors: Whether it is made of posteriors, whose density must then be known everywhere.
    """

    standard = False
    extra = 0
    mixes_posteriors = False

    @abstractmethod
    def log_prob(self, z: Tensor, posterior: Approximation) -> Tensor:
        """log p(z) of latents [..., Z], [...] nats; `posterior` is the model's q(z | x)."""

    @abstractmethod
    def draw(self, eps: Tensor, posterior: Approximation) -> Tensor:
        """Latents [n, Z] from standard normal numbers [n, Z + extra]."""

    def initialise(self, x: Callable[[int], Tensor]) -> None:
        """What must see data first; `x(n)` gives n training samples."""


class StandardNormal(Prior):
    """N(0, I). Kingma & Welling (2014), arXiv:1312.6114."""

    standard = True

    def log_prob(self, z: Tensor, posterior: Approximation) -> Tensor:
        """In closed form."""
        return log_standard_normal(z)

    def draw(self, eps: Tensor, posterior: Approximation) -> Tensor:
        """eps itself."""
        return eps


class VampPrior(Prior):
    """The mean of the posteriors of K learned pseudo-inputs: 1/K sum_k q(z | u_k).

    Tomczak & Welling (2018), arXiv:1705.07120, Eq. 9. The pseudo-inputs start as training samples.

    Args:
        shape: Of a sample; pseudo-images are cut to [-1, 1].
        components: K.
    """

    extra = 1  # which component
    mixes_posteriors = True

    def __init__(self, shape: Sequence[int], components: int = 500) -> None:
        super().__init__()
        if components < 1:
            raise UserError(f"prior.components must be at least 1, got {components}.")
        self.bounded = len(shape) == 3
        self.pseudo_inputs = nn.Parameter(torch.zeros(components, *shape))

    def initialise(self, x: Callable[[int], Tensor]) -> None:
        """Starts the pseudo-inputs at training samples."""
        with torch.no_grad():
            self.pseudo_inputs.copy_(x(len(self.pseudo_inputs)))

    def components(self, posterior: Approximation) -> DiagonalGaussian:
        """q(z | u_k) of all pseudo-inputs, [K, Z]."""
        u = self.pseudo_inputs
        q = posterior(u.clamp(-1, 1) if self.bounded else u)
        assert isinstance(q, DiagonalGaussian)
        return q

    def log_prob(self, z: Tensor, posterior: Approximation) -> Tensor:
        """log 1/K sum_k q(z | u_k)."""
        q = self.components(posterior)
        rows = z.flatten(0, -2).split(ROWS)  # [ROWS, K, Z] at a time
        mixed = torch.cat([q.log_prob(part.unsqueeze(1)).logsumexp(dim=1) for part in rows])
        return (mixed - math.log(len(q.mu))).view(z.shape[:-1])

    def draw(self, eps: Tensor, posterior: Approximation) -> Tensor:
        """A component for each row, by the last of its numbers, then a draw from it."""
        q = self.components(posterior)
        chosen = (torch.special.ndtr(eps[:, -1]) * len(q.mu)).long().clamp_max(len(q.mu) - 1)
        return DiagonalGaussian(q.mu[chosen], q.logvar[chosen]).rsample(eps[:, :-1])


class FlowPrior(Prior):
    """A flow learned with the model (zuko, the extra `flows`): one pass for a density, Z passes for a draw.

    Masked autoregressive flow: Papamakarios, Pavlakou & Murray (2017), arXiv:1705.07057. As a VAE's prior: Chen et al.
    (2017), "Variational Lossy Autoencoder", arXiv:1611.02731, section 3.2.

    Args:
        latent_dim: Z.
        kind: "maf" or "nsf".
        transforms: Layers, in alternating order.
        hidden: Widths in each layer's network.
    """

    def __init__(
        self, latent_dim: int, kind: str = "maf", transforms: int = 3, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.flow = zuko_flow(kind, latent_dim, 0, transforms, hidden, f"prior={kind}")

    def log_prob(self, z: Tensor, posterior: Approximation) -> Tensor:
        """log N(u; 0, I) + log |det du/dz| for the noise u of z."""
        with torch.autocast(z.device.type, enabled=False):
            u, log_det = self.flow().transform.call_and_ladj(z)
            return log_standard_normal(u) + log_det

    def draw(self, eps: Tensor, posterior: Approximation) -> Tensor:
        """The latents of this noise."""
        with torch.autocast(eps.device.type, enabled=False):
            return self.flow().transform.inv(eps)


def first_samples(batches: Iterator[Tensor]) -> Callable[[int], Tensor]:
    """`x(n)`: the first n of the samples that the batches bring, as many batches as that takes."""
    seen: list[Tensor] = []

    def take(n: int) -> Tensor:
        while sum(len(part) for part in seen) < n:
            seen.append(next(batches))
        return torch.cat(seen)[:n]

    return take
