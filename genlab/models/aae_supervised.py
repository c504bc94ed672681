"""The supervised adversarial autoencoder: the decoder is given the class, so that codes represent the style."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding
from genlab.models.labels import check_widths, classes_of, known_classes, labels_of, one_hot
from genlab.networks.latent import LatentDiscriminator
from genlab.randomness import whole_below


class SupervisedAAE(Coding):
    """Supervised adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 4.

    The encoder maps samples [N, ...] to styles [N, style_dim]; the discriminator matches them to N(0, I), independent
    of the label; the decoder gets style and label. The style then represents the information that the label lacks. A
    latent is the style, then the class, one-hot (zeros for a missing label). The updates are those of `AAE`.
    """

    ema_modules = ("encoder", "decoder", "likelihood")
    given = ("y",)

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_discriminator: LatentDiscriminator,
        loss: AdversarialLoss,
        latent_dim: int,
        style_dim: int,
        classes: int | None,
        encoder_features: int,
        adversarial_weight: float = 1.0,
    ) -> None:
        """Joins the players.

        Args:
            adversarial_weight: Of the encoder's second update; the reconstruction error in nats has weight 1.

        Raises:
            UserError: If the data have no classes, or a width does not fit.
        """
        super().__init__()
        check_widths(encoder_features, style_dim, latent_dim, style_dim + known_classes(classes))
        self.encoder, self.decoder, self.likelihood, self.loss = encoder, decoder, likelihood, loss
        self.latent_discriminator, self.adversarial_weight = latent_discriminator, adversarial_weight
        self.latent_dim, self.style_dim, self.classes = latent_dim, style_dim, known_classes(classes)
        self.one_hot_latents = (range(style_dim, latent_dim),)
        self.add_player("encoder", encoder, "e_optimizer")
        self.add_player("decoder", [decoder, likelihood], "g_optimizer")
        self.add_player("latent_discriminator", latent_discriminator, "d_optimizer")

    def joined(self, style: Tensor, y: Tensor) -> Tensor:
        """Latents [N, latent_dim] of styles [N, style_dim] and labels [N]."""
        return torch.cat([style, one_hot(y, self.classes).to(style)], dim=1)

    def noise(self, n: int, rng: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Latents [n, latent_dim]: standard normal styles, then one-hot classes (y [n], or drawn evenly)."""
        style = self.randn(n, self.style_dim, rng=rng)
        return self.joined(style, whole_below(self.rand(n, rng=rng), self.classes) if y is None else y)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws latents, of classes y [n] if given, and returns E[x | style, y], [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng, classes_of(given))), rng)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | style, y] at each sample's style and the class y with the highest p(x | style, y)."""
        style = self.encoder(x)
        every = torch.arange(self.classes, device=x.device).unsqueeze(1).expand(-1, len(x))
        raws = [self.decoder(self.joined(style, y)) for y in every]
        best = torch.stack([self.likelihood.log_prob(x, raw) for raw in raws]).argmax(dim=0)
        return self.likelihood.mean(torch.stack(raws)[best, torch.arange(len(x), device=x.device)])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 4: the updates of section 2, with labels for the decoder."""
        x, y = batch.x, labels_of(batch)

        # Encoder and decoder: minimise -log p(x | style, y).
        with self.turn("encoder", "decoder") as autoencoder:
            recon = -self.likelihood.log_prob(x, self.decoder(self.joined(self.encoder(x), y))).mean()
            autoencoder.minimise(recon)

        # Discriminator: minimise loss.discriminator(D(style), D(E(x))), style ~ N(0, I).
        with torch.no_grad():
            style_fake, style_real = self.encoder(x), self.randn(len(x), self.style_dim)
        with self.turn("latent_discriminator") as discriminator:
            logits_real, logits_fake = self.latent_discriminator(style_real), self.latent_discriminator(style_fake)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            discriminator.minimise(d_loss)

        # Encoder: minimise loss.generator(D(E(x))).
        with self.turn("encoder") as encoder:
            e_loss = self.loss.generator(self.latent_discriminator(self.encoder(x)))
            encoder.minimise(self.adversarial_weight * e_loss)

        self.record(recon=recon, d_loss=d_loss, e_loss=e_loss)
        self.record_logits(logits_real, logits_fake)
