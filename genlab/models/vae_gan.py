"""VAE/GAN: a VAE whose likelihood is on the features of a discriminator, the decoder's adversary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.divergences import kl_standard_normal
from genlab.models.base import inference
from genlab.models.capabilities import Inferring
from genlab.networks.init import check_width
from genlab.networks.layers import Layered
from genlab.networks.posteriors import DiagonalGaussian

FAKES = ("reconstructions", "samples")


class VAEGAN(Inferring):
    """VAE/GAN. Larsen, Sonderby, Larochelle & Winther (2016), arXiv:1512.09300, Algorithm 1.

    The error of a reconstruction x~ = Dec(z), z ~ q(z | x), is measured on the features of the discriminator's layer l:
    L_llike = -log N(Dis_l(x); Dis_l(x~), s^2 I), up to its constant; s = 1 in the paper. The encoder minimises
    L_prior + L_llike, with L_prior = KL(q(z | x) || N(0, I)); the decoder minimises gamma L_llike - L_GAN; the
    discriminator maximises L_GAN = log Dis(x) + log(1 - Dis(x~)) + log(1 - Dis(Dec(z_p))), z_p ~ N(0, I). L_llike does
    not train the discriminator, L_GAN does not train the encoder. The three updates are simultaneous, on gradients at
    the same parameters. The decoder's -L_GAN is `loss.generator`, non-saturating by default.
    """

    ema_modules = ("generator", "encoder")

    def __init__(
        self,
        encoder: nn.Module,
        generator: nn.Module,
        discriminator: Layered,
        loss: AdversarialLoss,
        latent_dim: int,
        encoder_features: int,
        feature_layer: int,
        feature_sigma: float,
        standardise: bool,
        gamma: float,
        adversarial_weight: float,
        fakes: Sequence[str],
    ) -> None:
        """Joins the three players.

        Args:
            generator: The paper's decoder Dec.
            feature_layer: l, 1 for the discriminator's first layer, -1 for the last before its head.
            feature_sigma: s, the standard deviation of a feature's likelihood.
            standardise: Whether s is in units of the features' standard deviation over the batch (one for all
                features), independent of the discriminator's scale. The paper's s is absolute: with small weights in
                the discriminator (spectral norm) the KL then outweighs L_llike, and codes carry no information.
            adversarial_weight: Of L_GAN in the decoder's loss, 1 in the paper. With 0 the discriminator only measures
                similarity: the paper's VAE_Dis_l (whose discriminator was trained in a GAN of its own).
            fakes: The discriminator's fakes: "reconstructions", "samples" or both.

        Raises:
            UserError: If an argument is out of its range, the encoder's width does not fit, or the layer does not
                exist.
        """
        super().__init__()
        check_width(encoder_features, 2 * latent_dim)
        _check(fakes, feature_sigma, gamma, adversarial_weight)
        discriminator.check_layer(feature_layer)
        self.encoder, self.generator, self.discriminator, self.loss = encoder, generator, discriminator, loss
        self.latent_dim, self.feature_layer, self.gamma = latent_dim, feature_layer, gamma
        self.feature_sigma, self.standardise = feature_sigma, standardise
        self.adversarial_weight, self.fakes_shown = adversarial_weight, tuple(fakes)
        self.add_player("encoder", encoder, "e_optimizer")
        self.add_player("generator", generator, "g_optimizer")
        self.add_player("discriminator", discriminator, "d_optimizer")

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x) of samples [N, ...]."""
        return DiagonalGaussian(*self.encoder(x).chunk(2, dim=1))

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean [N, latent_dim] of samples [N, ...]."""
        return self.posterior(x).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """Dec(z) at the posterior mean of each sample."""
        return self.generator(self.posterior(x).mean)

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]: log p_data / p_fakes at its optimum."""
        return self.discriminator(x)

    def scale(self, seen: Tensor) -> Tensor | float:
        """s for features [N, ...], a scalar."""
        if not self.standardise:
            return self.feature_sigma
        seen = self.gathered(seen)
        return self.feature_sigma * seen.var(dim=0, correction=0).mean().sqrt().clamp_min(1e-6)

    def dissimilarity(self, seen: Tensor, seen_recon: Tensor) -> Tensor:
        """L_llike of features of samples and of their reconstructions, [N, ...] each; a scalar in nats."""
        return 0.5 * ((seen - seen_recon) / self.scale(seen)).square().flatten(1).sum(dim=1).mean()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: gradients of the three players' losses, then the three updates."""
        x, layer, discriminator = batch.x, self.feature_layer, self.discriminator
        eps, z_prior = self.randn(len(x), self.latent_dim), self.noise(len(x))

        # Encoder: minimise L_prior + L_llike.
        with self.turn("encoder") as encoder:
            q = self.posterior(x)
            z = q.rsample(eps)
            x_recon = self.generator(z)
            seen = discriminator.until(x, layer).detach()
            prior = kl_standard_normal(q.mu, q.logvar).mean()
            recon = self.dissimilarity(seen, discriminator.until(x_recon, layer))
            encoder.collect(prior + recon)

        # Decoder: minimise gamma L_llike - L_GAN, without gradient to the encoder.
        with self.turn("generator") as generator:
            fakes = {"reconstructions": self.generator(z.detach())}
            seen_recon = discriminator.until(fakes["reconstructions"], layer)
            logits = {"reconstructions": discriminator.beyond(seen_recon, layer)}
            if "samples" in self.fakes_shown:
                fakes["samples"] = self.generator(z_prior)
                logits["samples"] = discriminator(fakes["samples"])
            g_loss = torch.stack([self.loss.generator(logits[name]) for name in self.fakes_shown]).sum()
            generator.collect(self.gamma * self.dissimilarity(seen, seen_recon) + self.adversarial_weight * g_loss)

        # Discriminator: minimise -L_GAN.
        with self.turn("discriminator") as player:
            logits_real = discriminator(x)
            logits_fake = [discriminator(fakes[name].detach()) for name in self.fakes_shown]
            d_loss = self.loss.real(logits_real) + torch.stack([self.loss.fake(one) for one in logits_fake]).sum()
            player.collect(d_loss)

        self.step("encoder", "generator", "discriminator")
        self.record(kl=prior, recon=recon, d_loss=d_loss, g_loss=g_loss)
        self.record_logits(logits_real, torch.cat(logits_fake))


def _check(fakes: Sequence[str], feature_sigma: float, gamma: float, adversarial_weight: float) -> None:
    """Checks the range of each argument."""
    if not fakes or not set(fakes) <= set(FAKES):
        raise UserError(f"model.fakes must be one or both of {', '.join(FAKES)}, got {list(fakes)}.")
    if not feature_sigma > 0:
        raise UserError(f"model.feature_sigma must be positive, got {feature_sigma}.")
    if min(gamma, adversarial_weight) < 0:
        raise UserError(
            f"model.gamma and model.adversarial_weight must be at least 0, got {gamma}, {adversarial_weight}."
        )
