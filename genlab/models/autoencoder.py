"""The deep autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.likelihoods import Likelihood
from genlab.models.capabilities import Coding
from genlab.networks.init import check_width


class Autoencoder(Coding):
    """Deep autoencoder. Hinton & Salakhutdinov (2006), Science 313, without their pre-training.

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

        Raises:
            UserError: If the encoder's width is not `latent_dim`.
        """
        super().__init__()
        if encoder_features is not None:
            check_width(encoder_features, latent_dim)
        self.encoder, self.decoder, self.likelihood, self.latent_dim = encoder, decoder, likelihood, latent_dim
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
