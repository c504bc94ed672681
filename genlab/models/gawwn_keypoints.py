"""Text to image with keypoints, and a generator of the keypoints that are not given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.adversarial import AdversarialLoss
from genlab.models.base import inference
from genlab.models.gan_cls import GANCLS


class KeypointGAWWN(GANCLS):
    """GAWWN by keypoints. Reed, Akata, Mohan, Tenka, Schiele & Lee (2016), arXiv:1610.02454, sections 4.3 and 4.4.

    Pictures of captions and keypoints are learned as in GAN-CLS, where wrong pairs have another caption and never
    other keypoints. Beside it a second GAN draws keypoints of captions: G_k(z, t, k, m) = m k + (1 - m) f(z, t, m k, m)
    keeps those that are given. The authors train it apart; here both games are played in each iteration.
    """

    tells = (*GANCLS.tells, "points_generator", "points_discriminator")
    ema_modules = ("generator", "points_generator")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        points_generator: nn.Module,
        points_discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        points: str = "keypoints",
        kept: float = 0.1,
        exchanged: Sequence[str] = (),
        mismatch: Sequence[str] = (),
    ) -> None:
        """Joins the players.

        Args:
            points_generator: Maps latents [N, latent_dim], told keypoints that are -1 where they are not given, to
                keypoints [N, P, 3].
            points_discriminator: Maps keypoints [N, P, 3], told captions, to logits [N].
            points: The column of keypoints.
            kept: Probability with which a keypoint is given to `points_generator` in training.
            exchanged: As for GAN-CLS; without the keypoints.
            mismatch: As for GAN-CLS.
        """
        super().__init__(generator, discriminator, loss, latent_dim, exchanged=exchanged, mismatch=mismatch)
        self.points_generator, self.points_discriminator = points_generator, points_discriminator
        self.points, self.kept, self.fills = points, kept, (points,)
        self.add_player("points_discriminator", points_discriminator, "dk_optimizer")
        self.add_player("points_generator", points_generator, "gk_optimizer")

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws pictures [n, ...] of captions and keypoints, and the keypoints as well if there are none."""
        if given is not None and self.points not in given:
            parts = self.spec.fields[self.points].fixed_shape
            hidden = given.with_column(self.points, torch.full((n, *parts), -1.0, device=self.device))
            drawn = self.points_generator(self.noise(n, rng), *self.told(hidden))
            seen = (drawn[:, :, 2:] > 0.5).to(drawn.dtype)
            given = given.with_column(self.points, torch.cat([drawn[:, :, :2] * seen, seen], dim=2))
        return self.generator(self.noise(n, rng), *self.told(given))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1 of GAN-CLS on pictures; then one update each of D_k(k, t) and G_k, with the usual loss."""
        super().training_step(batch, batch_idx)
        told, keypoints = batch.only(self.given), batch.tensor(self.points)
        given = self.rand(len(batch), keypoints.shape[1]) < self.kept
        hidden = told.with_column(self.points, torch.where(given.unsqueeze(2), keypoints, -1))

        # D_k: minimise -log D_k(k, t) - log(1 - D_k(G_k(z, t, k, m), t)).
        with self.turn("points_discriminator") as points_discriminator:
            with torch.no_grad():
                fake = self.points_generator(self.noise(len(batch)), hidden)
            logits_real, logits_fake = (self.points_discriminator(k, told) for k in (keypoints, fake))
            dk_loss = self.loss.discriminator(logits_real, logits_fake)
            points_discriminator.minimise(dk_loss)

        # G_k: minimise -log D_k(G_k(z, t, k, m), t).
        with self.turn("points_generator") as points_generator:
            fake = self.points_generator(self.noise(len(batch)), hidden)
            gk_loss = self.loss.generator(self.points_discriminator(fake, told))
            points_generator.minimise(gk_loss)
        self.record(dk_loss=dk_loss, gk_loss=gk_loss)
