"""The boundary equilibrium GAN: a generator against an autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.energy import BoundaryEquilibrium
from genlab.models.base import inference
from genlab.models.capabilities import Generating


class BEGAN(Generating):
    """Boundary equilibrium GAN. Berthelot, Schumm & Metz (2017), arXiv:1703.10717, section 3.

    Both updates are simultaneous, on gradients at the same parameters; the learning rate falls when the measure of
    convergence, `m_global`, stalls.
    """

    tricks_taken = (*Generating.tricks_taken, "replay")
    ema_modules = ("generator",)
    latent_prior = "uniform"

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, loss: BoundaryEquilibrium, latent_dim: int, code_dim: int
    ) -> None:
        """Joins the players.

        Args:
            discriminator: An autoencoder: maps samples [N, ...] to reconstructions [N, ...].
            code_dim: Size of the autoencoder's code, which the network's config reads.
        """
        super().__init__()
        self.generator, self.discriminator, self.loss = generator, discriminator, loss
        self.latent_dim, self.code_dim = latent_dim, code_dim
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents uniform on [-1, 1], [n, latent_dim]."""
        return 2 * self.rand(n, self.latent_dim, rng=rng) - 1

    def energy(self, x: Tensor) -> Tensor:
        """L(x), the autoencoder's error on each sample, [N]."""
        return self.loss.energy(x, self.discriminator(x))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """AE(x), the autoencoder's reconstructions of samples [N, ...]."""
        return self.discriminator(x)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 3.4: both gradients at the same parameters, then both updates, then k."""
        x_real = batch.x
        fakes = self.fakes(len(x_real))

        # Discriminator: minimise L(x) - k_t L(G(z_D)).
        with self.turn("discriminator") as discriminator:
            energy_real, energy_fake = self.energy(x_real), self.energy(fakes.shown)
            d_loss = self.loss.discriminator(energy_real, energy_fake)
            discriminator.collect(d_loss)

        # Generator: minimise L(G(z_G)).
        with self.turn("generator") as generator:
            x_fake = fakes.again()
            energy_g = self.energy(x_fake)
            g_loss = self.loss.generator(energy_g)
            generator.collect(g_loss)

        self.step("discriminator", "generator")

        # k_{t+1} = k_t + lambda_k (gamma L(x) - L(G(z_G))), on the means over the global batch.
        l_real, l_fake = self.averaged(energy_real.mean()), self.averaged(energy_g.mean())
        m_global = self.loss.update(l_real, l_fake)
        self.record(
            d_loss=d_loss, g_loss=g_loss, l_real=l_real, l_fake=l_fake, k=self.loss.k.clone(), m_global=m_global
        )
