"""The clustering adversarial autoencoder: a category and a style, each with a discriminator of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding
from genlab.models.labels import check_widths, classes_of, known_classes, one_hot
from genlab.networks.latent import LatentDiscriminator
from genlab.randomness import whole_below


class ClusteringAAE(Coding):
    """Unsupervised clustering with an adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 6.

    The encoder maps samples [N, ...] to logits of the category and a style, [N, K + style_dim]. One discriminator tells
    the probabilities of the category from one-hot vectors of evenly drawn categories, another tells styles from
    standard normal ones; the encoder deceives both. A latent is the category, then the style.
    """

    ema_modules = ("encoder", "decoder", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        category_discriminator: LatentDiscriminator,
        style_discriminator: LatentDiscriminator,
        loss: AdversarialLoss,
        latent_dim: int,
        categories: int | None,
        style_dim: int,
        encoder_features: int,
        recon_weight: float = 1.0,
        adversarial_weight: float = 1.0,
    ) -> None:
        """Joins the players.

        Args:
            categories: K.
            recon_weight: Of the reconstruction error in nats; with 0 its update is left out.
            adversarial_weight: Of the encoder's two adversarial losses; with 0 both games are left out.

        Raises:
            UserError: If the number of categories is unknown, a width does not fit, or a weight is negative.
        """
        super().__init__()
        check_widths(encoder_features, latent_dim, latent_dim, known_classes(categories) + style_dim)
        if min(recon_weight, adversarial_weight) < 0:
            raise UserError(
                "model.recon_weight and model.adversarial_weight must be at least 0, "
                f"got {recon_weight} and {adversarial_weight}."
            )
        self.encoder, self.decoder, self.likelihood, self.loss = encoder, decoder, likelihood, loss
        self.category_discriminator, self.style_discriminator = category_discriminator, style_discriminator
        self.latent_dim, self.categories, self.style_dim = latent_dim, known_classes(categories), style_dim
        self.one_hot_latents = (range(self.categories),)
        self.recon_weight, self.adversarial_weight = recon_weight, adversarial_weight
        self.add_player("encoder", encoder, "e_optimizer")
        self.add_player("decoder", [decoder, likelihood], "g_optimizer")
        self.add_player("category_discriminator", category_discriminator, "d_optimizer")
        self.add_player("style_discriminator", style_discriminator, "d_optimizer")

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the category [N, K] and style [N, style_dim] of samples [N, ...]."""
        logits, style = self.encoder(x).split([self.categories, self.style_dim], dim=1)
        return logits, style

    def code(self, x: Tensor) -> Tensor:
        """Probabilities of the category, then the style, [N, latent_dim]."""
        logits, style = self.read(x)
        return torch.cat([logits.softmax(dim=1), style], dim=1)

    def noise(self, n: int, rng: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Latents [n, latent_dim]: one-hot categories (y [n], or drawn evenly), then standard normal styles."""
        if y is None:
            y = whole_below(self.rand(n, rng=rng), self.categories)
        style = self.randn(n, self.style_dim, rng=rng)
        return torch.cat([one_hot(y, self.categories).to(style), style], dim=1)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws latents, of categories y [n] if given, and returns E[x | z], [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng, classes_of(given))), rng)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Probabilities of the category, then the style, [N, latent_dim], of samples [N, ...]."""
        return self.code(x)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at each sample's category probabilities and style."""
        return self.likelihood.mean(self.decoder(self.code(x)))

    @inference
    def cluster(self, x: Tensor) -> Tensor:
        """Logits of the categories [N, K] of samples [N, ...]; the class of a category is unknown."""
        return self.read(x)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 6: the updates of section 5 without the supervised one."""
        self.unsupervised_updates(batch.x)

    def unsupervised_updates(self, x: Tensor) -> None:
        """The reconstruction update, then the two updates of the regularisation, on samples [N, ...]."""
        if self.recon_weight:  # Encoder and decoder: minimise -log p(x | category, style).
            with self.turn("encoder", "decoder") as autoencoder:
                recon = -self.likelihood.log_prob(x, self.decoder(self.code(x))).mean()
                autoencoder.minimise(self.recon_weight * recon)
            self.record(recon=recon)
        if not self.adversarial_weight:
            return

        # Discriminators: evenly drawn one-hot categories and standard normal styles are real, the encoder's are fakes.
        with torch.no_grad():
            real, fake = (z.split([self.categories, self.style_dim], dim=1) for z in (self.noise(len(x)), self.code(x)))
        with self.turn("category_discriminator", "style_discriminator") as discriminators:
            category_real, category_fake = self.category_discriminator(real[0]), self.category_discriminator(fake[0])
            style_real, style_fake = self.style_discriminator(real[1]), self.style_discriminator(fake[1])
            d_category_loss = self.loss.discriminator(category_real, category_fake)
            d_style_loss = self.loss.discriminator(style_real, style_fake)
            discriminators.minimise(d_category_loss + d_style_loss)

        # Encoder: minimise loss.generator(D(category)) + loss.generator(D(style)).
        with self.turn("encoder") as encoder:
            category, style = self.code(x).split([self.categories, self.style_dim], dim=1)
            e_category_loss = self.loss.generator(self.category_discriminator(category))
            e_style_loss = self.loss.generator(self.style_discriminator(style))
            encoder.minimise(self.adversarial_weight * (e_category_loss + e_style_loss))

        self.record(d_category_loss=d_category_loss, d_style_loss=d_style_loss)
        self.record(e_category_loss=e_category_loss, e_style_loss=e_style_loss)
        self.record(confidence=category.amax(dim=1).mean())
