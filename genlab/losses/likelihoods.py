"""What a decoder's output means: the distribution of a sample given its latent. Log-densities [N] in nats."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Likelihood(nn.Module):
    """p(x | z) as a function of the decoder's raw output, which has the shape of x.

    Attributes:
        kinds: The kinds of data it is a distribution of.
        support: What it gives mass or density to: "binary" (-1 and 1 alone), "levels" (the 256 values of a byte) or
            "real" (a density). Evaluation asks it, to call no figure a likelihood that is none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")
    support: ClassVar[str] = "real"

    @abstractmethod
    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x | z) of each sample [N, ...], summed over its dimensions: [N] nats."""

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """E[x | z], in the range of the data."""

    @abstractmethod
    def visible_bias(self, x: Tensor) -> Tensor:
        """The raw output that fits a batch best without any latent: what a decoder's output bias may start from."""


class Bernoulli(Likelihood):
    """Independent pixels in {0, 1}; images in [-1, 1] are mapped to [0, 1] here.

    Kingma & Welling (2014), Appendix C.1. On grey pixels this is the usual training objective, but no likelihood.
    """

    kinds = ("image",)
    support = "binary"

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum x log p + (1 - x) log(1 - p), from logits."""
        return -F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="none").flatten(1).sum(dim=1)

    def mean(self, raw: Tensor) -> Tensor:
        """2 sigmoid(raw) - 1, in [-1, 1]."""
        return 2 * torch.sigmoid(raw) - 1

    def visible_bias(self, x: Tensor) -> Tensor:
        """The mean pixel's logit, clipped to probabilities in [0.001, 0.999] (as in the code of Burda et al., 2016)."""
        return torch.logit(((x + 1) / 2).mean(dim=0), eps=1e-3)


class Gaussian(Likelihood):
    """Independent Gaussians with one standard deviation for all dimensions, fixed or learned.

    Kingma & Welling (2014), Appendix C.2; learned as in Rybkin et al. (2021), arXiv:2006.13202.
    """

    log_sigma: Tensor

    def __init__(self, sigma: float = 0.1, learned: bool = False) -> None:
        """Sets the noise.

        Args:
            sigma: Standard deviation, in units of the data (images: half their range is 1).
            learned: Whether it is a parameter of the decoder, with `sigma` as its start.

        Raises:
            ValueError: If sigma is not positive.
        """
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"likelihood.sigma must be positive, got {sigma}.")
        start = torch.tensor(math.log(sigma))
        if learned:
            self.log_sigma = nn.Parameter(start)
        else:
            self.register_buffer("log_sigma", start)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum log N(x; raw, sigma^2), constants included."""
        squares = ((x - raw) / self.log_sigma.exp()).square().flatten(1)
        return -0.5 * squares.sum(dim=1) - squares.shape[1] * (self.log_sigma + 0.5 * math.log(2 * math.pi))

    def mean(self, raw: Tensor) -> Tensor:
        """The raw output itself."""
        return raw

    def visible_bias(self, x: Tensor) -> Tensor:
        """The mean sample."""
        return x.mean(dim=0)
