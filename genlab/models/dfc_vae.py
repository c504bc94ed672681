"""The deep feature consistent VAE: reconstructions are compared by the features of a frozen network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.models.base import GenerativeModel, inference
from genlab.models.capabilities import Inferring, NormalPrior
from genlab.networks.init import check_width
from genlab.networks.posteriors import DiagonalGaussian


class DFCVAE(Inferring, NormalPrior):
    """DFC-VAE. Hou, Shen, Sun & Qiu (2017), arXiv:1610.00291, section 3.

    In place of the likelihood stands the squared error of a network's features, the mean over each layer's map, in
    units of the layer's variance over the data: sum_l w / (C_l H_l W_l) |Phi_l(x) - Phi_l(x~)|^2 / var_l. Encoder and
    decoder are one player. The paper's Phi is a VGG that was trained on ImageNet; here it is a first stage, trained on
    the data themselves or another run, and frozen. The objective is no bound on log p(x).
    """

    ema_modules = ("generator", "encoder")
    first_stage: Any  # a model with `layers` and `check_layer`
    variances: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        generator: nn.Module,
        first_stage: GenerativeModel,
        latent_dim: int,
        encoder_features: int,
        feature_layers: Sequence[int],
        feature_weight: float,
        kl_weight: float = 1.0,
    ) -> None:
        """Joins the networks.

        Args:
            generator: The decoder, to images in [-1, 1].
            first_stage: The model with the features Phi.
            feature_layers: The layers l, 1 the first, -1 the last before the head.
            feature_weight: w, of each layer.
            kl_weight: Of KL(q(z | x) || N(0, I)) in nats.

        Raises:
            UserError: If a width does not fit, a weight is negative, or the first stage has no such layers.
        """
        super().__init__()
        check_width(encoder_features, 2 * latent_dim)
        if min(feature_weight, kl_weight) < 0:
            raise UserError(
                f"model.feature_weight and model.kl_weight must be at least 0, got {feature_weight}, {kl_weight}."
            )
        if not callable(getattr(first_stage, "layers", None)) or not feature_layers:
            raise UserError(
                "model=dfc_vae compares layers of a network that reads the data, such as a classifier, got "
                f"{type(first_stage).__name__} and feature_layers={list(feature_layers)}."
            )
        self.encoder, self.generator, self.first_stage = encoder, generator, first_stage
        for layer in feature_layers:
            self.first_stage.check_layer(layer)
        self.latent_dim, self.feature_layers = latent_dim, tuple(feature_layers)
        self.feature_weight, self.kl_weight = feature_weight, kl_weight
        self.register_buffer("variances", torch.ones(len(self.feature_layers)))
        self.add_player("vae", [encoder, generator])

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Notes the variance of each layer's outputs over samples, a mean over its map."""
        x = torch.cat([next(batches).x for _ in range(8)])
        found = [phi.var(dim=0, correction=0).mean() for phi in self.first_stage.layers(x, self.feature_layers)]
        self.variances.copy_(torch.stack(found).clamp_min(1e-12))

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x) of samples [N, ...]."""
        return DiagonalGaussian(*self.encoder(x).chunk(2, dim=1))

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean [N, latent_dim] of samples [N, ...]."""
        return self.posterior(x).mean

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoder's image at the posterior mean of each sample."""
        return self.generator(self.posterior(x).mean)

    def dissimilarity(self, x: Tensor, x_recon: Tensor) -> Tensor:
        """The mean squared error of each layer's outputs, in units of its variance, means over a batch: [L]."""
        with torch.no_grad():
            seen = self.first_stage.layers(x, self.feature_layers)
        pairs = zip(seen, self.first_stage.layers(x_recon, self.feature_layers), strict=True)
        return torch.stack([(phi - phi_recon).square().mean() for phi, phi_recon in pairs]) / self.variances

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The minimised `loss` on a batch, its terms, and `pixels`, the mean squared error of pixels."""
        q = self.posterior(x)
        x_recon = self.generator(q.rsample(self.randn(len(x), self.latent_dim, rng=rng)))
        each = self.dissimilarity(x, x_recon)
        kl = kl_standard_normal(*q).mean()
        loss = self.kl_weight * kl + self.feature_weight * each.sum()
        return {"loss": loss, "kl": kl, "features": each.sum(), "pixels": (x - x_recon).square().mean()}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise KL(q(z | x) || p(z)) + sum_l w_l mean |Phi_l(x) - Phi_l(x~)|^2."""
        with self.turn("vae") as vae:
            terms = self.objective(batch.x)
            vae.minimise(terms["loss"])
        self.record(**terms)
