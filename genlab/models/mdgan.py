"""Mode-regularised GANs: an encoder and G reconstruct every training sample, so that no mode is missed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.models.base import ALL_TRICKS, inference
from genlab.models.capabilities import Inferring
from genlab.networks.init import check_width


def distance(x: Tensor, x_recon: Tensor) -> Tensor:
    """d(x, G(E(x))), the mean squared difference over batch and dimensions, a scalar."""
    return (x - x_recon).square().mean()


class RegGAN(Inferring):
    """GAN with the mode regularizer. Che et al. (2017), arXiv:1612.02136, sections 3.1 and 3.2.

    Generator and encoder are one player; the encoder is trained on the terms of its loss that depend on it. The paper
    prints the regularizer's second term as + log D(G(E(x))); here it is -log D, so that G and E raise D(G(E(x))).
    """

    tricks_taken = ALL_TRICKS
    ema_modules = ("generator", "encoder")

    def __init__(
        self,
        generator: nn.Module,
        encoder: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        encoder_features: int,
        distance_weight: float,
        mode_weight: float,
    ) -> None:
        """Joins the players.

        Args:
            loss: `loss.generator` stands for -log D.
            distance_weight: lambda_1, of d(x, G(E(x))).
            mode_weight: lambda_2, of -log D(G(E(x))).

        Raises:
            UserError: If the encoder's output is not of size latent_dim.
        """
        super().__init__()
        check_width(encoder_features, latent_dim)
        self.generator, self.encoder, self.discriminator, self.loss = generator, encoder, discriminator, loss
        self.latent_dim, self.distance_weight, self.mode_weight = latent_dim, distance_weight, mode_weight
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", [generator, encoder], "g_optimizer")

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]: log p_data / p_model at its optimum."""
        return self.discriminator(x)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 3.2: one discriminator update, then one update of generator and encoder."""
        x_real = batch.x
        fakes = self.fakes(len(x_real))

        # Discriminator: minimise -log D(x) - log(1 - D(G(z))).
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(x_real), self.discriminator(fakes.shown)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            discriminator.minimise(d_loss)

        # Generator and encoder: minimise -log D(G(z)) + lambda_1 d(x, G(E(x))) - lambda_2 log D(G(E(x))).
        with self.turn("generator") as generator:
            x_fake = fakes.again()
            x_recon = self.generator(self.encoder(x_real))
            g_loss = self.generator_loss(self.loss, self.discriminator, x_fake, x_real)
            recon = distance(x_real, x_recon)
            mode = self.loss.generator(self.discriminator(x_recon))
            generator.minimise(g_loss + self.distance_weight * recon + self.mode_weight * mode)

        self.record(d_loss=d_loss, g_loss=g_loss, recon=recon, mode=mode)
        self.record_logits(logits_real, logits_fake)


class MDGAN(Inferring):
    """Manifold-diffusion GAN. Che et al. (2017), arXiv:1612.02136, section 3.3 and Appendix A.

    The manifold step matches G(E(x)) to the data, the diffusion step G(z) to G(E(x)), each with its own discriminator.
    """

    ema_modules = ("generator", "encoder")

    def __init__(
        self,
        generator: nn.Module,
        encoder: nn.Module,
        manifold_discriminator: nn.Module,
        diffusion_discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        encoder_features: int,
        manifold_weight: float,
    ) -> None:
        """Joins the players.

        Args:
            manifold_discriminator: D_1, of real samples and G(E(x)); to logits [N].
            diffusion_discriminator: D_2, of G(E(x)) and G(z); to logits [N].
            loss: `loss.generator` stands for -log D.
            manifold_weight: lambda, of -log D_1(G(E(x))).

        Raises:
            UserError: If the encoder's output is not of size latent_dim.
        """
        super().__init__()
        check_width(encoder_features, latent_dim)
        self.generator, self.encoder, self.loss = generator, encoder, loss
        self.manifold_discriminator, self.diffusion_discriminator = manifold_discriminator, diffusion_discriminator
        self.latent_dim, self.manifold_weight = latent_dim, manifold_weight
        self.add_player("manifold_discriminator", manifold_discriminator, "d_optimizer")
        self.add_player("diffusion_discriminator", diffusion_discriminator, "d_optimizer")
        self.add_player("generator", [generator, encoder], "g_optimizer")

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Appendix A: the manifold step (D_1, then G and E), then the diffusion step (D_2, then G)."""
        x_real = batch.x

        # D_1: minimise -log D_1(x) - log(1 - D_1(G(E(x)))).
        with torch.no_grad():
            x_recon = self.generator(self.encoder(x_real))
        with self.turn("manifold_discriminator") as manifold:
            d_manifold_loss = self.loss.discriminator(
                self.manifold_discriminator(x_real), self.manifold_discriminator(x_recon)
            )
            manifold.minimise(d_manifold_loss)

        # G and E: minimise d(x, G(E(x))) - lambda log D_1(G(E(x))).
        with self.turn("generator") as generator:
            x_recon = self.generator(self.encoder(x_real))
            recon = distance(x_real, x_recon)
            manifold_loss = self.loss.generator(self.manifold_discriminator(x_recon))
            generator.minimise(recon + self.manifold_weight * manifold_loss)

        # D_2: minimise -log D_2(G(E(x))) - log(1 - D_2(G(z))).
        with torch.no_grad():
            x_recon, x_fake = self.generator(self.encoder(x_real)), self.generator(self.noise(len(x_real)))
        with self.turn("diffusion_discriminator") as diffusion:
            logits_recon, logits_fake = self.diffusion_discriminator(x_recon), self.diffusion_discriminator(x_fake)
            d_diffusion_loss = self.loss.discriminator(logits_recon, logits_fake)
            diffusion.minimise(d_diffusion_loss)

        # G: minimise -log D_2(G(z)).
        with self.turn("generator") as generator:
            g_loss = self.loss.generator(self.diffusion_discriminator(self.generator(self.noise(len(x_real)))))
            generator.minimise(g_loss)

        self.record(d_manifold_loss=d_manifold_loss, d_diffusion_loss=d_diffusion_loss, recon=recon)
        self.record(manifold_loss=manifold_loss, g_loss=g_loss)
        self.record_logits(logits_recon, logits_fake)
