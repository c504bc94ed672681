"""The conditional VAE that completes pictures, with a prior that reads the part that is seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_gaussians
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import GenerativeModel, inference
from genlab.networks.init import check_width, start_output_bias
from genlab.networks.posteriors import DiagonalGaussian


class CompletionVAE(GenerativeModel):
    """Conditional VAE of the hidden part of a picture. Sohn, Lee & Yan (2015), NeurIPS, Eq. 4 and 5, section 5.1.

    Given is a picture c of which a part is hidden (`derive=half`, `quadrants`; see `genlab.fields.masked`). Recognition
    network, prior network and decoder are one player, which maximises E_q log p(x_h | z, c) - KL(q(z | x, c) || p(z |
    c)), x_h being the hidden pixels: seen ones are known, and cost nothing. Samples keep the seen pixels as they are.
    """

    tells = ("encoder", "prior_network", "decoder")
    ema_modules = ("encoder", "prior_network", "decoder", "likelihood")
    hidden_share: Tensor

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
        super().__init__()
        check_width(encoder_features, 2 * latent_dim)
        if not likelihood.separable:
            raise UserError(
                "model=cvae_completion scores the hidden pixels alone, and this likelihood couples pixels. Try "
                "likelihood=bernoulli or gaussian."
            )
        self.encoder, self.prior_network, self.decoder, self.likelihood = encoder, prior_network, decoder, likelihood
        self.latent_dim, self.kl_weight = latent_dim, kl_weight
        self.register_buffer("hidden_share", torch.ones(()))
        self.add_player("cvae", [encoder, prior_network, decoder, likelihood])

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

    def posterior(self, x: Tensor, told: Batch) -> DiagonalGaussian:
        """q(z | x, c)."""
        return DiagonalGaussian(*self.encoder(x, told).chunk(2, dim=1))

    def prior(self, told: Batch) -> DiagonalGaussian:
        """p(z | c)."""
        return DiagonalGaussian(*self.prior_network(told).chunk(2, dim=1))

    def completed(self, raw: Tensor, told: Batch) -> Tensor:
        """E[x | z, c]: the decoder's mean where pixels are hidden, the given ones elsewhere."""
        c = told.tensor(self.given[0])
        return torch.where(c[:, -1:] > 0.5, c[:, :-1], self.likelihood.mean(raw))

    def log_hidden(self, x: Tensor, raw: Tensor, told: Batch) -> Tensor:
        """log p(x_h | z, c) of the hidden pixels, [N] nats."""
        return (self.likelihood.terms(x, raw) * (1 - self.seen(told))).flatten(1).sum(dim=1)

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
