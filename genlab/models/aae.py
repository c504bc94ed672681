"""Adversarial autoencoders: what is left of the encoder's freedom is taken by discriminators of its codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import OptimizerFactory, SchedulerFactory, inference
from genlab.models.capabilities import Coding
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
        e_optimizer: OptimizerFactory,
        g_optimizer: OptimizerFactory,
        d_optimizer: OptimizerFactory,
        prior: Prior | None = None,
        posterior: Posterior | None = None,
        label_informed: bool = False,
        adversarial_weight: float = 1.0,
        e_scheduler: SchedulerFactory | None = None,
        g_scheduler: SchedulerFactory | None = None,
        d_scheduler: SchedulerFactory | None = None,
    ) -> None:
        """Joins the players.

        Args:
            encoder: Maps samples [N, ...] to [N, encoder_features], of which the code is made.
            decoder: Maps codes [N, latent_dim] to raw outputs, as the likelihood wants them.
            likelihood: What the raw outputs mean.
            latent_discriminator: Maps latents [N, latent_dim] to logits [N]; where `label_informed`, with labels.
            loss: What discriminator and encoder play for.
            latent_dim: Size of the code.
            encoder_features: Width of the encoder's output.
            e_optimizer: Makes the encoder's optimizer, for both its updates.
            g_optimizer: Makes the optimizer of decoder and likelihood.
            d_optimizer: Makes the discriminator's.
            prior: p(z), which is not learned; standard normal unless given.
            posterior: How a code is made of the encoder's output; one code for each sample unless given.
            label_informed: Whether the discriminator is told labels.
            adversarial_weight: Of the encoder's second update.
            e_scheduler: Makes the encoder's learning-rate schedule, stepped once per iteration.
            g_scheduler: Makes the decoder's.
            d_scheduler: Makes the discriminator's.

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
        self.add_player("encoder", [encoder, self.family], e_optimizer, e_scheduler)
        self.add_player("decoder", [decoder, likelihood], g_optimizer, g_scheduler)
        self.add_player("latent_discriminator", latent_discriminator, d_optimizer, d_scheduler)

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


class SupervisedAAE(Coding):
    """Supervised adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 4.

    The decoder is given the label beside the code, and the code is held to the prior whatever the label: what is left
    for it is style. A latent is the style, then the class, one-hot (all zeros where a label is missing). The updates
    are those of `AAE`.
    """

    ema_modules = ("encoder", "decoder", "likelihood")
    conditional = True

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
        e_optimizer: OptimizerFactory,
        g_optimizer: OptimizerFactory,
        d_optimizer: OptimizerFactory,
        adversarial_weight: float = 1.0,
        e_scheduler: SchedulerFactory | None = None,
        g_scheduler: SchedulerFactory | None = None,
        d_scheduler: SchedulerFactory | None = None,
    ) -> None:
        """Joins the players.

        Args:
            encoder: Maps samples [N, ...] to styles [N, style_dim].
            decoder: Maps latents [N, latent_dim], style and class, to raw outputs, as the likelihood wants them.
            likelihood: What the raw outputs mean.
            latent_discriminator: Maps styles to logits [N].
            loss: What discriminator and encoder play for.
            latent_dim: style_dim + classes.
            style_dim: Size of the style, standard normal under the prior.
            classes: Of the data.
            encoder_features: Width of the encoder's output, style_dim.
            e_optimizer: Makes the encoder's optimizer, for both its updates.
            g_optimizer: Makes the optimizer of decoder and likelihood.
            d_optimizer: Makes the discriminator's.
            adversarial_weight: Of the encoder's second update.
            e_scheduler: Makes the encoder's learning-rate schedule, stepped once per iteration.
            g_scheduler: Makes the decoder's.
            d_scheduler: Makes the discriminator's.

        Raises:
            UserError: If the data have no classes.
            ValueError: If encoder and latent have other widths.
        """
        super().__init__()
        _check_widths(encoder_features, style_dim, latent_dim, style_dim + _known(classes))
        self.encoder, self.decoder, self.likelihood, self.loss = encoder, decoder, likelihood, loss
        self.latent_discriminator, self.adversarial_weight = latent_discriminator, adversarial_weight
        self.latent_dim, self.style_dim, self.classes = latent_dim, style_dim, _known(classes)
        self.one_hot_latents = (range(style_dim, latent_dim),)
        self.add_player("encoder", encoder, e_optimizer, e_scheduler)
        self.add_player("decoder", [decoder, likelihood], g_optimizer, g_scheduler)
        self.add_player("latent_discriminator", latent_discriminator, d_optimizer, d_scheduler)

    def joined(self, style: Tensor, y: Tensor) -> Tensor:
        """Latents [N, latent_dim] of styles [N, style_dim] and labels [N]."""
        return torch.cat([style, one_hot(y, self.classes).to(style)], dim=1)

    def noise(self, n: int, rng: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Latents [n, latent_dim]: standard normal styles, and classes y [n], drawn evenly where they are not given."""
        style = self.randn(n, self.style_dim, rng=rng)
        return self.joined(style, self.drawn_classes(n, rng) if y is None else y)

    def drawn_classes(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Classes [n], all equally likely."""
        return (self.rand(n, rng=rng) * self.classes).long().clamp_max(self.classes - 1)

    @inference
    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws styles and gives E[x | style, y], [n, ...]; the classes y [n] are drawn where they are not given."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng, y)), rng)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | style, class] of each sample's style and of the class under which the sample is likeliest."""
        style = self.encoder(x)
        every = torch.arange(self.classes, device=x.device).unsqueeze(1).expand(-1, len(x))
        raws = [self.decoder(self.joined(style, y)) for y in every]
        best = torch.stack([self.likelihood.log_prob(x, raw) for raw in raws]).argmax(dim=0)
        return self.likelihood.mean(torch.stack(raws)[best, torch.arange(len(x), device=x.device)])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 4: the updates of section 2, with a decoder that knows the labels."""
        x, y = batch.x, labels_of(batch)

        # Encoder and decoder: minimise -log p(x | style, y).
        with self.turn("encoder", "decoder") as autoencoder:
            recon = -self.likelihood.log_prob(x, self.decoder(self.joined(self.encoder(x), y))).mean()
            autoencoder.minimise(recon)

        # Discriminator: standard normal styles are real, the encoder's are fakes.
        with torch.no_grad():
            style_fake, style_real = self.encoder(x), self.randn(len(x), self.style_dim)
        with self.turn("latent_discriminator") as discriminator:
            logits_real, logits_fake = self.latent_discriminator(style_real), self.latent_discriminator(style_fake)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            discriminator.minimise(d_loss)

        # Encoder: its styles are to pass for standard normal ones.
        with self.turn("encoder") as encoder:
            e_loss = self.loss.generator(self.latent_discriminator(self.encoder(x)))
            encoder.minimise(self.adversarial_weight * e_loss)

        self.record(recon=recon, d_loss=d_loss, e_loss=e_loss)
        self.record_logits(logits_real, logits_fake)


class ClusteringAAE(Coding):
    """Unsupervised clustering with an adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 6.

    The encoder gives a category, as probabilities, and a style. One discriminator tells categories from evenly drawn
    one-hot vectors, another styles from standard normal ones; the encoder deceives both. A latent is the category, then
    the style.
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
        e_optimizer: OptimizerFactory,
        g_optimizer: OptimizerFactory,
        d_optimizer: OptimizerFactory,
        recon_weight: float = 1.0,
        adversarial_weight: float = 1.0,
        e_scheduler: SchedulerFactory | None = None,
        g_scheduler: SchedulerFactory | None = None,
        d_scheduler: SchedulerFactory | None = None,
    ) -> None:
        """Joins the players.

        Args:
            encoder: Maps samples [N, ...] to [N, latent_dim]: logits of the category, then the style.
            decoder: Maps latents [N, latent_dim] to raw outputs, as the likelihood wants them.
            likelihood: What the raw outputs mean.
            category_discriminator: Maps categories [N, categories] to logits [N].
            style_discriminator: Maps styles [N, style_dim] to logits [N].
            loss: What discriminators and encoder play for.
            latent_dim: categories + style_dim.
            categories: K.
            style_dim: Size of the style.
            encoder_features: Width of the encoder's output, latent_dim.
            e_optimizer: Makes the encoder's optimizer, for all its updates.
            g_optimizer: Makes the optimizer of decoder and likelihood.
            d_optimizer: Makes each discriminator's.
            recon_weight: Of the reconstruction error; with 0 its update is left out.
            adversarial_weight: Of the encoder's part in the two games; with 0 they are left out.
            e_scheduler: Makes the encoder's learning-rate schedule, stepped once per iteration.
            g_scheduler: Makes the decoder's.
            d_scheduler: Makes each discriminator's.

        Raises:
            UserError: If the number of categories is not known, or a weight is negative.
            ValueError: If encoder and latent have other widths.
        """
        super().__init__()
        _check_widths(encoder_features, latent_dim, latent_dim, _known(categories) + style_dim)
        if min(recon_weight, adversarial_weight) < 0:
            raise UserError(
                "model.recon_weight and model.adversarial_weight must be at least 0, "
                f"got {recon_weight} and {adversarial_weight}."
            )
        self.encoder, self.decoder, self.likelihood, self.loss = encoder, decoder, likelihood, loss
        self.category_discriminator, self.style_discriminator = category_discriminator, style_discriminator
        self.latent_dim, self.categories, self.style_dim = latent_dim, _known(categories), style_dim
        self.one_hot_latents = (range(self.categories),)
        self.recon_weight, self.adversarial_weight = recon_weight, adversarial_weight
        self.add_player("encoder", encoder, e_optimizer, e_scheduler)
        self.add_player("decoder", [decoder, likelihood], g_optimizer, g_scheduler)
        self.add_player("category_discriminator", category_discriminator, d_optimizer, d_scheduler)
        self.add_player("style_discriminator", style_discriminator, d_optimizer, d_scheduler)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the category [N, K] and style [N, style_dim] of samples [N, ...]."""
        logits, style = self.encoder(x).split([self.categories, self.style_dim], dim=1)
        return logits, style

    def code(self, x: Tensor) -> Tensor:
        """Probabilities of the category, then the style, [N, latent_dim]."""
        logits, style = self.read(x)
        return torch.cat([logits.softmax(dim=1), style], dim=1)

    def noise(self, n: int, rng: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Latents [n, latent_dim]: one-hot categories, y [n] or evenly drawn ones, and standard normal styles."""
        if y is None:
            y = (self.rand(n, rng=rng) * self.categories).long().clamp_max(self.categories - 1)
        style = self.randn(n, self.style_dim, rng=rng)
        return torch.cat([one_hot(y, self.categories).to(style), style], dim=1)

    @inference
    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws latents and gives E[x | z], [n, ...]; the categories y [n] are drawn where they are not given."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng, y)), rng)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Probabilities of the category, then the style, [N, latent_dim], of samples [N, ...]."""
        return self.code(x)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | category, style] of each sample's own."""
        return self.likelihood.mean(self.decoder(self.code(x)))

    @inference
    def cluster(self, x: Tensor) -> Tensor:
        """Logits of the categories [N, K] of samples [N, ...]; which class each stands for is not known."""
        return self.read(x)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 6: the updates of section 5 without the last."""
        self.unsupervised_updates(batch.x)

    def unsupervised_updates(self, x: Tensor) -> None:
        """The reconstruction update, then the two of the regularisation, on samples [N, ...] without labels."""
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

        # Encoder: both are to pass for real ones.
        with self.turn("encoder") as encoder:
            category, style = self.code(x).split([self.categories, self.style_dim], dim=1)
            e_category_loss = self.loss.generator(self.category_discriminator(category))
            e_style_loss = self.loss.generator(self.style_discriminator(style))
            encoder.minimise(self.adversarial_weight * (e_category_loss + e_style_loss))

        self.record(d_category_loss=d_category_loss, d_style_loss=d_style_loss)
        self.record(e_category_loss=e_category_loss, e_style_loss=e_style_loss)
        self.record(confidence=category.amax(dim=1).mean())


class SemiSupervisedAAE(ClusteringAAE):
    """Semi-supervised adversarial autoencoder. Makhzani et al. (2016), arXiv:1511.05644, section 5.

    The categories are the classes: after the updates of `ClusteringAAE`, on all samples, comes one of the encoder on
    the cross-entropy of those that have a label. With the other two weights at 0 that one alone is left: the same
    classifier, trained on the labelled samples only.
    """

    conditional = True

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
        e_optimizer: OptimizerFactory,
        g_optimizer: OptimizerFactory,
        d_optimizer: OptimizerFactory,
        recon_weight: float = 1.0,
        adversarial_weight: float = 1.0,
        label_weight: float = 1.0,
        e_scheduler: SchedulerFactory | None = None,
        g_scheduler: SchedulerFactory | None = None,
        d_scheduler: SchedulerFactory | None = None,
    ) -> None:
        """Joins the players.

        Args:
            encoder: See `ClusteringAAE`, also for all that follows but label_weight.
            decoder: Of categories and styles.
            likelihood: What its raw outputs mean.
            category_discriminator: Of categories.
            style_discriminator: Of styles.
            loss: What discriminators and encoder play for.
            latent_dim: categories + style_dim.
            categories: K, the classes of the data.
            style_dim: Size of the style.
            encoder_features: Width of the encoder's output, latent_dim.
            e_optimizer: Makes the encoder's optimizer, for all its updates.
            g_optimizer: Makes the optimizer of decoder and likelihood.
            d_optimizer: Makes each discriminator's.
            recon_weight: Of the reconstruction error.
            adversarial_weight: Of the encoder's part in the two games.
            label_weight: Of the cross-entropy, in nats.
            e_scheduler: Makes the encoder's learning-rate schedule, stepped once per iteration.
            g_scheduler: Makes the decoder's.
            d_scheduler: Makes each discriminator's.

        Raises:
            UserError: If the data have no classes, or a weight is negative.
        """
        super().__init__(
            encoder,
            decoder,
            likelihood,
            category_discriminator,
            style_discriminator,
            loss,
            latent_dim,
            categories,
            style_dim,
            encoder_features,
            e_optimizer,
            g_optimizer,
            d_optimizer,
            recon_weight,
            adversarial_weight,
            e_scheduler,
            g_scheduler,
            d_scheduler,
        )
        if label_weight < 0:
            raise UserError(f"model.label_weight must be at least 0, got {label_weight}.")
        self.label_weight = label_weight

    @inference
    def classify(self, x: Tensor) -> Tensor:
        """Logits of the classes [N, K] of samples [N, ...]."""
        return self.read(x)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 5: the updates without labels, then the one of the encoder on the labelled samples."""
        x, y = batch.x, labels_of(batch)
        self.unsupervised_updates(x)

        # Encoder: minimise the cross-entropy, a mean over the labelled samples of all processes.
        with self.turn("encoder") as encoder:
            known = y >= 0
            each = F.cross_entropy(self.read(x)[0], y.clamp_min(0), reduction="none")
            share = self.averaged(known.sum().to(each)).clamp_min(1e-6)  # of this process; 0 where nobody has any
            cross_entropy = torch.where(known, each, 0).sum() / share
            encoder.minimise(self.label_weight * cross_entropy)
        self.record(cross_entropy=cross_entropy)


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Labels [N] as vectors [N, classes]; zeros where a label is -1."""
    return F.one_hot(torch.where(y < 0, classes, y), classes + 1)[:, :classes]


def labels_of(batch: Batch) -> Tensor:
    """The labels [N] of a batch, -1 where one is missing.

    Raises:
        UserError: If it has none.
    """
    if batch.y is None:
        raise UserError("This model learns from labels, and the data come without. Try data.labels=true.")
    return batch.y


def _known(classes: int | None) -> int:
    if not classes:
        raise UserError("This model needs data with classes, and data.num_classes is not set. Try data=digits.")
    return classes


def _check_widths(encoder_features: int, wanted: int, latent_dim: int, parts: int) -> None:
    if (encoder_features, latent_dim) != (wanted, parts):
        raise ValueError(
            f"The encoder must give {wanted} numbers and a latent has {parts}, not {encoder_features} and {latent_dim}."
        )
