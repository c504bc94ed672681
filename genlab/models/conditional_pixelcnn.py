"""A PixelCNN over the fine codes of a hierarchy, given the coarse ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.models.base import GenerativeModel, inference
from genlab.networks.pixelcnn import code_lengths, draw_tokens, log_prob_of


class ConditionalPixelCNN(GenerativeModel):
    """p(bottom codes | top codes). Razavi, van den Oord & Vinyals (2019), arXiv:1906.00446, section 3.2, Algorithm 2.

    The first stage is the trained prior of the top codes, a `PixelCNN` whose own first stage is a model with codes on
    two levels (VQ-VAE-2). The three models generate top codes, bottom codes and images. The bound on log p(x) is
    log p(x | codes) + log p(bottom | top) + log p(top) at the encoder's codes.
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
        """Joins the networks.

        Args:
            network: Maps bottom tokens int64 [N, h, w] and a map [N, C, h, w] to logits [N, levels, h, w], causally.
            conditioner: Maps top tokens int64 [N, h_top, w_top] to that map.
            levels: K, the number of codes of the bottom level.
            temperature: Divisor of the logits, > 0, when bottom codes are drawn; the top prior has its own.

        Raises:
            UserError: If the first stage is not such a prior, `levels` is not K, or the temperature is not positive.
        """
        super().__init__()
        _check(levels, temperature, first_stage)
        self.network, self.conditioner, self.first_stage = network, conditioner, first_stage
        self.levels, self.temperature = levels, temperature
        self.add_player("pixelcnn", [network, conditioner], "optimizer")

    @property
    def hierarchy(self) -> Any:
        """The model with codes on two levels."""
        return self.first_stage.first_stage

    @property
    def likelihood(self) -> Any:
        """The likelihood p(x | codes); `support` is the kind of data for which its values are likelihoods."""
        return self.hierarchy.likelihood

    def grids(self) -> tuple[torch.Size, torch.Size]:
        """Height and width of the top and of the bottom tokens of a sample."""
        top, bottom = self.hierarchy.both_tokens(self.rand(1, *self.spec.shape, rng=torch.Generator()))
        return top.shape[1:], bottom.shape[1:]

    def log_prob(self, bottom: Tensor, top: Tensor) -> Tensor:
        """log p(bottom | top), [N] nats, of tokens [N, h, w] and [N, h_top, w_top]."""
        return log_prob_of(bottom, self.network(bottom, self.conditioner(top)))

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws top tokens, then bottom tokens given them, and decodes both to samples [n, ...]."""
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
        """The posterior's one point, the tokens of each sample, top ones first, [k, N, T]; and log q = 0, [k, N]."""
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
        """The `code_lengths` of the bottom tokens given the top ones."""
        top, bottom = self.hierarchy.both_tokens(x)
        return code_lengths(bottom, self.log_prob(bottom, top), self.levels)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -sum_i log p(bottom_i | bottom tokens before it, all top tokens)."""
        with self.turn("pixelcnn") as pixelcnn:
            terms = self.objective(batch.x)
            pixelcnn.minimise(terms["loss"])
        self.record(**terms)


def _check(levels: int, temperature: float, first_stage: GenerativeModel | None) -> None:
    """Checks the temperature, and that the first stage is a prior of top codes beside `levels` bottom codes."""
    if temperature <= 0:
        raise UserError(f"model.temperature must be positive, got {temperature}.")
    codes = getattr(getattr(first_stage, "first_stage", None), "num_bottom_codes", None)
    if codes is None:
        raise UserError(
            "The first stage of ConditionalPixelCNN must be the PixelCNN of the top codes of a vqvae2. "
            "Try experiment=vqvae2_cifar10, which trains all three."
        )
    if codes != levels:
        raise UserError(f"model.levels must be the number of bottom codes, got {levels}. Set model.levels={codes}.")
