"""PixelCNN: an autoregressive model of images, or of the codes of a first stage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.models.base import GenerativeModel, inference
from genlab.networks.pixelcnn import code_lengths, draw_tokens, log_prob_of, pixels_to_tokens, tokens_to_pixels


class PixelCNN(GenerativeModel):
    """PixelCNN. van den Oord et al. (2016), arXiv:1601.06759 and, gated, arXiv:1606.05328.

    log p(tokens) = sum_i log p(token_i | tokens before it in raster order). Tokens are the pixels' levels, with the
    channels of a pixel side by side, so that blue depends on red and green (the paper splits features into three
    groups instead). After a first stage with `tokens` and `detokenise`, tokens are its codes and this model is their
    prior, van den Oord et al. (2017), arXiv:1711.00937, section 3.3.

    There are no latents to integrate over. For pixels the judges' bound is log p(x) itself; after a first stage it is
    log p(x | codes) + log p(codes) at the encoder's codes.
    """

    kinds = ("image",)
    ema_modules = ("network",)
    first_stage: Any  # a model with `tokens` and `detokenise`, or None
    posterior_draws = 1  # the posterior is a single point

    def __init__(
        self, network: nn.Module, levels: int, temperature: float = 1.0, first_stage: GenerativeModel | None = None
    ) -> None:
        """Takes the network.

        Args:
            network: Maps tokens int64 [N, H, W] to logits [N, levels, H, W], causally.
            levels: Values of a token: 256 for pixels, 2 for binarised ones, K for a first stage's codes.
            temperature: Divisor of the logits in sampling.
            first_stage: A trained model with tokens; None for pixels.

        Raises:
            UserError: If the levels do not fit the tokens, or the temperature is not positive.
        """
        super().__init__()
        if temperature <= 0:
            raise UserError(f"model.temperature must be positive, got {temperature}.")
        _check_levels(levels, first_stage)
        self.network, self.levels, self.temperature, self.first_stage = network, levels, temperature, first_stage
        self.add_player("pixelcnn", network, "optimizer")

    @property
    def likelihood(self) -> Any:
        """The first stage's; for pixels an object with its `support`, the data on which log p is a likelihood."""
        if self.first_stage is not None:
            return self.first_stage.likelihood
        return SimpleNamespace(support="binary" if self.levels == 2 else "levels")

    # ----------------------------------------------------------------------------------------------------------- tokens

    def tokens(self, x: Tensor) -> Tensor:
        """Samples [N, C, H, W] as tokens, int64 [N, h, w]."""
        if self.first_stage is not None:
            return self.first_stage.tokens(x)
        return pixels_to_tokens(x, self.levels)

    def detokenise(self, tokens: Tensor) -> Tensor:
        """Tokens [N, h, w] as samples [N, C, H, W]."""
        if self.first_stage is not None:
            return self.first_stage.detokenise(tokens)
        return tokens_to_pixels(tokens, self.levels, self.spec.shape[0]).to(self.dtype)

    def grid(self) -> tuple[int, int]:
        """Height and width of the tokens of a sample."""
        h, w = self.tokens(self.rand(1, *self.spec.shape, rng=torch.Generator())).shape[1:]
        return int(h), int(w)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log p(tokens), [N] nats."""
        return log_prob_of(tokens, self.network(tokens))

    # ----------------------------------------------------------------------------------------------------- capabilities

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws tokens one after the other in raster order; returns their samples, [n, ...]."""
        return self.detokenise(self.draw(self.rand(n, *self.grid(), rng=rng)))

    @inference
    def draw(self, uniform: Tensor) -> Tensor:
        """Tokens [n, h, w] from uniform random numbers of that shape."""
        return draw_tokens(self.network, uniform, self.temperature)

    @inference
    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The posterior's one point, the tokens of each sample, k times [k, N, h w], and log q = 0 [k, N]."""
        tokens = self.tokens(x).flatten(1).expand(k, -1, -1)
        return tokens, torch.zeros(k, len(x), device=x.device)

    @inference
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, tokens), [N], of tokens [N, h w]: for pixels log p(tokens), else plus log p(x | tokens)."""
        tokens = z.view(len(z), *self.grid())
        if self.first_stage is None:
            return self.log_prob(tokens)
        return self.log_prob(tokens) + self.first_stage.log_likelihood(x, tokens)

    @inference
    def log_prior(self, z: Tensor) -> Tensor:
        """log p(tokens) of tokens [N, h w], [N]."""
        return self.log_prob(z.view(len(z), *self.grid()))

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of `code_lengths` for the tokens of x."""
        tokens = self.tokens(x)
        return code_lengths(tokens, self.log_prob(tokens), self.levels)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise -sum_i log p(token_i | tokens before it)."""
        with self.turn("pixelcnn") as pixelcnn:
            terms = self.objective(batch.x)
            pixelcnn.minimise(terms["loss"])
        self.record(**terms)


def _check_levels(levels: int, first_stage: GenerativeModel | None) -> None:
    """Checks that `levels` is the number of values of a token."""
    if first_stage is None:
        if levels not in (2, 256):
            raise UserError(f"model.levels must be 256, or 2 with binarised data, for pixels; got {levels}.")
        return
    codes = getattr(first_stage, "num_codes", None)
    if codes != levels:
        cure = f"Set model.levels={codes}." if codes else "It needs a first stage with codes, such as model=vqvae."
        raise UserError(f"model.levels must be the number of the first stage's codes, {codes}, got {levels}. {cure}")
