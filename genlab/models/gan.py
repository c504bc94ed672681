"""The two-player GAN: every objective that one discriminator and one generator play in alternation."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.penalties import Penalty, check_one_of_each_sample
from genlab.models.base import ALL_TRICKS, inference
from genlab.models.capabilities import Generating


class GAN(Generating):
    """Generative adversarial network. Goodfellow et al. (2014), arXiv:1406.2661, Algorithm 1 with k = 1.

    The objective is `loss`: with `non_saturating` and the networks of Radford et al. (2015), arXiv:1511.06434, this is
    the DCGAN; with `least_squares` the LSGAN.
    """

    tricks_taken = ALL_TRICKS
    tells = ("generator", "discriminator")
    ema_modules = ("generator",)

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        penalty: Penalty | None = None,
    ) -> None:
        """Joins the players.

        Args:
            penalty: On the discriminator's gradient, added to its loss; None for none.

        Raises:
            ValueError: If there is a penalty and the discriminator couples the samples of a batch.
        """
        super().__init__()
        if penalty is not None:
            check_one_of_each_sample(discriminator)
        self.generator, self.discriminator, self.loss, self.penalty = generator, discriminator, loss, penalty
        self.latent_dim = latent_dim
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    @inference
    def score_logits(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]: log p_data / p_model at its optimum."""
        return self.discriminator(x, *self.told(given))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: one discriminator update, then one generator update."""
        x_real, told = batch.x, self.told(batch)
        fakes = self.fakes(len(x_real), *told)

        # Discriminator: minimise loss.discriminator(D(x), D(G(z))).
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(x_real, *told), self.discriminator(fakes.shown, *told)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            if self.penalty is None:
                discriminator.minimise(d_loss)
            else:
                penalty = self.penalty(self.discriminator, x_real, fakes.shown, self.rand, *told)
                discriminator.minimise(d_loss + penalty)
                self.record(penalty=penalty)

        # Generator: minimise loss.generator(D(G(z))).
        with self.turn("generator") as generator:
            g_loss = self.generator_loss(self.loss, self.discriminator, fakes.again(), x_real, *told)
            generator.minimise(g_loss)

        self.record(d_loss=d_loss, g_loss=g_loss)
        self.record_logits(logits_real, logits_fake)
