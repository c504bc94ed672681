"""The GAN with a projection discriminator, in the schedule of its authors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.models.base import inference
from genlab.models.capabilities import Generating
from genlab.models.labels import known_classes
from genlab.randomness import whole_below


class ProjectionGAN(Generating):
    """cGAN with projection discriminator. Miyato & Koyama (2018), arXiv:1802.05637, and the authors' code.

    The discriminator judges real samples with their own classes, which must all be known, and fakes with classes that
    are drawn evenly for each update. An iteration is one update of the generator, on a batch of its own, and then
    `n_critic` of the discriminator.
    """

    tricks_taken = (*Generating.tricks_taken, "instance_noise", "augment")
    tells = ("generator", "discriminator")
    ema_modules = ("generator",)

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        classes: int | None,
        n_critic: int,
        generator_batches: int,
    ) -> None:
        """Joins the players.

        Args:
            classes: K.
            n_critic: Discriminator updates of an iteration, each on fresh data.
            generator_batches: Size of the generator's batch, in batches of the discriminator.

        Raises:
            UserError: If the data have no classes, or a number is below 1.
        """
        super().__init__()
        for name, count in (("n_critic", n_critic), ("generator_batches", generator_batches)):
            if count < 1:
                raise UserError(f"model.{name} must be at least 1, got {count}.")
        self.generator, self.discriminator, self.loss = generator, discriminator, loss
        self.latent_dim, self.classes = latent_dim, known_classes(classes)
        self.n_critic, self.generator_batches = n_critic, generator_batches
        self.batches_per_step = n_critic
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Checks that the networks are told the classes alone, which is what the method can draw."""
        if self.given != ("y",):
            raise UserError(
                f"{type(self).__name__} draws the classes of its fakes, and model.given is {list(self.given)}. "
                "Try 'model.given=[y]'; for other columns there is model=cgan conditioning=projection."
            )

    @inference
    def score_logits(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]; with the hinge loss no log-ratio."""
        return self.discriminator(x, *self.told(given))

    def fakes_of_any_class(self, n: int) -> tuple[Tensor, Batch]:
        """Fakes G(z, y) [n, ...], and their classes y, drawn evenly."""
        told = Batch({"y": whole_below(self.rand(n), self.classes)})
        return self.generator(self.noise(n), told), told

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One generator update, then `n_critic` discriminator updates, in the order of the authors' code."""
        parts = batch.chunk(self.n_critic)

        # Generator: minimise loss.generator(D(G(z, y), y)).
        with self.turn("generator") as generator:
            x_fake, told = self.fakes_of_any_class(self.generator_batches * len(parts[0]))
            g_loss = self.loss.generator(self.discriminator(x_fake, told))
            generator.minimise(g_loss)

        # Discriminator: minimise loss.discriminator(D(x, y), D(G(z, y'), y')).
        for part in parts:
            with torch.no_grad():
                x_fake, told = self.fakes_of_any_class(len(part))
            with self.turn("discriminator") as discriminator:
                logits_real, logits_fake = (
                    self.discriminator(part.x, *self.told(part)),
                    self.discriminator(x_fake, told),
                )
                d_loss = self.loss.discriminator(logits_real, logits_fake)
                discriminator.minimise(d_loss)

        self.record(d_loss=d_loss, g_loss=g_loss)
        self.record_logits(logits_real, logits_fake)
