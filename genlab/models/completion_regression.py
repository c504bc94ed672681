"""The regression that completes pictures: the completing conditional VAE without its latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import inference
from genlab.models.capabilities import Completing


class CompletionRegression(Completing):
    """Regression of the hidden part of a picture on the seen one: the baseline of Sohn, Lee & Yan (2015), section 5.1.

    The networks are those of `CompletionVAE` but for the recognition network; the decoder is told the seen part c and
    reads a code of it in place of a draw. All hidden pixels are independent given c, so that every sample of one c is
    the same, and log p(x_h | c) is exact. To measures it is a model whose latent has no numbers.
    """

    tells = ("encoder", "decoder")
    ema_modules = ("encoder", "decoder", "likelihood")
    posterior_draws = 1  # there is nothing to draw

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, latent_dim: int) -> None:
        """Joins the networks.

        Args:
            encoder: Maps c to codes [N, latent_dim].
            latent_dim: Width of the code.
        """
        super().__init__(likelihood)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim = latent_dim
        self.add_player("regression", [encoder, decoder, likelihood])

    def raw(self, told: Batch) -> Tensor:
        """The decoder's outputs for the seen parts."""
        return self.decoder(self.encoder(told), told)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """E[x | c], the completions [n, C, H, W] of the given parts; nothing is drawn."""
        (told,) = self.told(given)
        return self.completed(self.raw(told), told)

    @inference
    def log_joint(self, x: Tensor, z: Tensor, given: Batch | None = None) -> Tensor:
        """log p(x_h | c), [N] nats; z is [N, 0]."""
        (told,) = self.told(given)
        return self.log_hidden(x, self.raw(told), told)

    @inference
    def log_prior(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """0, the log-probability of the only latent, [N]."""
        return z.new_zeros(len(z))

    @inference
    def sample_posterior(
        self, x: Tensor, k: int = 1, rng: torch.Generator | None = None, given: Batch | None = None
    ) -> tuple[Tensor, Tensor]:
        """The only latent, [k, N, 0], and its log-probability 0, [k, N]."""
        return x.new_zeros(k, len(x), 0), x.new_zeros(k, len(x))

    def objective(self, x: Tensor, rng: torch.Generator | None = None, given: Batch | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch, and `elbo`, which is log p(x_h | c) itself."""
        (told,) = self.told(given)
        loss = -self.log_hidden(x, self.raw(told), told).mean()
        return {"loss": loss, "elbo": -loss}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -log p(x_h | c)."""
        with self.turn("regression") as regression:
            terms = self.objective(batch.x, given=batch)
            regression.minimise(terms["loss"])
        self.record(**terms)
