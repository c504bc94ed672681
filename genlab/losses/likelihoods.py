"""Likelihoods: the distribution of a sample given a decoder's output. Log-densities [N] in nats."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
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
        differentiable: Whether `mean` has a gradient in the decoder's output.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")
    support: str = "real"
    differentiable: bool = True

    @abstractmethod
    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x | z) of each sample [N, ...], summed over its dimensions: [N] nats."""

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """E[x | z], in the range of the data."""

    @abstractmethod
    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """A draw from p(x | z), in the range of the data."""

    def shown(self, raw: Tensor, rng: torch.Generator | None) -> Tensor:
        """The sample that a model shows: E[x | z], without the noise; a draw where that noise is the picture."""
        return self.mean(raw)

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

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """-1 or 1."""
        return 2 * (_uniform(raw.shape, raw, rng) < torch.sigmoid(raw)).to(raw.dtype) - 1

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

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """The mean and its noise."""
        noise = torch.randn(raw.shape, generator=rng, device=rng.device, dtype=raw.dtype)
        return raw + self.log_sigma.exp() * noise.to(raw.device)

    def visible_bias(self, x: Tensor) -> Tensor:
        """The mean sample."""
        return x.mean(dim=0)


class OptimalGaussian(Gaussian):
    """Independent Gaussians whose one variance is, in every training batch, the one that fits it best: the sigma-VAE.

    Rybkin, Daniilidis & Levine (2021), arXiv:2006.13202, Eq. 5: sigma^2 is the batch's mean squared error. It has no
    gradient of its own at the optimum, so what the decoder gets is that of D/2 log MSE. Judging uses the variance of
    the last batch (its average, where averages are kept).
    """

    def __init__(self, min_sigma: float = 1e-3) -> None:
        """Sets the floor.

        Args:
            min_sigma: Least standard deviation, in units of the data: constant images would have a density without
                bound. Half a grey value's width is 0.004.
        """
        super().__init__(sigma=max(1.0, min_sigma))
        if min_sigma <= 0:
            raise ValueError(f"likelihood.min_sigma must be positive, got {min_sigma}.")
        self.min_sigma = min_sigma

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum log N(x; raw, sigma^2), in training with the batch's own sigma."""
        if self.training:
            with torch.no_grad():
                error = _over_processes((x - raw).square().mean().float())
                self.log_sigma.copy_(0.5 * error.clamp_min(self.min_sigma**2).log())
        return super().log_prob(x, raw)


class LogisticMixture(Likelihood):
    """A mixture of discretised logistics for each pixel: 256 levels, so that log p is a probability's.

    Salimans et al. (2017), "PixelCNN++", arXiv:1701.05517, section 2.1: a level's probability is the mass of the
    logistic between its neighbours' midpoints, with all that lies beyond at both ends. Colours depend on one another
    within a component: green's mean is shifted linearly by red, blue's by both.

    The decoder gives, for C channels and K components, K (1 + 2 C + C (C - 1) / 2) channels: K logits, then K each
    for every channel's mean, log-scale and coefficients on the channels before it.
    """

    kinds = ("image",)
    support = "levels"
    HALF = 1 / 255  # half a level's width, where images lie in [-1, 1]
    LOG_SCALES = (-7.0, 7.0)

    def __init__(self, shape: Sequence[int], components: int = 10, raw_shape: Sequence[int] | None = None) -> None:
        """Sets the mixture.

        Args:
            shape: (C, H, W) of the images.
            components: K.
            raw_shape: What the decoder gives, for a check; see `raw_channels`.

        Raises:
            ValueError: If there is no component, or `raw_shape` is not what they need.
        """
        super().__init__()
        if components < 1:
            raise ValueError(f"likelihood.components must be at least 1, got {components}.")
        needed = [self.raw_channels(int(shape[0]), components), *(int(side) for side in shape[1:])]
        if raw_shape is not None and list(raw_shape) != needed:
            raise ValueError(f"likelihood.raw_shape must be {needed} for {components} components.")
        self.channels, self.components = int(shape[0]), components

    @staticmethod
    def raw_channels(channels: int, components: int) -> int:
        """How many channels a decoder of images with `channels` must give."""
        return components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log weights [N, K, H, W], and by component and channel [N, K, C, H, W] means, log-scales; coefficients."""
        k, c = self.components, self.channels
        weights, means, log_scales, coefficients = raw.split([k, k * c, k * c, k * c * (c - 1) // 2], dim=1)
        means, log_scales, coefficients = (
            t.unflatten(1, (k, t.shape[1] // k)) for t in (means, log_scales, coefficients)
        )
        return weights.log_softmax(dim=1), means, log_scales.clamp(*self.LOG_SCALES), coefficients.tanh()

    def shifted(self, means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
        """Means [N, K, C, H, W] given the channels before each of x [N, 1 or K, C, H, W]."""
        rows, used = [means[:, :, 0]], 0
        for channel in range(1, self.channels):
            before = coefficients[:, :, used : used + channel] * x[:, :, :channel]
            rows.append(means[:, :, channel] + before.sum(dim=2))
            used += channel
        return torch.stack(rows, dim=2)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum over pixels of log sum_k pi_k prod_c P_kc(level of x)."""
        log_weights, means, log_scales, coefficients = self.parts(raw)
        x = x.unsqueeze(1)  # [N, 1, C, H, W]
        centred = x - self.shifted(means, coefficients, x)
        inverse = (-log_scales).exp()
        upper, lower = inverse * (centred + self.HALF), inverse * (centred - self.HALF)
        # log of sigmoid(u) - sigmoid(l), u > l, without a difference of nearly equal numbers:
        # sigmoid(u) sigmoid(-l) (1 - exp(l - u)).
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * self.HALF * inverse))
        log_mass = torch.where(x < -1 + self.HALF, F.logsigmoid(upper), log_mass)
        log_mass = torch.where(x > 1 - self.HALF, F.logsigmoid(-lower), log_mass)
        return (log_weights + log_mass.sum(dim=2)).logsumexp(dim=1).flatten(1).sum(dim=1)

    def mean(self, raw: Tensor) -> Tensor:
        """Mean of the mixture's means (before discretisation), cut to [-1, 1]."""
        log_weights, means, _, coefficients = self.parts(raw)
        full: list[Tensor] = []
        for channel in range(self.channels):
            known = torch.stack([*full, *[torch.zeros_like(means[:, :, 0])] * (self.channels - channel)], dim=2)
            full.append(self.shifted(means, coefficients, known)[:, :, channel])
        weighted = log_weights.exp().unsqueeze(2) * torch.stack(full, dim=2)
        return weighted.sum(dim=1).clamp(-1, 1)

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """A component for each pixel, then its channels one after the other; rounded to the 256 levels."""
        log_weights, means, log_scales, coefficients = self.parts(raw)
        uniform = _uniform(log_weights.shape, raw, rng).clamp(1e-20, 1 - 1e-7)
        chosen = (log_weights - (-uniform.log()).log()).argmax(dim=1)  # Gumbel's trick
        index = chosen[:, None, None]

        def of_chosen(t: Tensor) -> Tensor:
            return t.gather(1, index.expand(-1, 1, t.shape[2], -1, -1))

        means, log_scales, coefficients = (of_chosen(t) for t in (means, log_scales, coefficients))
        x = torch.zeros_like(means)
        for channel in range(self.channels):
            u = _uniform(x[:, :, channel].shape, raw, rng).clamp(1e-5, 1 - 1e-5)
            drawn = self.shifted(means, coefficients, x)[:, :, channel]
            drawn = drawn + log_scales[:, :, channel].exp() * (u.log() - (-u).log1p())
            level = ((drawn.clamp(-1, 1) + 1) * 127.5).round()
            x = torch.cat([x[:, :, :channel], (level / 127.5 - 1).unsqueeze(2), x[:, :, channel + 1 :]], dim=2)
        return x.squeeze(1)

    def visible_bias(self, x: Tensor) -> Tensor:
        """Means spread over each pixel's mean and its spread in the batch; equal weights, no coefficients."""
        mean, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(0.05)
        places = torch.linspace(-1, 1, self.components + 2)[1:-1].to(x)  # from -1 to 1 without the ends
        means = (mean + places[:, None, None, None] * spread).flatten(0, 1)
        log_scales = (spread / 2).log().repeat(self.components, 1, 1)
        c, k = self.channels, self.components
        weights, coefficients = (x.new_zeros(n, *x.shape[2:]) for n in (k, k * c * (c - 1) // 2))
        return torch.cat([weights, means, log_scales, coefficients])


def _uniform(shape: Sequence[int], like: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) from `rng`, on the device and of the type of `like`."""
    return torch.rand(tuple(shape), generator=rng, device=rng.device, dtype=like.dtype).to(like.device)


def _over_processes(value: Tensor) -> Tensor:
    """The mean over the processes of a training, which hold equally many samples."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
