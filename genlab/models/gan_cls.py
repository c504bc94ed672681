"""Text to image by a discriminator that learns whether sample and caption match: GAN-CLS and GAN-INT-CLS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.batch import Batch, Between
from genlab.engine.mismatch import mismatched
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.matching import matching_loss
from genlab.models.base import inference
from genlab.models.capabilities import Generating


class GANCLS(Generating):
    """GAN with a matching-aware discriminator. Reed et al. (2016), arXiv:1605.05396, Algorithm 1.

    The discriminator also sees real samples with captions of others. With `interpolated` above 0 this is GAN-INT-CLS
    (section 4.3): the generator, not the discriminator, meets captions between two as well. The given columns may be
    of any kind. Their networks are trained along, where the paper's text encoder is trained before.
    """

    tricks_taken = (*Generating.tricks_taken, "instance_noise", "augment")
    tells: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    ema_modules: tuple[str, ...] = ("generator",)

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        interpolated: float = 0.0,
        exchanged: Sequence[str] = (),
        mismatch: Sequence[str] = (),
    ) -> None:
        """Joins the players.

        Args:
            interpolated: Interpolated captions in the generator's step for each true one, in [0, 1]; 1/2 in the
                authors' code, 0 for GAN-CLS.
            exchanged: Columns that wrong pairs have from another row. None: all that are given.
            mismatch: Columns in which that row differs: ["y"] for captions of another class. None: the exchanged ones.
        """
        super().__init__()
        self.generator, self.discriminator, self.loss = generator, discriminator, loss
        self.latent_dim, self.interpolated = latent_dim, interpolated
        self.exchanged, self.needs = tuple(exchanged), tuple(mismatch)
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    @inference
    def score_logits(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """log p_data / p_model [N] of samples [N, ...] with these captions, for an optimal discriminator.

        Its logit is larger by log 2, since it sees half as many fakes as real samples.
        """
        return self.discriminator(x, *self.told(given)) - math.log(2)

    def mismatched(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The conditions [N] with captions of other rows, and whether there are others than the own, bool [N]."""
        exchanged = self.exchanged or self.given
        differ = self.needs or exchanged
        other, found = mismatched(batch.only(dict.fromkeys((*exchanged, *differ))), differ, self.gathered, self.rand)
        return Batch({**batch.only(self.given).columns, **other.only(exchanged).columns}), found

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: one discriminator update on right pairs, wrong pairs and fakes, then one generator update."""
        x_real, (told,) = batch.x, self.told(batch)
        wrong, found = self.mismatched(batch)
        fakes = self.fakes(len(x_real), told)

        # Discriminator (lines 6-11): minimise -log s_r - (log(1 - s_w) + log(1 - s_f)) / 2.
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(x_real, told), self.discriminator(fakes.shown, told)
            # Where all captions are alike, none is wrong: the fake counts twice.
            logits_wrong = torch.where(found, self.discriminator(x_real, wrong), logits_fake)
            d_loss = matching_loss(self.loss, logits_real, logits_wrong, logits_fake)
            discriminator.minimise(d_loss)

        # Generator (lines 12-13): minimise -log s_f, of true captions and of those between two (Eq. 5).
        with self.turn("generator") as generator:
            g_loss = self.loss.generator(self.discriminator(fakes.again(), told))
            if self.interpolated:
                between = self.loss.generator(self.logits_between(told, wrong))
                g_loss = (g_loss + self.interpolated * between) / (1 + self.interpolated)
            generator.minimise(g_loss)

        self.record(d_loss=d_loss, g_loss=g_loss, logits_wrong=logits_wrong.mean())
        self.record_logits(logits_real, logits_fake)

    def logits_between(self, told: Batch, other: Batch) -> Tensor:
        """Logits of fakes with captions halfway between those of two batches, for rows at even distances."""
        n = max(1, round(self.interpolated * len(told)))
        rows = torch.arange(n, device=self.device) * len(told) // n
        between = Between(told.rows(rows), other.rows(rows), 0.5)
        return self.discriminator(self.generator(self.noise(n), between), between)
