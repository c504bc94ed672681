"""Capabilities of models of the same parts: a generator, an encoder beside it, or an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.engine.fakes import Fakes
from genlab.errors import UserError
from genlab.losses.features import feature_matching
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import GenerativeModel, inference
from genlab.networks.init import start_output_bias
from genlab.networks.posteriors import log_standard_normal


class Generating(GenerativeModel):
    """A model whose `generator` maps latents [N, Z], drawn by `noise`, to samples [N, ...]."""

    generator: nn.Module

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws G(z), [n, ...]."""
        return self.generator(self.noise(n, rng), *self.told(given))

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """G(z) of latents [N, latent_dim]."""
        return self.generator(z, *self.told(given))

    def fakes(self, n: int, *told: Batch) -> Fakes:
        """The fakes of a step: n for the discriminator, and as many for the generator, all told the same."""
        return Fakes(
            lambda z: self.generator(z, *told), lambda: self.noise(n), self.settings.speed.reuse_fakes, self.mixed
        )

    def mixed(self, x_fake: Tensor) -> Tensor:
        """Fakes [N, ...], of which under `tricks.replay` some are replaced by earlier ones."""
        tricks = self.settings.tricks
        if not tricks.replay:
            return x_fake
        with self.common_draws():
            whole = self.gathered(x_fake)
            return self.pool.mixed(x_fake, tricks.replay, tricks.replay_size, self.rand, whole, self.stream.rank)

    def generator_loss(self, loss: Any, discriminator: Any, x_fake: Tensor, x_real: Tensor, *told: Batch) -> Tensor:
        """The generator's loss: `loss.generator` of the logits on its fakes, or feature matching.

        Args:
            loss: An adversarial loss.
            discriminator: Maps samples [N, ...] to logits; under feature matching, has `features`.
            x_fake: The fakes, with their graph.
            x_real: Real samples, looked at by feature matching alone.
        """
        if not self.settings.tricks.feature_matching:
            return cast(Tensor, loss.generator(discriminator(x_fake, *told)))
        with torch.no_grad():
            real = self.gathered(discriminator.features(x_real, *told))
        return feature_matching(real, self.gathered(discriminator.features(x_fake, *told)))


class Inferring(Generating):
    """A generating model with an `encoder` that maps samples [N, ...] to latents [N, Z]."""

    encoder: nn.Module

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """E(x), [N, latent_dim]."""
        return self.encoder(x)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x)) of samples [N, ...]."""
        return self.generator(self.encoder(x))


class Coding(GenerativeModel):
    """A model with an `encoder` to codes [N, Z], and a `decoder` whose raw outputs a `likelihood` reads."""

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias at the mean sample."""
        x = torch.cat([next(batches).x for _ in range(8)])
        start_output_bias(self.decoder, self.likelihood.visible_bias(x))

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, latent_dim] of samples [N, ...]."""
        return self.encoder(x)

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """E[x | code], in the range of the data."""
        return self.likelihood.mean(self.decoder(z))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | code] of each sample's code."""
        return self.likelihood.mean(self.decoder(self.encoder(x)))


class Completing(GenerativeModel):
    """A model of the hidden part of a picture, given the part that is seen (`derive=half`, `quadrants`).

    Given is one column, whose last channel says which pixels are seen (see `genlab.fields.masked`). The likelihood is
    of the hidden pixels alone: seen ones are known, and cost nothing. Samples keep the seen pixels as they are.
    """

    decoder: nn.Module
    likelihood: Likelihood
    hidden_share: Tensor

    def __init__(self, likelihood: Likelihood) -> None:
        """Notes that nothing is known about the share of hidden pixels yet.

        Raises:
            UserError: If the likelihood has no terms of single pixels.
        """
        super().__init__()
        if not likelihood.separable:
            raise UserError(
                "The hidden pixels alone are scored, and this likelihood couples pixels. Try likelihood=bernoulli or "
                "gaussian."
            )
        self.register_buffer("hidden_share", torch.ones(()))

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias at the mean sample, and notes the share of pixels that are hidden."""
        first = [next(batches) for _ in range(8)]
        start_output_bias(self.decoder, self.likelihood.visible_bias(torch.cat([batch.x for batch in first])))
        self.hidden_share.fill_(1 - torch.cat([self.seen(batch) for batch in first]).mean())

    @property
    def modelled_share(self) -> float:
        """The share of a picture's numbers that log p(x) is of, for bits per dimension."""
        return float(self.hidden_share)

    def seen(self, told: Batch) -> Tensor:
        """The map of the seen pixels, [N, 1, H, W] of 0 and 1."""
        return told.tensor(self.given[0])[:, -1:]

    def completed(self, raw: Tensor, told: Batch) -> Tensor:
        """The decoder's mean where pixels are hidden, the given ones elsewhere."""
        c = told.tensor(self.given[0])
        return torch.where(c[:, -1:] > 0.5, c[:, :-1], self.likelihood.mean(raw))

    def log_hidden(self, x: Tensor, raw: Tensor, told: Batch) -> Tensor:
        """log p of the hidden pixels of x under the decoder's outputs, [N] nats."""
        return (self.likelihood.terms(x, raw) * (1 - self.seen(told))).flatten(1).sum(dim=1)


class NormalPrior(GenerativeModel):
    """A model whose latents [N, Z] are standard normal a priori, drawn by `noise`."""

    @inference
    def log_prior(self, z: Tensor) -> Tensor:
        """log N(z; 0, I), [N] nats."""
        return log_standard_normal(z)

    @inference
    def sample_prior(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I), [n, Z]."""
        return self.noise(n, rng)
