"""Adversarial autoencoder: a discriminator on the codes, in place of the KL term, matches them to the prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding
from genlab.models.labels import classes_of, labels_of
from genlab.networks.init import check_width
from genlab.networks.latent import LatentDiscriminator
from genlab.networks.posteriors import Deterministic, DiagonalGaussian, FlowedGaussian, Posterior
from genlab.networks.priors import Prior, StandardNormal


class AAE(Coding):
    """Adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 2.

    Each iteration has the paper's three updates: encoder and decoder minimise the reconstruction error -log p(x | z);
    the discriminator tells draws of the prior (real) from codes (fakes); the encoder deceives the discriminator. There
    is no bound on log p(x).

    The paper has one optimizer for each of the encoder's two updates. Here the encoder has one optimizer, and its
    second update has the weight `adversarial_weight`.

    With `label_informed` (section 2.3) the discriminator also gets the label, one-hot with an entry for a missing
    label. The real latents are drawn from the label's part of the prior; without a label, from the whole prior.
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
            prior: p(z), fixed; standard normal unless given.
            posterior: The family of q(z | x); one code per sample unless given.

        Raises:
            UserError: If the encoder's width does not fit the posterior, the prior is learned, or with `label_informed`
                the data have no labels or the prior has other classes.
        """
        super().__init__()
        self.prior, self.family = prior or StandardNormal(), posterior or Deterministic(latent_dim, encoder_features)
        check_width(encoder_features, self.family.features)
        _check_fixed(self.prior)
        if label_informed:
            _check_classes(self.prior, latent_discriminator)
        self.encoder, self.decoder, self.likelihood, self.loss = encoder, decoder, likelihood, loss
        self.latent_discriminator, self.latent_dim = latent_discriminator, latent_dim
        self.label_informed, self.adversarial_weight = label_informed, adversarial_weight
        self.given = ("y",) if label_informed else ()
        self.add_player("encoder", [encoder, self.family], "e_optimizer")
        self.add_player("decoder", [decoder, likelihood], "g_optimizer")
        self.add_player("latent_discriminator", latent_discriminator, "d_optimizer")

    def posterior(self, x: Tensor) -> DiagonalGaussian | FlowedGaussian:
        """q(z | x) of samples [N, ...]."""
        return self.family(self.encoder(x))

    def codes(self, x: Tensor) -> Tensor:
        """One draw of q(z | x) per sample, [N, latent_dim]."""
        return self.posterior(x).draw(self.randn(len(x), self.latent_dim))[0]

    def noise(self, n: int, rng: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Latents [n, latent_dim] from the prior; with labels y [n], from their parts of the prior."""
        eps = self.randn(n, self.latent_dim + self.prior.extra, rng=rng)
        return self.prior.draw(eps, self.posterior) if y is None else self.prior.draw_given(eps, y)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws z from the prior (from the parts of classes y [n] if given) and returns E[x | z], [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng, classes_of(given))), rng)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, latent_dim] of samples [N, ...]: the mean of q(z | x), or its draw at noise 0."""
        return self.posterior(x).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at each sample's code."""
        return self.likelihood.mean(self.decoder(self.posterior(x).mean))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 2: the reconstruction update, then the two updates of the regularisation."""
        x, y = batch.x, None
        if self.label_informed:
            y = labels_of(batch)

        # Encoder and decoder: minimise -log p(x | z).
        with self.turn("encoder", "decoder") as autoencoder:
            recon = -self.likelihood.log_prob(x, self.decoder(self.codes(x))).mean()
            autoencoder.minimise(recon)

        # Discriminator: minimise loss.discriminator(D(z), D(E(x))), z ~ p(z).
        with torch.no_grad():
            z_fake, z_real = self.codes(x), self.noise(len(x), y=y)
        with self.turn("latent_discriminator") as discriminator:
            logits_real = self.latent_discriminator(z_real, y)
            logits_fake = self.latent_discriminator(z_fake, y)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            discriminator.minimise(d_loss)

        # Encoder: minimise loss.generator(D(E(x))).
        with self.turn("encoder") as encoder:
            e_loss = self.loss.generator(self.latent_discriminator(self.codes(x), y))
            encoder.minimise(self.adversarial_weight * e_loss)

        self.record(recon=recon, d_loss=d_loss, e_loss=e_loss)
        self.record_logits(logits_real, logits_fake)


def _check_fixed(prior: Prior) -> None:
    """Refuses a learned prior."""
    if any(True for _ in prior.parameters()):
        raise UserError(
            "model=aae matches codes to a fixed prior, and this one is learned. "
            "Try prior=standard_normal, gaussian_mixture or swiss_roll."
        )


def _check_classes(prior: Prior, discriminator: LatentDiscriminator) -> None:
    """Refuses data without classes, and a prior without a part for each class."""
    if not discriminator.classes:
        raise UserError("model.label_informed=true needs data with labels: data.num_classes is not set.")
    if prior.classes != discriminator.classes:
        raise UserError(
            f"model.label_informed=true needs a prior with a part for each of {discriminator.classes} classes, and "
            f"this one has {prior.classes}. Try prior=gaussian_mixture prior.components={discriminator.classes}."
        )
