"""A PixelCNN over the fine codes of a hierarchy, given the coarse ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genlab.data.spec import Batch
from genlab.errors import UserError
from genlab.models.base import GenerativeModel, inference
from genlab.networks.pixelcnn import code_lengths, draw_tokens, log_prob_of


class ConditionalPixelCNN(GenerativeModel):
    """p(bottom codes | top codes). Razavi, van den Oord & Vinyals (2019), arXiv:1906.00446, section 3.2, Algorithm 2.

    Its first stage is the prior of the top codes, a `PixelCNN` on a model with codes on two levels (VQ-VAE-2). The
    three together are the generative model: top codes, bottom codes, image. What judges read as a bound is
    log p(x | codes) + log p(bottom | top) + log p(top) at the codes that the encoder gives.
    """

    ema_modules = ("network", "conditioner")
    first_stage: Any
    posterior_draws = 1  # the posterior is one point: more draws would be the same

    def __init__(
        self,
        network: nn.Module,
        conditioner: nn.Module,
        levels: int,
        temperature: float = 1.0,
        first_stage: GenerativeModel | None = None,
    ) -> None:
        """Takes the networks.

        Args:
            network: Maps bottom tokens int64 [N, h, w] and a map [N, C, h, w] to logits [N, levels, h, w], causally.
            conditioner: Maps top tokens int64 [N, h_top, w_top] to that map.
            levels: K of the bottom level.
            temperature: Logits are divided by it when bottom codes are drawn; the top prior has its own.
            first_stage: The trained prior of the top codes.

        Raises:
            UserError: If the first stage is no such prior, or a number does not fit.
        """
        super().__init__()
        if temperature <= 0:
            raise UserError(f"model.temperature must be positive, got {temperature}.")
        codes = getattr(getattr(first_stage, "first_stage", None), "num_bottom_codes", None)
        if codes is None:
            raise UserError(
                "ConditionalPixelCNN needs a first stage that is the PixelCNN of the top codes of a vqvae2. "
                "Try experiment=vqvae2_cifar10, which trains all three."
            )
        if codes != levels:
            raise UserError(f"model.levels must be the number of the bottom codes. Set model.levels={codes}.")
        self.network, self.conditioner, self.first_stage = network, conditioner, first_stage
        self.levels, self.temperature = levels, temperature
        self.add_player("pixelcnn", [network, conditioner], "optimizer")

    @property
    def hierarchy(self) -> Any:
        """The model whose codes on both levels these are."""
        return self.first_stage.first_stage

    @property
    def likelihood(self) -> Any:
        """Its `support` says on which data the figures are likelihoods."""
        return self.hierarchy.likelihood

    def grids(self) -> tuple[torch.Size, torch.Size]:
        """Height and width of the top and of the bottom tokens of a sample."""
        top, bottom = self.hierarchy.both_tokens(self.rand(1, *self.spec.shape, rng=torch.Generator()))
        return top.shape[1:], bottom.shape[1:]

    def log_prob(self, bottom: Tensor, top: Tensor) -> Tensor:
        """log p(bottom | top), [N] nats, of tokens [N, h, w] and [N, h_top, w_top]."""
        return log_prob_of(bottom, self.network(bottom, self.conditioner(top)))

    @inference
    def sample(self, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws top tokens, bottom tokens given them, and what both stand for, [n, ...]."""
        uniform_top, uniform = (self.rand(n, *grid, rng=rng) for grid in self.grids())
        top = self.first_stage.draw(uniform_top)
        bottom = draw_tokens(self.network, uniform, self.temperature, self.conditioner(top))
        return self.hierarchy.detokenise(top, bottom)

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | codes] of each sample's codes."""
        return self.hierarchy.reconstruct(x)

    @inference
    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The tokens of each sample, top ones first, as the one point that they determine: [k, N, T], zeros [k, N]."""
        tokens = torch.cat([part.flatten(1) for part in self.hierarchy.both_tokens(x)], dim=1)
        return tokens.expand(k, -1, -1), torch.zeros(k, len(x), device=x.device)

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, tokens), [N] nats, of both levels' tokens [N, T], top ones first."""
        top, bottom = self._levels(z)
        return self.hierarchy.log_likelihood(x, top, bottom) + self._log_prior(top, bottom)

    @inference
    def log_prior(self, z: Tensor) -> Tensor:
        """log p(top) + log p(bottom | top), [N] nats, of tokens [N, T]."""
        return self._log_prior(*self._levels(z))

    def _log_prior(self, top: Tensor, bottom: Tensor) -> Tensor:
        return self.first_stage.log_prob(top) + self.log_prob(bottom, top)

    def _levels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        top, bottom = self.grids()
        parts = z.split([math.prod(top), math.prod(bottom)], dim=1)
        return parts[0].reshape(-1, *top), parts[1].reshape(-1, *bottom)

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """Of the bottom tokens given the top ones, what `code_lengths` says."""
        top, bottom = self.hierarchy.both_tokens(x)
        return code_lengths(bottom, self.log_prob(bottom, top), self.levels)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -sum_i log p(bottom_i | bottom tokens before it, all top tokens)."""
        with self.turn("pixelcnn") as pixelcnn:
            terms = self.objective(batch.x)
            pixelcnn.minimise(terms["loss"])
        self.record(**terms)
