"""The dual contradistinctive autoencoder: a VAE with two losses of a discriminator in place of a pixel error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.contrastive import info_nce
from genlab.losses.divergences import kl_standard_normal
from genlab.models.base import GenerativeModel, inference
from genlab.networks.contrastive import KeyQueue, Momentum, Staged
from genlab.networks.init import check_width, spectrally_normalised
from genlab.networks.posteriors import Diagonal, DiagonalGaussian


class DCVAE(GenerativeModel):
    """DC-VAE. Parmar, Li, Lee & Tu (2021), arXiv:2011.10063, with the loop of the authors' code (mlpc-ucsd/DC-VAE).

    There is no pixel error. InfoNCE on features of the discriminator matches a reconstruction x_hat = G(z),
    z ~ q(z | x), to its own image among a queue of other images, whose features come from a moving average of the
    discriminator; the adversarial loss makes reconstructions and samples x_tilde look real.

    An iteration takes `n_critic` batches: one discriminator update on each, then one update of encoder and decoder in
    each of the two games, on the last. The discriminator is three players, trunk, head and contrast. The losses:

    - trunk and head: loss.discriminator(D(x), D of reconstructions and samples, half each);
    - generator (encoder and decoder): loss.generator of the same half and half, + kl_weight KL;
    - generator, trunk and contrast together: mean over the stages of InfoNCE(x_hat, x), + kl_weight KL.

    Departures: the trunk has one optimizer for both games; every stage has its own projection, while the code's
    adversarial head reads the projection of the last; the queue starts with features of the first batches instead of
    noise; there are as many samples as reconstructions.
    """

    tricks_taken = ("historical_averaging",)
    ema_modules = ("encoder", "generator")

    def __init__(
        self,
        encoder: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        spectral_norm: bool,
        shape: Sequence[int],
        latent_dim: int,
        encoder_features: int,
        kl_weight: float,
        n_critic: int,
        stages: Sequence[int],
        contrast_dim: int,
        queue_size: int,
        temperature: float,
        momentum: float,
    ) -> None:
        """Joins the players.

        Args:
            discriminator: Maps samples to logits [N]; has a `trunk`, a `head` and `features`, and no batch norm.
            kl_weight: Of the KL's mean over the batch. The code has 1e-6 for a sum over 64 images: 6.4e-5 here.
            stages: Stages of the trunk whose features are contrasted, from 0; -1 is the last.
            queue_size: K, the number of keys; well below the number of training images, else own keys are among them.
            momentum: Of the moving average of discriminator and projections, which computes the keys.

        Raises:
            UserError: If a number is out of its range, a width does not fit, or the discriminator has batch norm.
        """
        super().__init__()
        check_width(encoder_features, 2 * latent_dim)
        _check(n_critic, temperature, momentum, kl_weight)
        _refuse_batch_norm(discriminator)
        self.encoder, self.generator, self.loss = encoder, generator, loss
        if spectral_norm:
            spectrally_normalised(discriminator)
        self.discriminator: Any = discriminator  # has `trunk` and `head`, which a Module does not promise
        self.latent_dim, self.kl_weight = latent_dim, kl_weight
        self.n_critic = self.batches_per_step = n_critic
        self.temperature, self.momentum = temperature, momentum
        self.contrast = Staged(discriminator, shape, stages, contrast_dim)
        self.family = Diagonal(latent_dim, encoder_features)
        self.slow_discriminator, self.slow_contrast = Momentum(discriminator), Momentum(self.contrast)
        self.queue = KeyQueue(len(self.contrast.stages), queue_size, contrast_dim)
        self.add_player("trunk", self.discriminator.trunk, "d_optimizer")
        self.add_player("head", self.discriminator.head, "d_optimizer")
        self.add_player("contrast", self.contrast, "d_optimizer")
        self.add_player("generator", [encoder, generator], "g_optimizer")

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Fills the queue with keys of the first batches."""
        self.follow(0.0)
        found = 0
        while found < self.queue.keys.shape[1]:
            x = next(batches).x
            self.queue.push(self.keys(x))
            found += len(x)

    def follow(self, momentum: float) -> None:
        """Updates the moving averages of discriminator and projections."""
        self.slow_discriminator.follow(self.discriminator, momentum)
        self.slow_contrast.follow(self.contrast, momentum)

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        """Keys of samples [N, ...] from the moving averages: unit vectors [L, N, contrast_dim] of the L stages."""
        return self.slow_contrast.frozen()(self.slow_discriminator.frozen(), x)

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x) of samples [N, ...]."""
        return self.family(self.encoder(x))

    def reconstructions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """G(z), z ~ q(z | x), with the shape of x; and KL(q(z | x) || N(0, I)) of each sample, [N] nats."""
        q = self.posterior(x)
        return self.generator(q.rsample(self.randn(len(x), self.latent_dim))), kl_standard_normal(q.mu, q.logvar)

    def instance_loss(self, x: Tensor, x_recon: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """InfoNCE of reconstructions and their images [N, ...]: mean over stages, accuracy of each stage, and keys."""
        keys, queries = self.keys(x), self.contrast(self.discriminator, x_recon)
        parts = [
            info_nce(query, key, others, self.temperature)
            for query, key, others in zip(queries, keys, self.queue.keys, strict=True)
        ]
        return torch.stack([loss for loss, _ in parts]).mean(), [right for _, right in parts], keys

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws G(z), z ~ N(0, I), [n, ...]."""
        return self.generator(self.noise(n, rng))

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """G(z) of latents [N, latent_dim]."""
        return self.generator(z)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean [N, latent_dim] of samples [N, ...]."""
        return self.posterior(x).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """G at the posterior mean of each sample."""
        return self.generator(self.posterior(x).mean)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """`n_critic` discriminator updates on fresh data, then one update in each of the two games."""
        for x_real in batch.x.chunk(self.n_critic):
            # Discriminator: reconstructions and samples are fakes, half and half.
            with torch.no_grad():
                fakes = torch.cat([self.reconstructions(x_real)[0], self.generator(self.noise(len(x_real)))])
            with self.turn("trunk", "head") as discriminator:
                logits_real, logits_fake = self.discriminator(torch.cat([x_real, fakes])).split(
                    [len(x_real), len(fakes)]
                )
                d_loss = self.loss.discriminator(logits_real, logits_fake)
                discriminator.minimise(d_loss)

        # Encoder and decoder: minimise loss.generator(D of reconstructions and samples) + kl_weight KL.
        with self.turn("generator") as generator:
            x_recon, kl = self.reconstructions(x_real)
            x_fake = self.generator(self.noise(len(x_real)))
            g_loss = self.loss.generator(self.discriminator(torch.cat([x_recon, x_fake])))
            generator.minimise(g_loss + self.kl_weight * kl.mean())

        # Encoder, decoder, trunk and projections together: minimise InfoNCE(x_hat, x) + kl_weight KL.
        self.follow(self.momentum)
        with self.turn("generator", "trunk", "contrast") as team:
            x_recon, kl = self.reconstructions(x_real)
            contrast, right, keys = self.instance_loss(x_real, x_recon)
            team.minimise(contrast + self.kl_weight * kl.mean())
        self.queue.push(torch.stack([self.gathered(part) for part in keys]))

        squared = (x_recon.detach() - x_real).square().flatten(1).sum(dim=1).mean()
        self.record(d_loss=d_loss, g_loss=g_loss, contrast=contrast, kl=kl.mean(), squared_error=squared)
        stages = zip(self.contrast.stages, right, strict=True)
        self.record(**{f"contrast_accuracy_{stage}": accuracy for stage, accuracy in stages})
        self.record_logits(logits_real, logits_fake)


def _check(n_critic: int, temperature: float, momentum: float, kl_weight: float) -> None:
    """Checks the range of each number."""
    if n_critic < 1 or temperature <= 0 or not 0 <= momentum <= 1 or kl_weight < 0:
        raise UserError(
            "DC-VAE needs n_critic >= 1, temperature > 0, momentum in [0, 1] and kl_weight >= 0, got "
            f"{n_critic}, {temperature}, {momentum} and {kl_weight}."
        )


def _refuse_batch_norm(discriminator: nn.Module) -> None:
    """Refuses batch norm: its statistics reveal which key is the query's own. MoCo (He et al., 2020), section 3.3."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in discriminator.modules()):
        raise UserError(
            "model=dc_vae needs a discriminator without batch norm: batch statistics would reveal the keys. "
            "Try network.norm=none."
        )
