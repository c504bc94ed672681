"""The denoising autoencoder, and the Markov chain of its samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Coding
from genlab.networks.init import check_width

CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper")
DARK = -1.0  # value of a masked pixel


class DenoisingAutoencoder(Coding):
    """Denoising autoencoder. Vincent et al. (2010), JMLR 11; sampled as in Bengio et al. (2013), arXiv:1305.6663.

    The clean sample is predicted from a corrupted one: minimise -log p(x | encoder(x~)), x~ ~ C(x~ | x). The stationary
    distribution of the chain x~ ~ C(. | x), x ~ p(. | encoder(x~)) is then (nearly) that of the data, Bengio et al.,
    Theorem 1. Their walkback training is left out.
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
            corruption: "gaussian" noise, "masking" (a share of the numbers is set to -1, black), or "salt_and_pepper"
                (to -1 or 1).
            level: Standard deviation of the noise, or the share.
            chain_steps: Steps of the chain that draws samples.

        Raises:
            UserError: If an argument is out of its range, or the encoder's width is not `latent_dim`.
        """
        super().__init__()
        _check(corruption, level, chain_steps)
        if encoder_features is not None:
            check_width(encoder_features, latent_dim)
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
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """E[x | encoder(x~)] at step `chain_steps` of n chains that start from uniform noise, [n, ...]."""
        assert rng is not None  # set by `inference`
        x = 2 * self.rand(n, *self.spec.shape, rng=rng) - 1
        for _ in range(self.chain_steps):
            raw = self.decoder(self.encoder(self.corrupt(x, rng)))
            x = self.likelihood.sample(raw, rng)
        return self.likelihood.mean(raw)

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """`loss` = -log p(x | encoder(x~)) in nats, and the squared error against the clean sample."""
        raw = self.decoder(self.encoder(self.corrupt(x, rng)))
        squared = (self.likelihood.mean(raw) - x).square().flatten(1).sum(dim=1)
        return {"loss": -self.likelihood.log_prob(x, raw).mean(), "squared_error": squared.mean()}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -log p(x | encoder(x~)) of the clean x given a corrupted x~."""
        with self.turn("autoencoder") as autoencoder:
            terms = self.objective(batch.x)
            autoencoder.minimise(terms["loss"])
        self.record(**terms)


def _check(corruption: str, level: float, chain_steps: int) -> None:
    """Checks the range of each argument."""
    if corruption not in CORRUPTIONS:
        raise UserError(f"model.corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}.")
    if level < 0 or (corruption != "gaussian" and level > 1):
        raise UserError(f"model.level must be at least 0, and at most 1 if it is a share, got {level}.")
    if chain_steps < 1:
        raise UserError(f"model.chain_steps must be at least 1, got {chain_steps}.")
