"""The contractive autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.contraction import squared_jacobian
from genlab.losses.likelihoods import Likelihood
from genlab.models.base import GenerativeModel, inference


class ContractiveAutoencoder(GenerativeModel):
    """Contractive autoencoder. Rifai, Vincent, Muller, Glorot & Bengio (2011), ICML.

    Minimise -log p(x | f(x)) + lambda || J_f(x) ||_F^2 with the encoder's Jacobian J_f. The norm is exact: in closed
    form if the network has `squared_jacobian`, else by one backward pass per dimension of the code.
    """

    ema_modules = ("autoencoder", "likelihood")
    autoencoder: Any  # a network with `encode` and `decode`

    def __init__(
        self, autoencoder: nn.Module, likelihood: Likelihood, code_dim: int, contraction_weight: float = 0.1
    ) -> None:
        """Joins autoencoder and likelihood.

        Args:
            autoencoder: Has `encode`, [N, ...] to [N, code_dim], and `decode`, to raw outputs; no batch norm, which
                couples the samples of a batch.
            contraction_weight: lambda, at least 0.

        Raises:
            UserError: If the weight is negative, or the network has batch norm.
        """
        super().__init__()
        if contraction_weight < 0:
            raise UserError(f"model.contraction_weight must be at least 0, got {contraction_weight}.")
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in autoencoder.modules()):
            raise UserError("model=contractive needs a network that does not couple samples. Try network.norm=none.")
        self.autoencoder, self.likelihood = autoencoder, likelihood
        self.latent_dim, self.contraction_weight = code_dim, contraction_weight
        self.add_player("autoencoder", [autoencoder, likelihood], "optimizer")

    def contraction(self, x: Tensor) -> Tensor:
        """|| J_f(x) ||_F^2 of each sample, [N]."""
        closed = getattr(self.autoencoder, "squared_jacobian", None)
        return closed(x) if closed is not None else squared_jacobian(self.autoencoder.encode, x)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, code_dim] of samples [N, ...]."""
        return self.autoencoder.encode(x)

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """E[x | code], in the range of the data."""
        return self.likelihood.mean(self.autoencoder.decode(z))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | code] of each sample's code."""
        return self.likelihood.mean(self.autoencoder.decode(self.autoencoder.encode(x)))

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The penalised reconstruction error, `loss`, and its terms, means over the batch."""
        raw = self.autoencoder.decode(self.autoencoder.encode(x))
        recon = -self.likelihood.log_prob(x, raw).mean()
        contraction = self.contraction(x).mean()
        squared = (self.likelihood.mean(raw) - x).square().flatten(1).sum(dim=1).mean()
        loss = recon + self.contraction_weight * contraction
        return {"loss": loss, "recon": recon, "contraction": contraction, "squared_error": squared}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 4: minimise -log p(x | f(x)) + lambda || J_f(x) ||_F^2."""
        with self.turn("autoencoder") as autoencoder:
            terms = self.objective(batch.x)
            autoencoder.minimise(terms["loss"])
        self.record(**terms)
