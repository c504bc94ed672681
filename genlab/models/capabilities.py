"""Capabilities of models of the same parts: a generator, an encoder beside it, or an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.engine.fakes import Fakes
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
