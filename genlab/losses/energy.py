"""Objectives of games whose discriminator is an autoencoder: its reconstruction error is the energy of a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EnergyLoss(nn.Module):
    """A game played with energies, low for real samples. `model=began` and its kin take one, GANs with logits do not.

    Attributes:
        target: The part of a sample's energy, L(v) = mean |v - AE(v)|^eta over its dimensions.
    """

    def energy(self, x: Tensor, x_recon: Tensor) -> Tensor:
        """Energies [N] of samples [N, ...] from their reconstructions."""
        raise NotImplementedError


class BoundaryEquilibrium(EnergyLoss):
    """BEGAN. Berthelot, Schumm & Metz (2017), arXiv:1703.10717, sections 3.3 and 3.4.

    The share `k` of the fakes in the discriminator's loss is steered so that E L(G(z)) = gamma E L(x). It is a buffer:
    a checkpoint holds it.
    """

    k: Tensor

    def __init__(self, gamma: float = 0.5, lambda_k: float = 0.001, eta: int = 1) -> None:
        """Sets the equilibrium.

        Args:
            gamma: Diversity ratio E L(G(z)) / E L(x), in [0, 1]; lower values give sharper, less varied samples.
            lambda_k: Proportional gain of `k`.
            eta: Norm of the reconstruction error, 1 or 2.
        """
        super().__init__()
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
            energy_fake: Mean energy of the generator's samples, likewise.

        Returns:
            The measure of convergence M_global = L(x) + |gamma L(x) - L(G(z_G))|, a scalar.
        """
        balance = self.gamma * energy_real - energy_fake
        self.k.add_(self.lambda_k * balance).clamp_(0, 1)
        return energy_real + balance.abs()
