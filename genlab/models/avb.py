"""Adversarial variational Bayes: a VAE with an implicit posterior, whose KL is estimated by a discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.density_ratio import forward_kl, ratio_loss
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding, NormalPrior
from genlab.networks.init import check_width
from genlab.networks.posteriors import Deterministic, Posterior, log_standard_normal


class AVB(Coding, NormalPrior):
    """Adversarial variational Bayes. Mescheder, Nowozin & Geiger (2017), arXiv:1701.04722, Algorithm 1.

    T tells (x, z ~ q(z | x)) from (x, z ~ p(z)). The optimal T(x, z) is log q(z | x) - log p(z), whose mean over q is
    the KL of the bound. A trained T is only near the optimum, so the recorded `elbo_estimate` is not a bound.
    `metrics.ais_steps` works as for any VAE: it needs the densities of decoder and prior, not the posterior's. The
    paper's adaptive contrast is left out.
    """

    ema_modules = ("encoder", "decoder", "likelihood", "family", "discriminator")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        encoder_features: int,
        posterior: Posterior,
    ) -> None:
        """Joins the players.

        Args:
            discriminator: T, of samples [N, ...] and latents [N, latent_dim] to logits [N].
            posterior: The family of q(z | x); needs no density.

        Raises:
            UserError: If the encoder's width does not fit the posterior, or the posterior is deterministic.
        """
        super().__init__()
        check_width(encoder_features, posterior.features)
        if isinstance(posterior, Deterministic):
            raise UserError("posterior=deterministic has an infinite KL to any prior. Try posterior=universal.")
        self.encoder, self.decoder, self.family = encoder, decoder, posterior
        self.discriminator, self.likelihood, self.latent_dim = discriminator, likelihood, latent_dim
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("vae", [encoder, decoder, likelihood, posterior], "optimizer")

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws z from the prior and returns E[x | z] (autoregressive: draws x | z), [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng)), rng)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean, or for posteriors without a known mean the draw at noise 0: [N, latent_dim]."""
        return self.family(self.encoder(x)).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the code of each sample."""
        return self.likelihood.mean(self.decoder(self.family(self.encoder(x)).mean))

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) = log p(x | z) + log p(z), [N] nats."""
        return self.likelihood.log_prob(x, self.decoder(z)) + log_standard_normal(z)

    def draw(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One z ~ q(z | x) for each sample, [N, latent_dim], with its gradient."""
        return self.family(self.encoder(x)).draw(self.randn(len(x), self.latent_dim, rng=rng))[0]

    def terms(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The objective at draws z from q: the `loss` that encoder and decoder minimise, and its terms."""
        recon = -self.likelihood.log_prob(x, self.decoder(z)).mean()
        kl = forward_kl(self.discriminator(x, z))
        return {"loss": recon + kl, "recon": recon, "kl_estimate": kl, "elbo_estimate": -(recon + kl)}

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The `loss` of encoder and decoder on a batch, and its terms, with T's estimate of the KL."""
        return self.terms(x, self.draw(x, rng))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: all gradients at the same parameters and draws, then both updates."""
        x = batch.x
        z, z_prior = self.draw(x), self.noise(len(x))

        # T: maximise E log sigmoid(T(x, z_q)) + E log(1 - sigmoid(T(x, z_p))).
        with self.turn("discriminator") as discriminator:
            logits_q, logits_p = self.discriminator(x, z.detach()), self.discriminator(x, z_prior)
            d_loss = ratio_loss(logits_q, logits_p)
            discriminator.collect(d_loss)

        # Encoder and decoder: minimise E [T(x, z_q) - log p(x | z_q)]. The optimal T depends on the encoder, too, but
        # the mean of that gradient is 0 (Proposition 2), so the encoder's gradient is the one through z_q.
        with self.turn("vae") as vae:
            terms = self.terms(x, z)
            vae.collect(terms["loss"])

        self.step("discriminator", "vae")
        self.record(d_loss=d_loss, **terms)
        self.record_logits(logits_q, logits_p)
