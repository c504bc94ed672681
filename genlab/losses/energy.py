"""Objectives for autoencoder discriminators, whose reconstruction error is the energy of a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.losses.numerics import exact


class EnergyLoss(nn.Module):
    """Base of objectives on energies, which are low for real samples; for methods such as `model=began`."""

    def energy(self, x: Tensor, x_recon: Tensor) -> Tensor:
        """Energies [N] of samples [N, ...] from their reconstructions."""
        raise NotImplementedError


class BoundaryEquilibrium(EnergyLoss):
    """BEGAN. Berthelot, Schumm & Metz (2017), arXiv:1703.10717, sections 3.3 and 3.4.

    The weight `k` of the fakes in the discriminator's loss is controlled so that E L(G(z)) = gamma E L(x). It is a
    buffer and so part of a checkpoint.
    """

    k: Tensor

    def __init__(self, gamma: float = 0.5, lambda_k: float = 0.001, eta: int = 1) -> None:
        """Sets the constants of the equilibrium.

        Args:
            gamma: Diversity ratio E L(G(z)) / E L(x), in [0, 1]; lower values give sharper, less varied samples.
            lambda_k: Proportional gain of `k`.
            eta: Exponent of the reconstruction error, 1 or 2.

        Raises:
            ValueError: If a constant is out of its range.
        """
        super().__init__()
        if not 0 <= gamma <= 1:
            raise ValueError(f"loss.gamma must be in [0, 1], got {gamma}. Try loss.gamma=0.5.")
        if lambda_k < 0 or eta <= 0:
            raise ValueError(f"loss.lambda_k must be at least 0 and loss.eta positive, got {lambda_k} and {eta}.")
        self.gamma, self.lambda_k, self.eta = gamma, lambda_k, eta
        self.register_buffer("k", torch.zeros(()))

    def energy(self, x: Tensor, x_recon: Tensor) -> Tensor:
        """L(x) = mean |x - AE(x)|^eta over the dimensions of each sample, [N]."""
        return (x - x_recon).abs().pow(self.eta).flatten(1).mean(dim=1)

    def discriminator(self, energy_real: Tensor, energy_fake: Tensor) -> Tensor:
        """L(x) - k_t L(G(z_D)), a scalar."""
        return energy_real.mean() - self.k * energy_fake.mean()

    def generator(self, energy_fake: Tensor) -> Tensor:
        """L(G(z_G)), a scalar."""
        return energy_fake.mean()

    @torch.no_grad()
    def update(self, energy_real: Tensor, energy_fake: Tensor) -> Tensor:
        """k_{t+1} = clip(k_t + lambda_k (gamma L(x) - L(G(z_G))), 0, 1).

        Args:
            energy_real: Mean energy of the real samples of this iteration, a scalar over the global batch.
            energy_fake: Mean energy of the generator's samples, a scalar over the global batch.

        Returns:
            The convergence measure M_global = L(x) + |gamma L(x) - L(G(z_G))|, a scalar.
        """
        balance = self.gamma * energy_real - energy_fake
        self.k.add_(self.lambda_k * balance).clamp_(0, 1)
        return energy_real + balance.abs()


class Margin(EnergyLoss):
    """EBGAN. Zhao, Mathieu & LeCun (2017), arXiv:1609.03126, Eq. 1 and 2.

    At the Nash equilibrium the discriminator gives the same energy, between 0 and m, everywhere, and its loss is m.
    """

    def __init__(self, m: float = 10.0) -> None:
        """Sets the margin.

        Args:
            m: The discriminator raises the energy of fakes up to m; in squared units of the data, summed over the
                dimensions of a sample.

        Raises:
            ValueError: If m is not positive.
        """
        super().__init__()
        if m <= 0:
            raise ValueError(f"loss.m must be positive, got {m}. Try loss.m=10.")
        self.m = m

    def energy(self, x: Tensor, x_recon: Tensor) -> Tensor:
        """D(x) = |x - AE(x)|^2 of each sample, [N]. Eq. 4 has the norm itself; its square is smooth at 0."""
        return (x - x_recon).square().flatten(1).sum(dim=1)

    def discriminator(self, energy_real: Tensor, energy_fake: Tensor) -> Tensor:
        """E D(x) + E max(0, m - D(G(z))), a scalar."""
        return energy_real.mean() + F.relu(self.m - energy_fake).mean()

    def generator(self, energy_fake: Tensor) -> Tensor:
        """E D(G(z)), a scalar."""
        return energy_fake.mean()


@exact
def pulling_away(codes: Tensor) -> Tensor:
    """The pulling-away term f_PT: the mean squared cosine over all pairs of codes in a batch.

    Zhao, Mathieu & LeCun (2017), arXiv:1609.03126, Eq. 5.

    Args:
        codes: Codes [N, ...] of the whole batch of fakes, over all processes; N at least 2.

    Returns:
        A scalar in [0, 1]: 0 if all codes are orthogonal, 1 if all are parallel.

    Raises:
        ValueError: If N is below 2.
    """
    if len(codes) < 2:
        raise ValueError("The pulling-away term compares the samples of a batch, got one. Try data.batch_size=64.")
    unit = F.normalize(codes.flatten(1), dim=1)
    squares = (unit @ unit.T).square()
    return (squares.sum() - squares.diagonal().sum()) / (len(codes) * (len(codes) - 1))
