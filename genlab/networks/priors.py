"""Priors p(z) of latent-variable models, fixed or learned with the model."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.losses.numerics import exact
from genlab.networks.flows import zuko_flow
from genlab.networks.posteriors import DiagonalGaussian, FlowedGaussian, log_standard_normal
from genlab.randomness import whole_below

Approximation = Callable[[Tensor], DiagonalGaussian | FlowedGaussian]  # samples to q(z | x)
ROWS = 512  # latents at a time whose densities under all components of a mixture are computed


class Prior(nn.Module):
    """p(z).

    Attributes:
        standard: Whether it is N(0, I).
        extra: Number of standard normal numbers that a draw needs in addition to Z.
        mixes_posteriors: Whether it is a mixture of posteriors, whose density must then be known at every z.
        classes: Number of classes with a part of the prior each, see `draw_given`; 0: none.
    """

    standard = False
    extra = 0
    mixes_posteriors = False
    classes = 0

    @abstractmethod
    def log_prob(self, z: Tensor, posterior: Approximation) -> Tensor:
        """log p(z) of latents [..., Z], [...] nats; `posterior` is the model's q(z | x)."""

    @abstractmethod
    def draw(self, eps: Tensor, posterior: Approximation) -> Tensor:
        """Latents [n, Z] from standard normal numbers [n, Z + extra]."""

    def draw_given(self, eps: Tensor, y: Tensor) -> Tensor:
        """Latents [n, Z] from the parts of labels [n], from the whole prior at label -1; `eps` as in `draw`.

        Raises:
            UserError: If the prior has no classes.
        """
        raise UserError("This prior has no classes. Try prior=gaussian_mixture or prior=swiss_roll.")

    def initialise(self, x: Callable[[int], Tensor]) -> None:
        """Initialises from data; `x(n)` gives n training samples."""


class StandardNormal(Prior):
    """N(0, I). Kingma & Welling (2014), arXiv:1312.6114."""

    standard = True

    def log_prob(self, z: Tensor, posterior: Approximation) -> Tensor:
        """In closed form."""
        return log_standard_normal(z)

    def draw(self, eps: Tensor, posterior: Approximation) -> Tensor:
        """eps itself."""
        return eps


class GaussianMixture(Prior):
    """Equally likely Gaussians on a circle around the origin in the plane, elongated along the radius like petals.

    Makhzani et al. (2016), arXiv:1511.05644, Fig. 4A, which shows ten components without their parameters. The defaults
    here give the mixture about unit variance. Label k belongs to component k.

    Args:
        latent_dim: Z, which must be 2.
        components: Number of components.
        radius: Radius of the circle of centres.
        radial_std: Standard deviation along the radius.
        tangential_std: Standard deviation across the radius.

    Raises:
        UserError: If Z is not 2, or a size is not positive.
    """

    extra = 1  # to choose the component

    def __init__(
        self,
        latent_dim: int,
        components: int = 10,
        radius: float = 1.4,
        radial_std: float = 0.5,
        tangential_std: float = 0.1,
    ) -> None:
        super().__init__()
        _check_plane("gaussian_mixture", latent_dim)
        _check_sizes(components=components, radius=radius, radial_std=radial_std, tangential_std=tangential_std)
        self.classes = components
        angle = 2 * math.pi * torch.arange(components) / components
        out = torch.stack([angle.cos(), angle.sin()], dim=1)
        across = torch.stack([-angle.sin(), angle.cos()], dim=1)
        self.centres: Tensor
        self.scales: Tensor
        self.register_buffer("centres", radius * out)
        # Columns of A_k; the covariance is A_k A_k^T.
        self.register_buffer("scales", torch.stack([radial_std * out, tangential_std * across], dim=2))

    @exact
    def log_prob(self, z: Tensor, posterior: Approximation | None = None) -> Tensor:
        """log 1/K sum_k N(z; c_k, A_k A_k^T)."""
        u = (self.scales.inverse() @ (z.unsqueeze(-2) - self.centres).unsqueeze(-1)).squeeze(-1)
        log_each = log_standard_normal(u) - self.scales.det().abs().log()
        return log_each.logsumexp(dim=-1) - math.log(self.classes)

    def draw(self, eps: Tensor, posterior: Approximation | None = None) -> Tensor:
        """For each row, a draw from the component that its last number chooses."""
        return self.draw_given(eps, eps.new_full((len(eps),), -1, dtype=torch.long))

    @exact
    def draw_given(self, eps: Tensor, y: Tensor) -> Tensor:
        """A draw from component y, from a random one where y is -1."""
        drawn = whole_below(torch.special.ndtr(eps[:, -1]), self.classes)
        k = torch.where(y < 0, drawn, y)
        return self.centres[k] + (self.scales[k] @ eps[:, :-1].unsqueeze(-1)).squeeze(-1)


class SwissRoll(Prior):
    """A spiral from the origin outwards, with Gaussian noise. Makhzani et al. (2016), arXiv:1511.05644, Fig. 4B.

    The point at t is radius t (cos w, sin w) with w = 2 pi turns t; t^2 is uniform on [0, 1], which spreads the points
    almost evenly along the curve. Label k of K belongs to the k-th of K pieces of equal probability, from the origin
    outwards. The density has no closed form: it is integrated along the curve, in steps much smaller than the noise.

    Args:
        latent_dim: Z, which must be 2.
        classes: K; 0 or None: no classes.
        radius: Distance of the outer end from the origin.
        turns: Number of turns around the origin.
        std: Standard deviation of the noise, in both directions.

    Raises:
        UserError: If Z is not 2, or a size is not positive.
    """

    extra = 1  # to choose the point on the curve

    def __init__(
        self, latent_dim: int, classes: int | None = None, radius: float = 2.0, turns: float = 2.0, std: float = 0.05
    ) -> None:
        super().__init__()
        _check_plane("swiss_roll", latent_dim)
        _check_sizes(radius=radius, turns=turns, std=std)
        self.classes, self.radius, self.turns, self.std = classes or 0, radius, turns, std
        # Bound on the curve's length: the radius, plus all turns at the full radius.
        self.steps = math.ceil(8 * radius * (1 + 2 * math.pi * turns) / std)

    def curve(self, t: Tensor) -> Tensor:
        """The points [..., 2] at t [...] in [0, 1]."""
        angle = 2 * math.pi * self.turns * t
        return self.radius * t.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], dim=-1)

    def log_prob(self, z: Tensor, posterior: Approximation | None = None) -> Tensor:
        """log of the integral of N(z; curve(t), std^2 I) 2t dt over [0, 1], by the midpoint rule."""
        t = (torch.arange(self.steps, device=z.device, dtype=z.dtype) + 0.5) / self.steps
        log_weights, points = (2 * t / self.steps).log(), self.curve(t)
        constant = 2 * math.log(self.std) + math.log(2 * math.pi)
        parts = []
        for part in z.flatten(0, -2).split(ROWS):
            square = (part.unsqueeze(1) - points).square().sum(dim=-1)
            parts.append((log_weights - 0.5 * square / self.std**2).logsumexp(dim=1) - constant)
        return torch.cat(parts).view(z.shape[:-1])

    def draw(self, eps: Tensor, posterior: Approximation | None = None) -> Tensor:
        """For each row, the point of the curve that its last number chooses, plus noise from the others."""
        return self._around(torch.special.ndtr(eps[:, -1]), eps)

    def draw_given(self, eps: Tensor, y: Tensor) -> Tensor:
        """A draw from the y-th piece, from the whole curve where y is -1."""
        if not self.classes:
            return super().draw_given(eps, y)
        u = torch.special.ndtr(eps[:, -1])
        return self._around(torch.where(y < 0, u, (u + y) / self.classes), eps)

    def _around(self, square: Tensor, eps: Tensor) -> Tensor:
        return self.curve(square.sqrt()) + self.std * eps[:, :-1]


def _check_plane(name: str, latent_dim: int) -> None:
    if latent_dim != 2:
        raise UserError(f"prior={name} lies in the plane, got model.latent_dim={latent_dim}. Try model.latent_dim=2.")


def _check_sizes(**sizes: float) -> None:
    for name, size in sizes.items():
        if not size > 0:
            raise UserError(f"prior.{name} must be positive, got {size}.")


class VampPrior(Prior):
    """The mean of the posteriors of K learned pseudo-inputs: 1/K sum_k q(z | u_k).

    Tomczak & Welling (2018), arXiv:1705.07120, Eq. 9. The pseudo-inputs start as training samples.

    Args:
        shape: Shape of a sample; pseudo-images are clamped to [-1, 1].
        components: K.
    """

    extra = 1  # to choose the component
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
        """For each row, a draw from the component that its last number chooses."""
        q = self.components(posterior)
        chosen = whole_below(torch.special.ndtr(eps[:, -1]), len(q.mu))
        return DiagonalGaussian(q.mu[chosen], q.logvar[chosen]).rsample(eps[:, :-1])


class FlowPrior(Prior):
    """A flow learned with the model (zuko, the extra `flows`): one pass for a density, Z passes for a draw.

    Masked autoregressive flow: Papamakarios, Pavlakou & Murray (2017), arXiv:1705.07057. As a VAE's prior: Chen et al.
    (2017), "Variational Lossy Autoencoder", arXiv:1611.02731, section 3.2.

    Args:
        latent_dim: Z.
        kind: "maf" or "nsf".
        transforms: Number of layers, in alternating order of the dimensions.
        hidden: Widths of the hidden layers of each layer's network.
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
        """The latents for noise eps."""
        with torch.autocast(eps.device.type, enabled=False):
            return self.flow().transform.inv(eps)


def first_samples(batches: Iterator[Tensor]) -> Callable[[int], Tensor]:
    """Returns `x(n)`, the first n samples of the batches; reads no more batches than needed."""
    seen: list[Tensor] = []

    def take(n: int) -> Tensor:
        while sum(len(part) for part in seen) < n:
            seen.append(next(batches))
        return torch.cat(seen)[:n]

    return take
