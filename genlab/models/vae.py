"""The variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.losses.divergences import kl_standard_normal
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import GenerativeModel, OptimizerFactory, SchedulerFactory, inference


class VAE(GenerativeModel):
    """Variational autoencoder. Kingma & Welling (2014), arXiv:1312.6114, Eq. 7 with L = 1.

    Encoder and decoder are one player: both maximise the evidence lower bound (ELBO).
    """

    ema_modules = ("encoder", "decoder", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        encoder_features: int,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        kl_weight: float = 1.0,
    ) -> None:
        """Joins encoder and decoder.

        Args:
            encoder: Maps samples [N, ...] to [N, 2 * latent_dim]: posterior means, then log-variances.
            decoder: Maps latents [N, latent_dim] to raw outputs of the shape of a sample.
            likelihood: What the raw outputs mean.
            latent_dim: Size of the standard normal latent.
            encoder_features: Width of the encoder's output, 2 * latent_dim.
            optimizer: Makes the optimizer from all parameters.
            scheduler: Makes the learning-rate schedule, stepped once per iteration.
            kl_weight: beta of Higgins et al. (2017); 1 is the VAE. The recorded `elbo` always has weight 1.

        Raises:
            ValueError: If encoder_features is not twice latent_dim.
        """
        super().__init__()
        if encoder_features != 2 * latent_dim:
            raise ValueError(
                f"The encoder must give 2 * latent_dim = {2 * latent_dim} numbers, not {encoder_features}."
            )
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.kl_weight = latent_dim, kl_weight
        self.add_player("vae", [encoder, decoder, likelihood], optimizer, scheduler)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias, where its last layer has one of the sample's shape, at the mean sample.

        Burda et al. (2016) do so; it spares the first epochs, which would learn little else.
        """
        x = torch.cat([next(batches).x for _ in range(8)])
        last = [m for m in self.decoder.modules() if isinstance(m, nn.Linear)][-1:]
        if last and last[0].bias is not None and last[0].out_features == x[0].numel():
            last[0].bias.copy_(self.likelihood.visible_bias(x).flatten())

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), [N, latent_dim] each."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    @inference
    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws z from the prior and gives E[x | z], [n, ...]."""
        return self.likelihood.mean(self.decoder(self.noise(n, rng)))

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean [N, latent_dim] of samples [N, ...]."""
        return self.posterior(x)[0]

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z] of latents [N, latent_dim], in the range of the data."""
        return self.likelihood.mean(self.decoder(z))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the posterior mean of each sample."""
        return self.likelihood.mean(self.decoder(self.posterior(x)[0]))

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) = log p(x | z) + log p(z), [N] nats."""
        return self.likelihood.log_prob(x, self.decoder(z)) + _log_standard_normal(z)

    @inference
    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [N] nats."""
        return _log_standard_normal(z)

    @inference
    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """k draws z ~ q(z | x) for each sample and their log q(z | x): [k, N, latent_dim] and [k, N] nats."""
        mu, logvar = self.posterior(x)
        eps = self.randn(k * len(x), self.latent_dim, rng=rng).unflatten(0, (k, len(x)))
        return mu + (0.5 * logvar).exp() * eps, _log_standard_normal(eps) - 0.5 * logvar.sum(dim=-1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 7: minimise -E_q log p(x | z) + beta KL(q(z | x) || p(z)), with z = mu + sigma eps."""
        with self.turn("vae") as vae:
            mu, logvar = self.posterior(batch.x)
            z = mu + (0.5 * logvar).exp() * self.randn(len(mu), self.latent_dim)
            recon = -self.likelihood.log_prob(batch.x, self.decoder(z)).mean()
            kl = kl_standard_normal(mu, logvar).mean()
            loss = recon + self.kl_weight * kl
            vae.minimise(loss)
        self.record(loss=loss, recon=recon, kl=kl, elbo=-(recon + kl))


def _log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) over the last dimension, in nats."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)
