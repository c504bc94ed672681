"""The denoising autoencoder, and the Markov chain that draws from it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding

CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper")
DARK = -1.0  # what a masked pixel shows


class DenoisingAutoencoder(Coding):
    """Denoising autoencoder. Vincent et al. (2010), JMLR 11; drawn from as in Bengio et al. (2013), arXiv:1305.6663.

    The clean sample is predicted from a corrupted one: minimise -log p(x | encoder(x~)), x~ ~ C(x~ | x). The chain
    x~ ~ C(. | x), x ~ p(. | encoder(x~)) then has (nearly) the data's law, Bengio et al., Theorem 1. Their walkback
    training is not here.
    """

    ema_modules = ("encoder", "decoder", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        corruption: Literal["gaussian", "masking", "salt_and_pepper"] = "masking",
        level: float = 0.25,
        chain_steps: int = 100,
        encoder_features: int | None = None,
    ) -> None:
        """Joins encoder and decoder.

        Args:
            encoder: Maps samples [N, ...] to codes [N, latent_dim].
            decoder: Maps codes to raw outputs, as the likelihood wants them.
            likelihood: What the raw outputs mean.
            latent_dim: Length of a code.
            corruption: "gaussian" noise, "masking" (a share of the numbers is set to -1, black), or "salt_and_pepper"
                (to -1 or 1).
            level: The noise's standard deviation, or the share of numbers.
            chain_steps: Steps of the chain that draws samples.
            encoder_features: Width of the encoder's output, which the networks ask for.

        Raises:
            UserError: If the corruption, its level or the chain's length is not allowed.
            ValueError: If the encoder's output has another width.
        """
        super().__init__()
        if corruption not in CORRUPTIONS:
            raise UserError(f"model.corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}.")
        if level < 0 or (corruption != "gaussian" and level > 1):
            raise UserError(f"model.level must be at least 0, and at most 1 where it is a share, got {level}.")
        if chain_steps < 1:
            raise UserError(f"model.chain_steps must be at least 1, got {chain_steps}.")
        if encoder_features not in (None, latent_dim):
            raise ValueError(f"model.encoder_features must be latent_dim = {latent_dim}, not {encoder_features}.")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.corruption, self.level, self.chain_steps = latent_dim, corruption, level, chain_steps
        self.add_player("autoencoder", [encoder, decoder, likelihood], "optimizer")

    def corrupt(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """x~ ~ C(x~ | x), [N, ...]."""
        if self.corruption == "gaussian":
            return x + self.level * self.randn(*x.shape, rng=rng)
        uniform = self.rand(*x.shape, rng=rng)
        if self.corruption == "masking":
            return torch.where(uniform < self.level, torch.full_like(x, DARK), x)
        ends = torch.where(uniform < 0.5 * self.level, -torch.ones_like(x), torch.ones_like(x))
        return torch.where(uniform < self.level, ends, x)

    @inference
    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """The means of the last of `chain_steps` steps of n chains, which start at noise, [n, ...]."""
        assert rng is not None  # `inference` sees to it
        x = 2 * self.rand(n, *self.spec.shape, rng=rng) - 1
        for _ in range(self.chain_steps):
            raw = self.decoder(self.encoder(self.corrupt(x, rng)))
            x = self.likelihood.sample(raw, rng)
        return self.likelihood.mean(raw)

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """-log p(x | encoder(x~)), `loss`, in nats, and the squared error of the clean sample's prediction."""
        raw = self.decoder(self.encoder(self.corrupt(x, rng)))
        squared = (self.likelihood.mean(raw) - x).square().flatten(1).sum(dim=1)
        return {"loss": -self.likelihood.log_prob(x, raw).mean(), "squared_error": squared.mean()}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -log p(x | encoder(x~)) of the clean x given a corrupted x~."""
        with self.turn("autoencoder") as autoencoder:
            terms = self.objective(batch.x)
            autoencoder.minimise(terms["loss"])
        self.record(**terms)
