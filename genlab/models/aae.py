"""Adversarial autoencoder: a discriminator on the codes, in place of the KL term, matches them to the prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding
from genlab.models.labels import labels_of
from genlab.networks.latent import LatentDiscriminator
from genlab.networks.posteriors import Deterministic, DiagonalGaussian, FlowedGaussian, Posterior
from genlab.networks.priors import Prior, StandardNormal


class AAE(Coding):
    """Adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 2.

    Each iteration has the paper's three updates: encoder and decoder on the reconstruction error, -log p(x | z) of the
    likelihood; the discriminator of latents, for which draws of the prior are real and codes are fakes; the encoder,
    which makes codes pass for draws of the prior. Nothing here is a bound on log p(x).

    The paper gives the encoder an optimizer for each of its two updates; here it has one, and `adversarial_weight` says
    how much the second counts beside the first.

    With `label_informed` (section 2.3) the discriminator is told the label, one-hot, or that there is none. The real
    latents beside it are then drawn from the part of the prior that stands for this label, or from all of it.
    """

    ema_modules = ("encoder", "decoder", "likelihood", "family")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_discriminator: LatentDiscriminator,
        loss: AdversarialLoss,
        latent_dim: int,
        encoder_features: int,
        prior: Prior | None = None,
        posterior: Posterior | None = None,
        label_informed: bool = False,
        adversarial_weight: float = 1.0,
    ) -> None:
        """Joins the players.

        Args:
            encoder: Maps samples [N, ...] to [N, encoder_features], of which the code is made.
            decoder: Maps codes [N, latent_dim] to raw outputs, as the likelihood wants them.
            latent_discriminator: Maps latents [N, latent_dim] to logits [N]; where `label_informed`, with labels.
            prior: p(z), which is not learned; standard normal unless given.
            posterior: How a code is made of the encoder's output; one code for each sample unless given.
            label_informed: Whether the discriminator is told labels.
            adversarial_weight: Of the encoder's second update.

        Raises:
            ValueError: If encoder_features is not what the posterior reads.
            UserError: If the prior is learned, or is to be told labels that it, the data or the discriminator lack.
        """
        super().__init__()
        self.prior, self.family = prior or StandardNormal(), posterior or Deterministic(latent_dim, encoder_features)
        if self.family.features != encoder_features:
            raise ValueError(f"The encoder must give {self.family.features} numbers, not {encoder_features}.")
        if any(True for _ in self.prior.parameters()):
            raise UserError(
                "An adversarial autoencoder matches codes to a fixed prior, and this one is learned. "
                "Try prior=standard_normal, gaussian_mixture or swiss_roll."
            )
        if label_informed and not latent_discriminator.classes:
            raise UserError("model.label_informed=true needs data with labels: data.num_classes is not known.")
        if label_informed and self.prior.classes != latent_discriminator.classes:
            raise UserError(
                f"model.label_informed=true needs a prior with a part for each of {latent_discriminator.classes} "
                f"classes, and this one has {self.prior.classes}. Try prior=gaussian_mixture "
                f"prior.components={latent_discriminator.classes}."
            )
        self.encoder, self.decoder, self.likelihood, self.loss = encoder, decoder, likelihood, loss
        self.latent_discriminator, self.latent_dim = latent_discriminator, latent_dim
        self.label_informed = self.conditional = label_informed
        self.adversarial_weight = adversarial_weight
        self.add_player("encoder", [encoder, self.family], "e_optimizer")
        self.add_player("decoder", [decoder, likelihood], "g_optimizer")
        self.add_player("latent_discriminator", latent_discriminator, "d_optimizer")

    def posterior(self, x: Tensor) -> DiagonalGaussian | FlowedGaussian:
        """q(z | x) of samples [N, ...]."""
        return self.family(self.encoder(x))

    def codes(self, x: Tensor) -> Tensor:
        """A draw of q(z | x) for each sample, [N, latent_dim]."""
        return self.posterior(x).draw(self.randn(len(x), self.latent_dim))[0]

    def noise(self, n: int, rng: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Latents from the prior, [n, latent_dim]; given labels [n], from their parts of it."""
        eps = self.randn(n, self.latent_dim + self.prior.extra, rng=rng)
        return self.prior.draw(eps, self.posterior) if y is None else self.prior.draw_given(eps, y)

    @inference
    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws z from the prior (of classes y [n], where they are given) and gives E[x | z], [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng, y)), rng)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The code [N, latent_dim] of samples [N, ...]: the mean of q(z | x), or what stands for it."""
        return self.posterior(x).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at each sample's code."""
        return self.likelihood.mean(self.decoder(self.posterior(x).mean))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 2: the reconstruction update, then the two of the regularisation."""
        x, y = batch.x, None
        if self.label_informed:
            y = labels_of(batch)

        # Encoder and decoder: minimise -log p(x | z).
        with self.turn("encoder", "decoder") as autoencoder:
            recon = -self.likelihood.log_prob(x, self.decoder(self.codes(x))).mean()
            autoencoder.minimise(recon)

        # Discriminator: draws of the prior are real, codes are fakes.
        with torch.no_grad():
            z_fake, z_real = self.codes(x), self.noise(len(x), y=y)
        with self.turn("latent_discriminator") as discriminator:
            logits_real = self.latent_discriminator(z_real, y)
            logits_fake = self.latent_discriminator(z_fake, y)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            discriminator.minimise(d_loss)

        # Encoder: its codes are to pass for draws of the prior.
        with self.turn("encoder") as encoder:
            e_loss = self.loss.generator(self.latent_discriminator(self.codes(x), y))
            encoder.minimise(self.adversarial_weight * e_loss)

        self.record(recon=recon, d_loss=d_loss, e_loss=e_loss)
        self.record_logits(logits_real, logits_fake)
