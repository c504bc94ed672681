"""M1+M2: the semi-supervised VAE on the latents of a VAE that is trained before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import GenerativeModel
from genlab.models.ssl_vae import SemiSupervisedVAE
from genlab.networks.init import check_width, start_output_bias
from genlab.networks.priors import first_samples

SEEN = 1000  # samples whose latents decide which of them carry something
LEAST = 0.1  # standard deviation of the posterior means of such a latent


class StackedVAE(SemiSupervisedVAE):
    """M1+M2. Kingma, Rezende, Mohamed & Welling (2014), arXiv:1406.5298, section 3.1: M2 on the latents of M1.

    The first stage, M1, is a VAE that was trained without labels and is frozen. In each batch z_1 is drawn anew from
    its posterior, which makes the data of M2 as many as one likes; where samples are classified or encoded, the mean is
    taken. Latents of M1 whose means hardly vary over the samples are left out, as in the authors' code. A sample is
    y, z_2 -> z_1 -> x. No bound on log p(x) follows from M2's on log p(z_1).
    """

    # Densities of z_1 are none of x.
    log_joint = log_prior = sample_prior = sample_posterior = None  # type: ignore[assignment]
    first_stage: Any  # a model with `posterior` and `decode`
    kept: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        recognition: nn.Module,
        classifier: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        classes: int | None,
        encoder_features: int,
        first_stage: GenerativeModel,
        bound_weight: float = 1.0,
        label_weight: float = 1.0,
        labelled_share: float | None = None,
    ) -> None:
        """Joins the networks of M2, which read and give latents of M1 in place of samples.

        Args:
            likelihood: p(z_1 | z_2, y), a product over the numbers of z_1.
            latent_dim: Length of z_2.
            encoder_features: Width of M1's encoder, twice the length of z_1.
            first_stage: M1.

        Raises:
            UserError: If M1 has no posterior or no decoder, the likelihood couples numbers, or see `SemiSupervisedVAE`.
        """
        networks, sizes = (encoder, recognition, classifier, decoder, likelihood), (latent_dim, classes)
        super().__init__(*networks, *sizes, encoder_features, bound_weight, label_weight, labelled_share)
        if not callable(getattr(first_stage, "posterior", None)) or not first_stage.can("decode"):
            raise UserError(
                "model=m1_m2 needs a first stage with a posterior and a decoder, not "
                f"{type(first_stage).__name__}. Try first_stage=RUN of model=vae."
            )
        if not likelihood.separable:
            raise UserError("model=m1_m2 needs a likelihood that is a product over the numbers of z_1.")
        check_width(encoder_features, 2 * first_stage.latent_dim)
        self.first_stage = first_stage
        self.register_buffer("kept", torch.ones(first_stage.latent_dim))

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Chooses the latents of M1 that carry something, and starts the decoder's output bias at their moments."""
        q = self.first_stage.posterior(first_samples(batch.x for batch in batches)(SEEN))
        kept = q.mean.std(dim=0) > LEAST
        self.kept.copy_(kept | ~kept.any())  # all of an M1 that learned nothing
        with self.common_draws():
            z_1 = q.draw(self.randn(SEEN, len(self.kept)))[0]
        start_output_bias(self.decoder, self.likelihood.visible_bias(z_1 * self.kept))

    def seen(self, x: Tensor) -> Tensor:
        """z_1 of samples [N, ...]: a draw in training, else the mean; zero where it is left out."""
        with torch.no_grad():
            q = self.first_stage.posterior(x)
            z_1 = q.draw(self.randn(len(x), len(self.kept)))[0] if self.training else q.mean
        return z_1 * self.kept

    def shown(self, raw: Tensor) -> Tensor:
        """M1's samples at E[z_1 | z_2, y]."""
        return self.first_stage.decode(self.likelihood.mean(raw) * self.kept)

    def log_likelihood(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(z_1 | z_2, y) of the latents that are kept, [N] nats."""
        return (self.likelihood.terms(x, raw) * self.kept).sum(dim=1)

    def objective(self, x: Tensor, rng: torch.Generator | None = None, given: Batch | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch, and its terms; there is no bound on log p(x)."""
        terms = super().objective(x, rng, given)
        terms.pop("elbo", None)
        return terms
