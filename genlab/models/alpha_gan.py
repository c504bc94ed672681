"""alpha-GAN and its variants: a discriminator of samples and one of codes, in place of likelihood and KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.divergences import kl_standard_normal
from genlab.models.base import inference
from genlab.models.capabilities import Inferring
from genlab.networks.init import check_width
from genlab.networks.posteriors import Posterior

FAKES = ("reconstructions", "samples")
LATENTS = ("adversarial", "kl")


class AlphaGAN(Inferring):
    """alpha-GAN. Rosca, Lakshminarayanan, Warde-Farley & Mohamed (2017), arXiv:1706.04987, Algorithm 1.

    Four players, with codes z^ = E(x), reconstructions x^ = G(z^), samples x~ = G(z), z ~ N(0, I):

        E: lambda |x - x^|_1 + R_C(z^)               C: -log C(z) - log(1 - C(z^))
        G: lambda |x - x^|_1 + R_D(x^) + R_D(x~)     D: -log D(x) - log(1 - D(x^)) - log(1 - D(x~))

    R is the loss's generator side, minus the logit in the paper. (The first version of Algorithm 1 has prior and codes
    exchanged in C's loss.) `fakes` selects D's fakes: of the hybrids in Rosca et al. (2018), arXiv:1802.06847, VGH has
    x^ alone, VGH++ both. With `latent` "adversarial" C matches the codes of all samples to the prior; with "kl" there
    is no C, and the encoder minimises each posterior's KL to the prior, in closed form as in the VAE.
    """

    idle_optimizers = ("c_optimizer", "c_scheduler")  # with latent=kl there is no discriminator of latents
    ema_modules = ("generator", "encoder", "family")

    def __init__(
        self,
        encoder: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        latent_discriminator: nn.Module,
        posterior: Posterior,
        loss: AdversarialLoss,
        latent_dim: int,
        encoder_features: int,
        reconstruction_weight: float,
        fakes: Sequence[str],
        latent: Literal["adversarial", "kl"],
    ) -> None:
        """Joins the players.

        Args:
            latent_discriminator: C, of latents [N, latent_dim] to logits [N].
            reconstruction_weight: lambda, at least 0, of |x - x^|_1, here a mean over dimensions.
            fakes: "reconstructions" (x^), "samples" (x~) or both.

        Raises:
            UserError: If an argument is out of its range, the encoder's width does not fit the posterior, or
                latent="kl" has a posterior without a closed form.
        """
        super().__init__()
        check_width(encoder_features, posterior.features)
        _check(fakes, latent, posterior, reconstruction_weight)
        self.encoder, self.generator, self.discriminator = encoder, generator, discriminator
        self.family, self.loss, self.latent_dim = posterior, loss, latent_dim
        self.reconstruction_weight, self.fakes_shown, self.latent = reconstruction_weight, tuple(fakes), latent
        self.add_player("encoder", [encoder, posterior], "e_optimizer")
        self.add_player("generator", generator, "g_optimizer")
        self.add_player("discriminator", discriminator, "d_optimizer")
        if latent == "adversarial":
            self.latent_discriminator = latent_discriminator
            self.add_player("latent_discriminator", latent_discriminator, "c_optimizer")

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, latent_dim] of samples [N, ...]; the means of a stochastic encoder."""
        return self.family(self.encoder(x)).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """G of each sample's code."""
        return self.generator(self.family(self.encoder(x)).mean)

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """D's logits [N] of samples [N, ...]: log p_data / p_fakes at its optimum."""
        return self.discriminator(x)

    def distance(self, x: Tensor, x_recon: Tensor) -> Tensor:
        """|x - x^|_1, the mean over batch and dimensions, a scalar."""
        return (x - x_recon).abs().mean()

    def fakes_of(self, x_recon: Tensor, z: Tensor) -> list[Tensor]:
        """D's fakes, [N, ...] of each kind, from reconstructions and latents of the prior."""
        made = {"reconstructions": lambda: x_recon, "samples": lambda: self.generator(z)}
        return [made[name]() for name in self.fakes_shown]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: E, G, D and C are updated in turn, each at the newest parameters of the others."""
        x = batch.x
        eps, z = self.randn(len(x), self.latent_dim), self.noise(len(x))

        # Encoder: minimise lambda |x - x^|_1 + R_C(z^).
        with self.turn("encoder") as encoder:
            q = self.family(self.encoder(x))
            z_code = q.rsample(eps)
            recon = self.distance(x, self.generator(z_code))
            if self.latent == "adversarial":
                match = self.loss.generator(self.latent_discriminator(z_code))
            else:
                match = kl_standard_normal(q.mu, q.logvar).mean()
            encoder.minimise(self.reconstruction_weight * recon + match)

        # Generator: minimise lambda |x - x^|_1 + R_D(x^) + R_D(x~).
        with torch.no_grad():
            z_code = self.family(self.encoder(x)).rsample(eps)
        with self.turn("generator") as generator:
            x_recon = self.generator(z_code)
            logits = [self.discriminator(x_fake) for x_fake in self.fakes_of(x_recon, z)]
            g_loss = torch.stack([self.loss.generator(one) for one in logits]).sum()
            generator.minimise(self.reconstruction_weight * self.distance(x, x_recon) + g_loss)

        # Discriminator: minimise -log D(x) - log(1 - D(x^)) - log(1 - D(x~)).
        with torch.no_grad():
            fakes = self.fakes_of(self.generator(z_code), z)
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(x), [self.discriminator(x_fake) for x_fake in fakes]
            d_loss = self.loss.real(logits_real) + torch.stack([self.loss.fake(one) for one in logits_fake]).sum()
            discriminator.minimise(d_loss)

        # Latent discriminator: minimise -log C(z) - log(1 - C(z^)).
        if self.latent == "adversarial":
            with self.turn("latent_discriminator") as latent_discriminator:
                logits_prior, logits_code = self.latent_discriminator(z), self.latent_discriminator(z_code)
                c_loss = self.loss.discriminator(logits_prior, logits_code)
                latent_discriminator.minimise(c_loss)
            self.record(c_loss=c_loss)

        self.record(recon=recon, match=match, d_loss=d_loss, g_loss=g_loss)
        self.record_logits(logits_real, torch.cat(logits_fake))


def _check(fakes: Sequence[str], latent: str, posterior: Posterior, reconstruction_weight: float) -> None:
    """Checks the choices and the weight."""
    if not fakes or not set(fakes) <= set(FAKES):
        raise UserError(f"model.fakes must be one or both of {', '.join(FAKES)}, got {list(fakes)}.")
    if latent not in LATENTS:
        raise UserError(f"model.latent must be one of {', '.join(LATENTS)}, got {latent!r}.")
    if latent == "kl" and not posterior.diagonal:
        raise UserError("model.latent=kl needs the closed form of posterior=diagonal.")
    if reconstruction_weight < 0:
        raise UserError(f"model.reconstruction_weight must be at least 0, got {reconstruction_weight}.")
