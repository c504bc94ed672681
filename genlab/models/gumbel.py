"""The variational autoencoder with categorical latents, by the Gumbel-softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_uniform_categorical
from genlab.losses.likelihoods import Likelihood
from genlab.models.adversary import Opponent, Opposable
from genlab.models.base import inference
from genlab.networks.init import check_width, start_output_bias


class CategoricalVAE(Opposable):
    """Categorical VAE. Jang, Gu & Poole (2017), arXiv:1611.01144; Maddison, Mnih & Teh (2017), arXiv:1611.00712.

    q(z | x) is `variables` independent categoricals of `classes` classes each, p(z) is uniform. A latent is their
    one-hot vectors side by side, latent_dim = variables * classes. Training draws relaxed one-hot vectors
    softmax((log pi + g) / tau) with Gumbel noise g, but the KL is that of the categoricals: the objective, recorded as
    `relaxed`, is not a bound on log p(x). `elbo`, from hard draws, is one.

    The temperature is tau = max(min_temperature, start_temperature exp(-annealing_rate t)); t is the iteration, rounded
    down to a multiple of `anneal_every`.
    """

    ema_modules = ("encoder", "decoder", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        variables: int,
        classes: int,
        latent_dim: int,
        start_temperature: float = 1.0,
        min_temperature: float = 0.5,
        annealing_rate: float = 3e-5,
        anneal_every: int = 1000,
        straight_through: bool = False,
        encoder_features: int | None = None,
        adversary: Opponent | None = None,
    ) -> None:
        """Joins encoder and decoder.

        Args:
            encoder: Maps samples [N, ...] to logits [N, latent_dim].
            straight_through: Whether the decoder gets hard draws, with the gradient of the relaxed ones.

        Raises:
            UserError: If a size or a temperature is out of its range, or the widths do not fit.
        """
        super().__init__()
        _check_sizes(variables, classes, latent_dim)
        check_width(encoder_features or latent_dim, latent_dim)
        if min(start_temperature, min_temperature) <= 0 or annealing_rate < 0 or anneal_every < 1:
            raise UserError("Temperatures must be positive, the rate at least 0 and model.anneal_every at least 1.")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.variables, self.classes, self.latent_dim = variables, classes, latent_dim
        self.one_hot_latents = tuple(range(i, i + classes) for i in range(0, latent_dim, classes))
        self.start_temperature, self.min_temperature = start_temperature, min_temperature
        self.annealing_rate, self.anneal_every, self.straight_through = annealing_rate, anneal_every, straight_through
        self.add_player("vae", [encoder, decoder, likelihood], "optimizer")
        self.oppose(adversary)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the decoder's output bias at the mean sample."""
        x = torch.cat([next(batches).x for _ in range(8)])
        start_output_bias(self.decoder, self.likelihood.visible_bias(x))

    @property
    def temperature(self) -> float:
        """tau of this iteration."""
        t = self.iteration // self.anneal_every * self.anneal_every
        return max(self.min_temperature, self.start_temperature * math.exp(-self.annealing_rate * t))

    def logits(self, x: Tensor) -> Tensor:
        """log pi, [N, variables, classes]."""
        return self.encoder(x).unflatten(1, (self.variables, self.classes)).log_softmax(dim=2)

    def gumbel(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Standard Gumbel noise, [n, variables, classes]."""
        uniform = self.rand(n, self.variables, self.classes, rng=rng).clamp(1e-20, 1 - 1e-7)
        return -(-uniform.log()).log()

    def one_hot(self, scores: Tensor) -> Tensor:
        """The one-hot vectors [..., latent_dim] of each variable's argmax, from scores [..., variables, classes]."""
        return F.one_hot(scores.argmax(dim=-1), self.classes).to(scores.dtype).flatten(-2)

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """One-hot vectors from the uniform prior, [n, latent_dim]."""
        return self.one_hot(self.gumbel(n, rng))

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws z from the prior and gives E[x | z], [n, ...]."""
        return self.likelihood.shown(self.decoder(self.noise(n, rng)), rng)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean of samples: probabilities [N, latent_dim]."""
        return self.logits(x).exp().flatten(1)

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z] of one-hot vectors (or probabilities) [N, latent_dim]."""
        return self.likelihood.mean(self.decoder(z))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the most probable z of each sample."""
        return self.likelihood.mean(self.decoder(self.one_hot(self.logits(x))))

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) of one-hot z, [N] nats."""
        return self.likelihood.log_prob(x, self.decoder(z)) + self.log_prior(z)

    @inference
    def log_prior(self, z: Tensor) -> Tensor:
        """-variables log classes, [N] nats."""
        return z.new_full(z.shape[:-1], -self.variables * math.log(self.classes))

    @inference
    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """k hard draws z ~ q(z | x) for each sample and their log q(z | x): [k, N, latent_dim] and [k, N] nats."""
        log_pi = self.logits(x)
        z = self.one_hot(log_pi + self.gumbel(k * len(x), rng).unflatten(0, (k, len(x))))
        return z, (z * log_pi.flatten(1)).sum(dim=-1)

    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """E[x | z] of N draws from the prior, for samples x [N, ...]."""
        return self.likelihood.mean(self.decoder(self.noise(len(x))))

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss` and its terms; `relaxed` is -loss. In eval mode and in logged iterations also `elbo`."""
        log_pi, gumbel = self.logits(x), self.gumbel(len(x), rng)
        z = ((log_pi + gumbel) / self.temperature).softmax(dim=2).flatten(1)
        hard = self.one_hot(log_pi + gumbel)
        if self.straight_through:
            z = hard + z - z.detach()
        recon = -self.likelihood.log_prob(x, self.decoder(z)).mean()
        kl = kl_uniform_categorical(log_pi).sum(dim=1).mean()
        terms = {"loss": recon + kl, "relaxed": -(recon + kl), "recon": recon, "kl": kl}
        if not self.training or self.logging:
            with torch.no_grad():
                terms["elbo"] = self.likelihood.log_prob(x, self.decoder(hard)).mean() - kl
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Section 3: minimise -E log p(x | z) + KL(q(z | x) || p(z)), z relaxed at temperature tau."""
        self.play_adversary(batch.x)
        with self.turn("vae") as vae:
            terms = self.objective(batch.x)
            vae.minimise(terms["loss"] + self.deception(batch.x))
        self.record(temperature=self.temperature, **terms)


def _check_sizes(variables: int, classes: int, latent_dim: int) -> None:
    """Checks the ranges of the sizes, and that the one-hot vectors fill a latent."""
    if variables < 1 or classes < 2:
        raise UserError(f"model.variables must be at least 1 and model.classes at least 2, got {variables}, {classes}.")
    if latent_dim != variables * classes:
        raise UserError(f"model.latent_dim must be variables * classes = {variables * classes}, got {latent_dim}.")
