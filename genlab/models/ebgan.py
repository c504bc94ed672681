"""The energy-based GAN: a generator against an autoencoder with a margin."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.energy import Margin, pulling_away
from genlab.models.base import inference
from genlab.models.capabilities import Generating


class EBGAN(Generating):
    """Energy-based GAN. Zhao, Mathieu & LeCun (2017), arXiv:1609.03126, sections 2.1 to 2.4.

    The first `pretrain_steps` iterations train the discriminator alone, to reconstruct real samples: an untrained
    autoencoder's energies carry little information. With `pt_weight` > 0 this is EBGAN-PT: the generator's loss has the
    pulling-away term, too, which spreads the codes of a batch.
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
            discriminator: An autoencoder with `encode` and `decode`; its call is both in turn.
            code_dim: Size of the autoencoder's code, which the network's config reads.

        Raises:
            ValueError: If pretrain_steps is negative.
        """
        super().__init__()
        if pretrain_steps < 0:
            raise ValueError(f"model.pretrain_steps must be at least 0, got {pretrain_steps}.")
        self.generator, self.loss = generator, loss
        self.discriminator: Any = discriminator  # nn.Module declares no `encode` and no `decode`
        self.latent_dim, self.code_dim = latent_dim, code_dim
        self.pt_weight, self.pretrain_steps = pt_weight, pretrain_steps
        self.whole_batch = "the pulling-away term" if pt_weight else ""
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def energy(self, x: Tensor) -> Tensor:
        """D(x), the autoencoder's squared error on each sample, [N]."""
        return self.loss.energy(x, self.discriminator(x))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """AE(x), the autoencoder's reconstructions of samples [N, ...]."""
        return self.discriminator(x)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 1 and 2: one discriminator update, then one generator update; in pretraining the first alone."""
        x_real = batch.x

        # Pretraining of the autoencoder: minimise D(x).
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

        # Generator: minimise D(G(z)) + pt_weight f_PT(codes of G(z)).
        with self.turn("generator") as generator:
            x_fake = fakes.again()
            codes = self.discriminator.encode(x_fake)
            g_loss = self.loss.generator(self.loss.energy(x_fake, self.discriminator.decode(codes)))
            if self.pt_weight:
                pt = pulling_away(self.gathered(codes))
                g_loss = g_loss + self.pt_weight * pt
                self.record(pt=pt)
            generator.minimise(g_loss)

        within = (energy_fake < self.loss.m).float().mean()  # share of the fakes with a gradient in d_loss
        self.record(d_loss=d_loss, g_loss=g_loss, within_margin=within)
        self.record(energy_real=energy_real.mean(), energy_fake=energy_fake.mean())
