"""Text to image in two stages: small pictures of a caption, then larger ones of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.engine.fakes import Fakes
from genlab.engine.mismatch import mismatched
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.divergences import kl_standard_normal
from genlab.losses.matching import matching_loss
from genlab.models.base import GenerativeModel, inference
from genlab.networks.posteriors import DiagonalGaussian


class StackGAN(GenerativeModel):
    """A stage of StackGAN. Zhang, Xu, Li, Zhang, Wang, Huang & Metaxas (2017), arXiv:1612.03242.

    Stage I draws small pictures x0 = G0(z, c0), shown at the size of the data with each pixel `scale` times; stage II,
    over a trained `first_stage`, draws x = G(x0, c). Both see captions as c = mu(t) + sigma(t) eps (conditioning
    augmentation, section 3.2), and each has its own. Discriminators and mismatched captions are those of GAN-CLS.

    A latent is (z, eps0) in stage I and (z, eps0, eps) in stage II. The first stage is frozen with its statistics; the
    authors' runs with those of the batch.
    """

    tricks_taken = (*GenerativeModel.tricks_taken, "instance_noise", "augment")
    tells = ("augmentation", "discriminator")
    ema_modules = ("augmentation", "generator")
    first_stage: Any

    def __init__(
        self,
        augmentation: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        code_dim: int,
        kl_weight: float,
        shape: Sequence[int],
        scale: int = 1,
        mismatch: Sequence[str] = (),
        first_stage: GenerativeModel | None = None,
    ) -> None:
        """Joins the networks.

        Args:
            augmentation: Maps the given columns to mean and log-variance of c, [N, 2 code_dim]; moves with the
                generator.
            generator: Of stage I maps (z, c) [N, latent_dim] to pictures; of stage II pictures and c [N, code_dim].
            latent_dim: Width of z and eps0 together.
            code_dim: Width of c and of eps.
            kl_weight: lambda of KL(N(mu, sigma^2) || N(0, 1)), summed over c.
            shape: (C, H, W) of the data's pictures.
            scale: Their sides over those of this stage's.
            mismatch: As for GAN-CLS.
            first_stage: A trained stage I; None for stage I.

        Raises:
            UserError: If no room is left for z, or `scale` does not divide the sides.
        """
        super().__init__()
        if scale < 1 or any(side % scale for side in shape[1:]):
            raise UserError(f"model.scale={scale} must divide the sides {list(shape[1:])}. Try model.scale=2.")
        if code_dim >= latent_dim:
            raise UserError(
                f"model.latent_dim is the width of z and of a code together, so it must exceed model.code_dim="
                f"{code_dim}, got {latent_dim}. Try model.latent_dim={code_dim + 100}."
            )
        self.augmentation, self.generator, self.discriminator = augmentation, generator, discriminator
        self.loss, self.code_dim, self.kl_weight, self.scale = loss, code_dim, kl_weight, scale
        self.needs, self.first_stage = tuple(mismatch), first_stage
        self.latent_dim = latent_dim if first_stage is None else first_stage.latent_dim + code_dim
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", [augmentation, generator], "g_optimizer")

    def codes(self, told: Batch) -> DiagonalGaussian:
        """The distribution of c, given captions [N]."""
        return DiagonalGaussian(*self.augmentation(told).chunk(2, dim=1))

    def draw(self, z: Tensor, told: Batch) -> Tensor:
        """Pictures of latents [N, latent_dim] and captions, in this stage's size."""
        start, eps = z[:, : -self.code_dim], z[:, -self.code_dim :]
        c = self.codes(told).rsample(eps)
        if self.first_stage is None:
            return self.generator(torch.cat([start, c], dim=1))
        return self.generator(self.first_stage.draw(start, told), c)

    def smaller(self, x: Tensor) -> Tensor:
        """Pictures of the data's size in this stage's: means over squares of pixels."""
        return F.avg_pool2d(x, self.scale)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws pictures [n, ...] of the given captions, at the size of the data."""
        return self.decode(self.noise(n, rng), given)

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """Pictures of latents [N, latent_dim] at the size of the data."""
        return F.interpolate(self.draw(z, *self.told(given)), scale_factor=float(self.scale))

    @inference
    def score_logits(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """log p_data / p_model [N] of samples [N, ...] with these captions, for an optimal discriminator."""
        return self.discriminator(self.smaller(x), *self.told(given)) - math.log(2)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 3 and 4, or 5 and 6 in stage II: one discriminator update, then one generator update."""
        x_real, (told,) = self.smaller(batch.x), self.told(batch)
        names = self.needs or self.given
        other, found = mismatched(batch.only(dict.fromkeys((*self.given, *names))), names, self.gathered, self.rand)
        wrong, n = other.only(self.given), len(x_real)
        fakes = Fakes(
            lambda z: self.draw(z, told), lambda: self.noise(n), self.settings.speed.reuse_fakes, lambda x_fake: x_fake
        )

        # Discriminator: minimise -log s_r - (log(1 - s_w) + log(1 - s_f)) / 2.
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(x_real, told), self.discriminator(fakes.shown, told)
            logits_wrong = torch.where(found, self.discriminator(x_real, wrong), logits_fake)
            d_loss = matching_loss(self.loss, logits_real, logits_wrong, logits_fake)
            discriminator.minimise(d_loss)

        # Generator and augmentation: minimise -log s_f + lambda KL(N(mu(t), sigma(t)^2) || N(0, 1)).
        with self.turn("generator") as generator:
            kl = kl_standard_normal(*self.codes(told)).mean()
            g_loss = self.loss.generator(self.discriminator(fakes.again(), told))
            generator.minimise(g_loss + self.kl_weight * kl)

        self.record(d_loss=d_loss, g_loss=g_loss, kl=kl, logits_wrong=logits_wrong.mean())
        self.record_logits(logits_real, logits_fake)
