"""The conditional VAE that completes pictures, with a prior that reads the part that is seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.divergences import kl_gaussians
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Completing
from genlab.networks.init import check_width
from genlab.networks.posteriors import DiagonalGaussian


class CompletionVAE(Completing):
    """Conditional VAE of the hidden part of a picture. Sohn, Lee & Yan (2015), NeurIPS, Eq. 4 and 5, section 5.1.

    Given is a picture c of which a part is hidden. Recognition network, prior network and decoder are one player, which
    maximises E_q log p(x_h | z, c) - KL(q(z | x, c) || p(z | c)), x_h being the hidden pixels.
    """

    tells = ("encoder", "prior_network", "decoder")
    ema_modules = ("encoder", "prior_network", "decoder", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        prior_network: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        encoder_features: int,
        kl_weight: float = 1.0,
    ) -> None:
        """Joins the networks.

        Args:
            encoder: The recognition network: maps pictures, told c, to mean and log-variance of q(z | x, c).
            prior_network: Maps c to mean and log-variance of p(z | c).
            kl_weight: Weight of the KL; the recorded `elbo` always has weight 1.

        Raises:
            UserError: If the encoder's width is not 2 latent_dim, or the likelihood has no terms of single pixels.
        """
        super().__init__(likelihood)
        check_width(encoder_features, 2 * latent_dim)
        self.encoder, self.prior_network, self.decoder, self.likelihood = encoder, prior_network, decoder, likelihood
        self.latent_dim, self.kl_weight = latent_dim, kl_weight
        self.add_player("cvae", [encoder, prior_network, decoder, likelihood])

    def posterior(self, x: Tensor, told: Batch) -> DiagonalGaussian:
        """q(z | x, c)."""
        return DiagonalGaussian(*self.encoder(x, told).chunk(2, dim=1))

    def prior(self, told: Batch) -> DiagonalGaussian:
        """p(z | c)."""
        return DiagonalGaussian(*self.prior_network(told).chunk(2, dim=1))

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Completions [n, C, H, W] of the given parts: z ~ p(z | c), E[x | z, c]."""
        (told,) = self.told(given)
        z = self.prior(told).rsample(self.randn(n, self.latent_dim, rng=rng))
        return self.completed(self.decoder(z, told), told)

    @inference
    def encode(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """The mean of q(z | x, c), [N, latent_dim]."""
        return self.posterior(x, *self.told(given)).mu

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """Completions of the given parts at latents [N, latent_dim]."""
        (told,) = self.told(given)
        return self.completed(self.decoder(z, told), told)

    @inference
    def reconstruct(self, x: Tensor, given: Batch | None = None) -> Tensor:
        """Completions at the mean of q(z | x, c)."""
        (told,) = self.told(given)
        return self.completed(self.decoder(self.posterior(x, told).mu, told), told)

    @inference
    def log_joint(self, x: Tensor, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(x_h, z | c), [N] nats."""
        (told,) = self.told(given)
        return self.log_hidden(x, self.decoder(z, told), told) + self.prior(told).log_prob(z)

    @inference
    def log_prior(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(z | c), [N] nats."""
        return self.prior(*self.told(given)).log_prob(z)

    @inference
    def sample_prior(self, n: int, rng: torch.Generator | None = None, given: Batch | None = None) -> Tensor:
        """z ~ p(z | c), [n, latent_dim]."""
        return self.prior(*self.told(given)).rsample(self.randn(n, self.latent_dim, rng=rng))

    @inference
    def sample_posterior(
        self, x: Tensor, k: int = 1, rng: torch.Generator | None = None, given: Batch | None = None
    ) -> tuple[Tensor, Tensor]:
        """k draws z ~ q(z | x, c) for each sample and their log q: [k, N, latent_dim] and [k, N] nats."""
        eps = self.randn(k * len(x), self.latent_dim, rng=rng).unflatten(0, (k, len(x)))
        return self.posterior(x, *self.told(given)).draw(eps)

    def objective(self, x: Tensor, rng: torch.Generator | None = None, given: Batch | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch, its terms, and `elbo`, the bound on log p(x_h | c)."""
        (told,) = self.told(given)
        q = self.posterior(x, told)
        z = q.rsample(self.randn(len(x), self.latent_dim, rng=rng))
        recon = -self.log_hidden(x, self.decoder(z, told), told).mean()
        kl = kl_gaussians(*q, *self.prior(told)).mean()
        return {"loss": recon + self.kl_weight * kl, "recon": recon, "kl": kl, "elbo": -(recon + kl)}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 5: minimise -E_q log p(x_h | z, c) + KL(q(z | x, c) || p(z | c))."""
        with self.turn("cvae") as cvae:
            terms = self.objective(batch.x, given=batch)
            cvae.minimise(terms["loss"])
        self.record(**terms)
