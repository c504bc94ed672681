"""Adversarially learned inference: a GAN with an encoder, and a discriminator of pairs of sample and latent."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import NonSaturating
from genlab.losses.penalties import Penalty, check_one_of_each_sample, penalty_of_pairs
from genlab.models.base import inference
from genlab.models.capabilities import Inferring
from genlab.networks.init import check_width
from genlab.networks.posteriors import Deterministic, Posterior


class ALI(Inferring):
    """Adversarially learned inference. Dumoulin et al. (2017), arXiv:1606.00704, Algorithm 1.

    D tells (x, E(x)) from (G(z), z); generator and encoder deceive it, each with its own pair. At the optimum both
    pairs have one distribution, so E inverts G. With one code per sample, `posterior=deterministic`, this is BiGAN:
    Donahue et al. (2017), arXiv:1605.09782.
    """

    ema_modules = ("generator", "encoder", "family")

    def __init__(
        self,
        generator: nn.Module,
        encoder: nn.Module,
        discriminator: nn.Module,
        loss: NonSaturating,
        latent_dim: int,
        encoder_features: int,
        posterior: Posterior | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        """Joins the players.

        Args:
            discriminator: Maps samples [N, ...] and latents [N, latent_dim] to logits [N].
            loss: A logistic loss: the encoder minimises `loss.generator` of minus the logits, which exchanges real and
                fake in no other loss.
            posterior: The family of q(z | x); one code per sample unless given.
            penalty: On the discriminator's gradient in sample and latent, added to its loss; None for none.

        Raises:
            UserError: If the encoder's width does not fit the posterior.
            ValueError: If there is a penalty and the discriminator couples the samples of a batch.
        """
        super().__init__()
        self.family = posterior or Deterministic(latent_dim, encoder_features)
        check_width(encoder_features, self.family.features)
        if penalty is not None:
            check_one_of_each_sample(discriminator)
        self.generator, self.encoder, self.discriminator = generator, encoder, discriminator
        self.loss, self.penalty, self.latent_dim = loss, penalty, latent_dim
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", [generator, encoder, self.family], "g_optimizer")

    def infer(self, x: Tensor) -> Tensor:
        """z ~ q(z | x) of samples [N, ...], [N, latent_dim], with its gradient."""
        return self.family(self.encoder(x)).draw(self.randn(len(x), self.latent_dim))[0]

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean, [N, latent_dim]."""
        return self.family(self.encoder(x)).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """G of the posterior mean of each sample."""
        return self.generator(self.family(self.encoder(x)).mean)

    def collect_discriminator(self, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> None:
        """Collects the discriminator's gradients of -log D(x, E(x)) - log(1 - D(G(z), z)) and of the penalty, if any.

        Args:
            real: Samples x [N, ...] and latents E(x) [N, latent_dim].
            fake: Samples G(z) and latents z.
        """
        real, fake = (real[0], real[1].detach()), (fake[0].detach(), fake[1])
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(*real), self.discriminator(*fake)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            if self.penalty is None:
                discriminator.collect(d_loss)
            else:
                penalty = penalty_of_pairs(self.penalty, self.discriminator, real, fake, self.rand)
                discriminator.collect(d_loss + penalty)
                self.record(penalty=penalty)
        self.record(d_loss=d_loss)
        self.record_logits(logits_real, logits_fake)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1 of Dumoulin et al.: all gradients at the same parameters, then both updates."""
        x, z = batch.x, self.noise(len(batch.x))
        z_infer, x_fake = self.infer(x), self.generator(z)

        # Discriminator: minimise -log D(x, E(x)) - log(1 - D(G(z), z)).
        self.collect_discriminator((x, z_infer), (x_fake, z))

        # Generator and encoder: minimise -log D(G(z), z) and -log(1 - D(x, E(x))).
        with self.turn("generator") as generator:
            g_loss = self.loss.generator(self.discriminator(x_fake, z))
            e_loss = self.loss.generator(-self.discriminator(x, z_infer))
            generator.collect(g_loss + e_loss)

        self.step("discriminator", "generator")
        self.record(g_loss=g_loss, e_loss=e_loss)
