"""The energy-based GAN: a generator against an autoencoder with a margin."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.losses.energy import Margin, pulling_away
from genlab.models.base import inference
from genlab.models.capabilities import Generating


class EBGAN(Generating):
    """Energy-based GAN. Zhao, Mathieu & LeCun (2017), arXiv:1609.03126, sections 2.1 to 2.4.

    In its first `pretrain_steps` iterations the discriminator learns to reconstruct real samples, alone: energies mean
    little before. With `pt_weight` it is EBGAN-PT, whose generator also spreads the codes of its batch.
    """

    tricks_taken = (*Generating.tricks_taken, "replay")
    ema_modules = ("generator",)

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: Margin,
        latent_dim: int,
        code_dim: int,
        pt_weight: float,
        pretrain_steps: int,
    ) -> None:
        """Joins the players.

        Args:
            generator: Maps latents [N, latent_dim] to samples [N, ...].
            discriminator: An autoencoder: `encode`, `decode`, and both in turn as its call.
            loss: The margin.
            latent_dim: Size of the standard normal latent.
            code_dim: Size of the autoencoder's code, which its network is built with.
            pt_weight: Weight of the pulling-away term in the generator's loss; 0 leaves it out.
            pretrain_steps: Iterations at the start in which only the autoencoder learns.

        Raises:
            ValueError: If pretrain_steps is negative.
        """
        super().__init__()
        if pretrain_steps < 0:
            raise ValueError(f"model.pretrain_steps must be at least 0, got {pretrain_steps}.")
        self.generator, self.loss = generator, loss
        self.discriminator: Any = discriminator  # has `encode` and `decode`, which a Module does not promise
        self.latent_dim, self.code_dim = latent_dim, code_dim
        self.pt_weight, self.pretrain_steps = pt_weight, pretrain_steps
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def energy(self, x: Tensor) -> Tensor:
        """D(x), the autoencoder's squared error on each sample, [N]."""
        return self.loss.energy(x, self.discriminator(x))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """AE(x): what the discriminator's autoencoder makes of samples [N, ...]."""
        return self.discriminator(x)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 1 and 2: one discriminator update, then one generator update; at first the autoencoder's only."""
        x_real = batch.x

        # The autoencoder alone: minimise D(x).
        if self.iteration < self.pretrain_steps:
            with self.turn("discriminator") as discriminator:
                d_loss = self.energy(x_real).mean()
                discriminator.minimise(d_loss)
            self.record(d_loss=d_loss, energy_real=d_loss)
            return

        fakes = self.fakes(len(x_real))

        # Discriminator: minimise D(x) + max(0, m - D(G(z))).
        with self.turn("discriminator") as discriminator:
            energy_real, energy_fake = self.energy(x_real), self.energy(fakes.shown)
            d_loss = self.loss.discriminator(energy_real, energy_fake)
            discriminator.minimise(d_loss)

        # Generator: minimise D(G(z)), and with the pulling-away term + f_PT of the codes.
        with self.turn("generator") as generator:
            x_fake = fakes.again()
            codes = self.discriminator.encode(x_fake)
            g_loss = self.loss.generator(self.loss.energy(x_fake, self.discriminator.decode(codes)))
            if self.pt_weight:
                pt = pulling_away(self.gathered(codes))
                g_loss = g_loss + self.pt_weight * pt
                self.record(pt=pt)
            generator.minimise(g_loss)

        within = (energy_fake < self.loss.m).float().mean()  # of the fakes, which still push the discriminator
        self.record(d_loss=d_loss, g_loss=g_loss, within_margin=within)
        self.record(energy_real=energy_real.mean(), energy_fake=energy_fake.mean())
