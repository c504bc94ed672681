"""The variational autoencoder, with a choice of likelihood, prior, posterior and KL term."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal_terms
from genlab.losses.kl import Constant, KLTerm
from genlab.losses.likelihoods import Likelihood
from genlab.models.adversary import Opponent, Opposable
from genlab.models.base import inference
from genlab.networks.init import check_width, start_output_bias
from genlab.networks.posteriors import Diagonal, DiagonalGaussian, FlowedGaussian, Posterior, log_standard_normal
from genlab.networks.priors import Prior, StandardNormal, first_samples


class VAE(Opposable):
    """Variational autoencoder. Kingma & Welling (2014), arXiv:1312.6114, Eq. 7 with L = 1.

    Encoder, decoder and the parameters of likelihood, prior and posterior are one player, which maximises the evidence
    lower bound (ELBO).
    """

    tells: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    ema_modules = ("encoder", "decoder", "likelihood", "prior", "family")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        encoder_features: int,
        kl_weight: float = 1.0,
        kl: KLTerm | None = None,
        prior: Prior | None = None,
        posterior: Posterior | None = None,
        adversary: Opponent | None = None,
    ) -> None:
        """Joins encoder and decoder.

        Args:
            kl_weight: beta of Higgins et al. (2017); 1 is the VAE. The recorded `elbo` always has weight 1.
            kl: The KL term of the objective, before `kl_weight`; the mean KL unless given.
            prior: p(z); standard normal unless given.
            posterior: The family of q(z | x); a diagonal Gaussian unless given.

        Raises:
            UserError: If the encoder's width does not fit the posterior, prior and posterior do not fit each other, the
                posterior has no density, or an adversary would get no gradient.
        """
        super().__init__()
        self.prior, self.kl = prior or StandardNormal(), kl or Constant()
        self.family = posterior or Diagonal(latent_dim, encoder_features)
        check_width(encoder_features, self.family.features)
        if self.prior.mixes_posteriors and not self.family.diagonal:
            raise UserError("prior=vamp needs posterior=diagonal: other densities are known only at their own draws.")
        if not self.family.density:
            raise UserError("This posterior has no density and no KL. Try posterior=diagonal, or model=autoencoder.")
        if adversary is not None and not likelihood.differentiable:
            raise UserError(
                "adversary=gan needs samples with a gradient; likelihood=pixelcnn has none. Try likelihood=bernoulli."
            )
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.kl_weight = latent_dim, kl_weight
        self.add_player("vae", [encoder, decoder, likelihood, self.prior, self.family], "optimizer")
        self.oppose(adversary)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias at the mean sample, and the prior from the first samples.

        Burda et al. (2016) start the bias this way; otherwise the first epochs learn little else.
        """
        if self.given and self.prior.mixes_posteriors:
            raise UserError("prior=vamp has posteriors of pictures of its own, which have no condition. Try prior=maf.")
        first = [next(batches).x for _ in range(8)]
        start_output_bias(self.decoder, self.likelihood.visible_bias(torch.cat(first)))
        self.prior.initialise(first_samples(chain(first, (batch.x for batch in batches))))

    def posterior(self, x: Tensor, *told: Batch) -> DiagonalGaussian | FlowedGaussian:
        """q(z | x) of samples [N, ...]; of a model that is given columns q(z | x, c)."""
        return self.family(self.encoder(x, *told))

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents from the prior, [n, latent_dim]."""
        return self.prior.draw(self.randn(n, self.latent_dim + self.prior.extra, rng=rng), self.posterior)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws z from the prior and gives E[x | z] (autoregressive: draws x | z), [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng), *self.told(given)), rng)

    @inference
    def encode(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The posterior mean [N, latent_dim] of samples [N, ...]."""
        return self.posterior(x, *self.told(given)).mean

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """E[x | z] of latents [N, latent_dim], in the range of the data."""
        return self.likelihood.mean(self.decoder(z, *self.told(given)))

    @inference
    def reconstruct(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """E[x | z] at the posterior mean of each sample."""
        told = self.told(given)
        return self.likelihood.mean(self.decoder(self.posterior(x, *told).mean, *told))

    @inference
    def log_joint(self, x: Tensor, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(x, z) = log p(x | z) + log p(z), [N] nats."""
        return self.likelihood.log_prob(x, self.decoder(z, *self.told(given))) + self.prior.log_prob(z, self.posterior)

    @inference
    def log_prior(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(z), [N] nats."""
        return self.prior.log_prob(z, self.posterior)

    @inference
    def sample_prior(self, n: int, rng: torch.Generator | None = None, given: Batch | None = None) -> Tensor:
        """z ~ p(z), [n, latent_dim]."""
        return self.noise(n, rng)

    @inference
    def sample_posterior(
        self, x: Tensor, k: int = 1, rng: torch.Generator | None = None, given: Batch | None = None
    ) -> tuple[Tensor, Tensor]:
        """k draws z ~ q(z | x) for each sample and their log q(z | x): [k, N, latent_dim] and [k, N] nats."""
        eps = self.randn(k * len(x), self.latent_dim, rng=rng).unflatten(0, (k, len(x)))
        return self.posterior(x, *self.told(given)).draw(eps)

    def draw(self, x: Tensor, rng: torch.Generator | None, *told: Batch) -> tuple[Tensor, Tensor]:
        """One z ~ q(z | x) for each sample, and KL(q(z | x) || p(z)): [N, latent_dim] and terms [N, G] in nats.

        Between a diagonal Gaussian and N(0, I) the KL has a closed form, one term per latent. Otherwise it is one term:
        the closed form for the posterior's Gaussian base z_0, plus the rest at the draw, log q(z) - log q_0(z_0) +
        log N(z_0; 0, I) - log p(z). Its mean is that of log q(z) - log p(z), its gradients are far less noisy.
        """
        q, eps = self.posterior(x, *told), self.randn(len(x), self.latent_dim, rng=rng)
        base = q if isinstance(q, DiagonalGaussian) else q.base
        closed = kl_standard_normal_terms(base.mu, base.logvar)
        if self.prior.standard and base is q:
            return q.rsample(eps), closed
        (z_0, log_q_0), (z, log_q) = base.draw(eps), q.draw(eps)
        rest = (log_q - log_q_0) + (log_standard_normal(z_0) - self.prior.log_prob(z, self.posterior))
        return z, (closed.sum(dim=1) + rest).unsqueeze(1)

    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """E[x | z] of N draws from the prior, for samples x [N, ...]."""
        return self.likelihood.mean(self.decoder(self.noise(len(x)), *told))

    def objective(self, x: Tensor, rng: torch.Generator | None = None, given: Batch | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch, its terms, and `elbo`, the bound on log p(x)."""
        told = self.told(given)
        z, kl = self.draw(x, rng, *told)
        recon = -self.likelihood.log_prob(x, self.decoder(z, *told)).mean()
        whole = self.gathered(kl) if self.training and self.kl.whole_batch else kl
        kl_term = self.kl_weight * self.kl(whole, self.iteration)
        kl = kl.sum(dim=1).mean()
        return {"loss": recon + kl_term, "recon": recon, "kl": kl, "elbo": -(recon + kl)}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 7: minimise -E_q log p(x | z) + beta KL(q(z | x) || p(z)), with z = mu + sigma eps."""
        told = self.told(batch)
        self.play_adversary(batch.x, *told)
        with self.turn("vae") as vae:
            terms = self.objective(batch.x, given=batch)
            vae.minimise(terms["loss"] + self.deception(batch.x, *told))
        self.record(**terms)
