"""The deep autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.losses.likelihoods import Likelihood
from genlab.models.capabilities import Coding


class Autoencoder(Coding):
    """Deep autoencoder. Hinton & Salakhutdinov (2006), Science 313, without the pre-training of their networks.

    The reconstruction error is -log p(x | code) of a likelihood: squared error for a Gaussian, cross-entropy for a
    Bernoulli. There is no prior on codes: to draw samples, fit one (`sampler=gmm`, `sampler=flow`).
    """

    ema_modules = ("encoder", "decoder", "likelihood")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        encoder_features: int | None = None,
    ) -> None:
        """Joins encoder and decoder.

        Args:
            encoder: Maps samples [N, ...] to codes [N, latent_dim].
            decoder: Maps codes to raw outputs, as the likelihood wants them.
            likelihood: What the raw outputs mean.
            latent_dim: Length of a code.
            encoder_features: Width of the encoder's output, which the networks ask for.

        Raises:
            ValueError: If the encoder's output has another width.
        """
        super().__init__()
        if encoder_features not in (None, latent_dim):
            raise ValueError(f"model.encoder_features must be latent_dim = {latent_dim}, not {encoder_features}.")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim = latent_dim
        self.add_player("autoencoder", [encoder, decoder, likelihood], "optimizer")

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The reconstruction error, `loss`, in nats, and the squared one; both summed over a sample."""
        raw = self.decoder(self.encoder(x))
        squared = (self.likelihood.mean(raw) - x).square().flatten(1).sum(dim=1)
        return {"loss": -self.likelihood.log_prob(x, raw).mean(), "squared_error": squared.mean()}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -log p(x | encoder(x))."""
        with self.turn("autoencoder") as autoencoder:
            terms = self.objective(batch.x)
            autoencoder.minimise(terms["loss"])
        self.record(**terms)
