"""The importance weighted autoencoder, with one stochastic layer or two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.models.adversary import Opponent, Opposable
from genlab.models.base import inference
from genlab.networks.init import check_width, start_output_bias
from genlab.networks.posteriors import DiagonalGaussian, log_standard_normal

ESTIMATORS = ("iwae", "dreg", "vae")


class IWAE(Opposable):
    """Importance weighted autoencoder. Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519, Eq. 8, 13 and 14.

    L_k = E log 1/k sum_i w_i over k draws z_i ~ q(z | x), w_i = p(x, z_i) / q(z_i | x). With two layers q draws
    z_1 ~ q(z_1 | x), then z_2 ~ q(z_2 | z_1); p draws z_2 ~ N(0, I), z_1 ~ p(z_1 | z_2) and x ~ p(x | z_1).

    `estimator` selects the gradient: "iwae", that of L_k; "dreg", doubly reparametrised, Tucker et al. (2019),
    arXiv:1810.04152, Eq. 8, whose signal-to-noise ratio does not fall with k (one layer only); "vae", that of the mean
    of the k ELBOs, the paper's VAE with k samples. `loss` is differentiated; `bound` is L_k and `elbo` L_1 under every
    estimator.
    """

    ema_modules = ("encoders", "decoders", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        k: int = 50,
        estimator: Literal["iwae", "dreg", "vae"] = "iwae",
        upper_dim: int | None = None,
        upper_encoder: nn.Module | None = None,
        upper_decoder: nn.Module | None = None,
        encoder_features: int | None = None,
        adversary: Opponent | None = None,
    ) -> None:
        """Joins the networks.

        Args:
            encoder: Maps samples [N, ...] to [N, 2 * latent_dim]: means, then log-variances of q(z_1 | x).
            latent_dim: Size of z_1.
            upper_dim: Size of z_2; None for one layer.
            upper_encoder: Maps z_1 [N, latent_dim] to [N, 2 * upper_dim], q(z_2 | z_1).
            upper_decoder: Maps z_2 [N, upper_dim] to [N, 2 * latent_dim], p(z_1 | z_2).

        Raises:
            UserError: If `k`, `estimator` or the encoder's width is not allowed, or the second layer is incomplete.
        """
        super().__init__()
        upper = [part for part in (upper_dim, upper_encoder, upper_decoder) if part is not None]
        _check(k, estimator, len(upper))
        if encoder_features is not None:
            check_width(encoder_features, 2 * latent_dim)
        self.encoders, self.decoders = nn.ModuleList([encoder]), nn.ModuleList([decoder])
        self.sizes = [latent_dim]
        if upper_encoder is not None and upper_decoder is not None and upper_dim is not None:
            self.encoders.append(upper_encoder)
            self.decoders.append(upper_decoder)
            self.sizes.append(upper_dim)
        self.likelihood, self.k, self.estimator = likelihood, k, estimator
        self.latent_dim = self.sizes[-1]  # of the top layer, the one that `noise` draws
        self.add_player("iwae", [self.encoders, self.decoders, likelihood], "optimizer")
        self.oppose(adversary)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias at the mean sample, as the authors' code does."""
        x = torch.cat([next(batches).x for _ in range(8)])
        start_output_bias(self.decoders[0], self.likelihood.visible_bias(x))

    # ------------------------------------------------------------------------------------------------ the two models

    def posterior(self, layer: int, below: Tensor) -> DiagonalGaussian:
        """q(z_1 | x) for layer 0, q(z_2 | z_1) for layer 1, [..., Z], given the layer below, [..., *shape]."""
        return _gaussian(self.encoders[layer], below) if layer else _split(self.encoders[0](below))

    def draw(self, x: Tensor, eps: Tensor) -> tuple[list[Tensor], list[DiagonalGaussian]]:
        """Draws [k, N, Z] of each layer's latents, the lowest first, and their distributions."""
        noise = eps.split(self.sizes, dim=-1)
        families = [self.posterior(0, x)]
        latents = [families[0].rsample(noise[0])]
        if len(self.sizes) == 2:
            families.append(self.posterior(1, latents[0]))
            latents.append(families[1].rsample(noise[1]))
        return latents, families

    def log_p_latents(self, latents: list[Tensor]) -> Tensor:
        """log p(z_2) + log p(z_1 | z_2), or with one layer log p(z_1), [...], of latents [..., Z]."""
        top = log_standard_normal(latents[-1])
        if len(latents) == 1:
            return top
        return top + self.below(latents[1]).log_prob(latents[0])

    def below(self, upper: Tensor) -> DiagonalGaussian:
        """p(z_1 | z_2), [..., Z_1], given z_2 [..., Z_2]."""
        return _gaussian(self.decoders[1], upper)

    def log_weights(self, x: Tensor, latents: list[Tensor], families: list[DiagonalGaussian]) -> Tensor:
        """log w = log p(x, z) - log q(z | x), [k, N]."""
        k = len(latents[0])
        repeated = x.unsqueeze(0).expand(k, *x.shape).flatten(0, 1)
        raw = self.decoders[0](latents[0].flatten(0, 1))
        log_p = self.likelihood.log_prob(repeated, raw).unflatten(0, (k, len(x))) + self.log_p_latents(latents)
        return log_p - torch.stack([q.log_prob(z) for q, z in zip(families, latents, strict=True)]).sum(dim=0)

    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """E[x | z_1] of N draws from p, for samples x [N, ...]."""
        return self.likelihood.mean(self.decoders[0](self.from_prior(len(x), None)[0]))

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss`, `bound` (L_k), `elbo` (L_1) and `ess`, the effective number of draws."""
        eps = self.randn(len(x), self.k, sum(self.sizes), rng=rng).transpose(0, 1)
        latents, families = self.draw(x, eps)
        if self.estimator == "dreg":  # gradients reach q's parameters only through the draws
            families = [q.detached() for q in families]
        log_w = self.log_weights(x, latents, families)
        bound = (log_w.logsumexp(dim=0) - math.log(self.k)).mean()
        elbo, share = log_w.mean(), log_w.detach().softmax(dim=0)
        loss = -elbo if self.estimator == "vae" else -bound
        if self.estimator == "dreg":
            # The gradient of p is sum_i share_i d log w_i; that of draw i is weighted by share_i once more.
            loss = -(share * log_w).sum(dim=0).mean()
            if latents[0].requires_grad:
                latents[0].register_hook(lambda gradient: share.unsqueeze(-1) * gradient)
        return {"loss": loss, "bound": bound, "elbo": elbo, "ess": (1 / share.square().sum(dim=0)).mean()}

    # -------------------------------------------------------------------------------------------------- capabilities

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws latents from the prior, layer by layer, and returns E[x | z_1], [n, ...]."""
        return self.likelihood.shown(self.decoders[0](self.from_prior(n, rng)[0]), rng)

    def from_prior(self, n: int, rng: torch.Generator | None) -> list[Tensor]:
        """Draws [n, ...] of all layers' latents from p, the lowest first."""
        z = self.noise(n, rng)
        if len(self.sizes) == 1:
            return [z]
        return [self.below(z).rsample(self.randn(n, self.sizes[0], rng=rng)), z]

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean [N, latent_dim] of the top layer, at the posterior means of the layers below."""
        for layer in range(len(self.sizes)):
            x = self.posterior(layer, x).mean
        return x

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z_1] of the top layer's latents [N, latent_dim]; with two layers z_1 is the mean of p(z_1 | z_2)."""
        if len(self.sizes) == 2:
            z = self.below(z).mean
        return self.likelihood.mean(self.decoders[0](z))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z_1] at the posterior mean of each sample."""
        return self.likelihood.mean(self.decoders[0](self.posterior(0, x).mean))

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), [N] nats, of the latents of all layers [N, sum of their sizes]."""
        latents = list(z.split(self.sizes, dim=-1))
        return self.likelihood.log_prob(x, self.decoders[0](latents[0])) + self.log_p_latents(latents)

    @inference
    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [N] nats, of the latents of all layers."""
        return self.log_p_latents(list(z.split(self.sizes, dim=-1)))

    @inference
    def sample_prior(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """The latents of all layers from p, [n, sum of their sizes], the lowest first."""
        return torch.cat(self.from_prior(n, rng), dim=1)

    @inference
    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """k draws of all layers' latents and their log q: [k, N, sum of sizes] and [k, N] nats."""
        eps = self.randn(k * len(x), sum(self.sizes), rng=rng).unflatten(0, (k, len(x)))
        latents, families = self.draw(x, eps)
        log_q = torch.stack([q.log_prob(z) for q, z in zip(families, latents, strict=True)]).sum(dim=0)
        return torch.cat(latents, dim=-1), log_q

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 8: maximise L_k by stochastic gradients, Eq. 13 and 14."""
        self.play_adversary(batch.x)
        with self.turn("iwae") as iwae:
            terms = self.objective(batch.x)
            iwae.minimise(terms["loss"] + self.deception(batch.x))
        self.record(**terms)


def _check(k: int, estimator: str, upper_parts: int) -> None:
    """Checks `k`, `estimator`, and that a second layer has its 3 parts, of which `upper_parts` are given."""
    if k < 1:
        raise UserError(f"model.k must be at least 1, got {k}.")
    if estimator not in ESTIMATORS:
        raise UserError(f"model.estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}.")
    if upper_parts not in (0, 3):
        raise UserError("A second layer needs model.upper_dim, model.upper_encoder and model.upper_decoder.")
    if estimator == "dreg" and upper_parts:
        raise UserError("model.estimator=dreg is for one stochastic layer. Try model.estimator=iwae.")


def _split(features: Tensor) -> DiagonalGaussian:
    """The Gaussian of features [..., 2 Z]: means, then log-variances."""
    mu, logvar = features.chunk(2, dim=-1)
    return DiagonalGaussian(mu, logvar)


def _gaussian(network: nn.Module, z: Tensor) -> DiagonalGaussian:
    """The Gaussian from a network's output for latents [..., Z], which it takes as rows [M, Z]."""
    return _split(network(z.flatten(0, -2)).unflatten(0, z.shape[:-1]))
