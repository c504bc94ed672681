"""A likelihood with dependent pixels: a PixelCNN conditioned on the decoder's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.losses.likelihoods import Likelihood
from genlab.networks.init import check_positive
from genlab.networks.pixelcnn import GatedPixelCNN, draw_tokens, log_prob_of, pixels_to_tokens, tokens_to_pixels


class Autoregressive(Likelihood):
    """p(x | z) = prod_i p(x_i | x before i in raster order, z), exactly. Gulrajani et al. (2017), arXiv:1611.05013.

    A gated PixelCNN is conditioned, at each pixel, on that pixel's features in the decoder's output. With fewer layers
    it reads less of the image and leaves more to the latent (section 3.1).

    Args:
        shape: (C, H, W) of the images.
        levels: Levels of a pixel: 2 for binarised images, 256 for bytes.
        features: Channels of the decoder's output for each channel of the image.
        width: Channels of the PixelCNN's stacks.
        layers: Number of its gated layers.
        kernel: Side of its first layer's receptive field; that of the others is 3.
        hidden: Channels of its last two 1 x 1 layers.
        raw_shape: Shape of the decoder's output, checked to be [C features, H, W].

    Raises:
        UserError: If `levels` is neither 2 nor 256, or `features` is not positive.
        ValueError: If `raw_shape` is not [C features, H, W].
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    differentiable = False

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 256,
        features: int = 16,
        width: int = 32,
        layers: int = 3,
        kernel: int = 5,
        hidden: int = 64,
        raw_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_positive("likelihood.features", features, "16")
        if levels not in (2, 256):
            raise UserError(f"likelihood.levels must be 256, or 2 with binarised data, got {levels}.")
        needed = [features * int(shape[0]), *(int(side) for side in shape[1:])]
        if raw_shape is not None and [int(n) for n in raw_shape] != needed:
            raise ValueError(f"likelihood.raw_shape must be {needed}.")
        self.channels, self.levels, self.raw_shape = int(shape[0]), levels, needed
        self.support = "binary" if levels == 2 else "levels"
        self.network = GatedPixelCNN(levels, width, layers, kernel, hidden, context=features)

    def context(self, raw: Tensor) -> Tensor:
        """The decoder's output [N, C features, H, W] arranged by tokens: [N, features, H, W C]."""
        n, _, h, w = raw.shape
        split = raw.unflatten(1, (-1, self.channels))  # [N, features, C, H, W]
        return split.permute(0, 1, 3, 4, 2).reshape(n, -1, h, w * self.channels)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum_i log p(x_i | x before i, z)."""
        tokens = pixels_to_tokens(x, self.levels)
        return log_prob_of(tokens, self.network(tokens, self.context(raw)))

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """A sample, drawn pixel by pixel in raster order."""
        context = self.context(raw)
        shape = (len(raw), *context.shape[2:])
        uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=raw.dtype).to(raw.device)
        tokens = draw_tokens(self.network, uniform, 1.0, context)
        return tokens_to_pixels(tokens, self.levels, self.channels).to(raw.dtype)

    def shown(self, raw: Tensor, rng: torch.Generator | None) -> Tensor:
        """A draw."""
        assert rng is not None  # `inference` gives one
        return self.sample(raw, rng)

    def mean(self, raw: Tensor) -> Tensor:
        """A draw in place of E[x | z], which has no closed form; with the same random numbers in every call.

        Equal latents therefore give equal images, and differences between images come from the latents.
        """
        one = torch.rand(raw.shape[2], raw.shape[3] * self.channels, generator=torch.Generator().manual_seed(0))
        uniform = one.to(raw).expand(len(raw), -1, -1)
        tokens = draw_tokens(self.network, uniform, 1.0, self.context(raw))
        return tokens_to_pixels(tokens, self.levels, self.channels).to(raw.dtype)

    def visible_bias(self, x: Tensor) -> Tensor:
        """Zeros: the PixelCNN has biases of its own."""
        return x.new_zeros(self.raw_shape)
