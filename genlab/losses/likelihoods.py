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
    """p(x | z) as a function of the decoder's raw output, which has the shape of x unless a subclass says otherwise.

    Attributes:
        kinds: The kinds of data that it can model.
        support: Values with mass or density: "binary" (-1 and 1), "levels" (the 256 values of a byte) or "real" (a
            density). Evaluation reports a likelihood only for data within the support.
        differentiable: Whether `mean` has a gradient in the decoder's output.
        separable: Whether it is a product over the numbers of a sample, so that `terms` has their factors.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")
    support: str = "real"
    differentiable: bool = True
    separable: bool = False

    def terms(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p of each number of each sample, [N, ...] nats, where the likelihood is a product over them."""
        raise NotImplementedError

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
        """The output of `model.sample`: E[x | z] without noise. Subclasses may return a draw from p(x | z) instead."""
        return self.mean(raw)

    @abstractmethod
    def visible_bias(self, x: Tensor) -> Tensor:
        """The raw output that fits a batch best without latents; an initial value of the decoder's output bias."""


class Bernoulli(Likelihood):
    """Independent pixels in {0, 1}; images in [-1, 1] are mapped to [0, 1] here.

    Kingma & Welling (2014), Appendix C.1. On grey pixels it is the usual training objective, but not a likelihood.
    """

    kinds = ("image",)
    support = "binary"
    separable = True

    def terms(self, x: Tensor, raw: Tensor) -> Tensor:
        """x log p + (1 - x) log(1 - p) of each pixel."""
        return -F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="none")

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum x log p + (1 - x) log(1 - p), with p = sigmoid(raw)."""
        return -F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="none").flatten(1).sum(dim=1)

    def mean(self, raw: Tensor) -> Tensor:
        """2 sigmoid(raw) - 1, in [-1, 1]."""
        return 2 * torch.sigmoid(raw) - 1

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """Pixels -1 or 1; 1 with probability sigmoid(raw)."""
        return 2 * (_uniform(raw.shape, raw, rng) < torch.sigmoid(raw)).to(raw.dtype) - 1

    def visible_bias(self, x: Tensor) -> Tensor:
        """Logit of each pixel's mean, clipped to [0.001, 0.999] (as in the code of Burda et al., 2016)."""
        return torch.logit(((x + 1) / 2).mean(dim=0), eps=1e-3)


class Gaussian(Likelihood):
    """Independent Gaussians with one standard deviation for all dimensions, fixed or learned.

    Kingma & Welling (2014), Appendix C.2; the learned one is that of Rybkin et al. (2021), arXiv:2006.13202.
    """

    log_sigma: Tensor
    separable = True

    def terms(self, x: Tensor, raw: Tensor) -> Tensor:
        """log N(x; raw, sigma^2) of each number, constants included."""
        squares = ((x - raw) / self.log_sigma.exp()).square()
        return -0.5 * squares - self.log_sigma - 0.5 * math.log(2 * math.pi)

    def __init__(self, sigma: float = 0.1, learned: bool = False) -> None:
        """Sets the noise.

        Args:
            sigma: Standard deviation, in units of the data (images: half their range is 1).
            learned: Whether the standard deviation is a parameter that starts at `sigma` and is trained.

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
        """The raw output."""
        return raw

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """The mean plus noise of standard deviation sigma."""
        noise = torch.randn(raw.shape, generator=rng, device=rng.device, dtype=raw.dtype)
        return raw + self.log_sigma.exp() * noise.to(raw.device)

    def visible_bias(self, x: Tensor) -> Tensor:
        """The mean sample."""
        return x.mean(dim=0)


class OptimalGaussian(Gaussian):
    """Independent Gaussians with one variance, in each training batch the best-fitting one: the sigma-VAE.

    Rybkin, Daniilidis & Levine (2021), arXiv:2006.13202, Eq. 5: sigma^2 is the mean squared error of the batch. Its own
    gradient is zero at this optimum, so the decoder's gradient is that of D/2 log MSE. Evaluation uses the variance of
    the last batch, or its average if weights are averaged.
    """

    separable = False  # its variance is that of the batch

    def __init__(self, min_sigma: float = 1e-3) -> None:
        """Sets the floor.

        Args:
            min_sigma: Smallest standard deviation, in units of the data; without it the density of constant images is
                unbounded. Half the width of a grey value is 0.004.
        """
        super().__init__(sigma=max(1.0, min_sigma))
        if min_sigma <= 0:
            raise ValueError(f"likelihood.min_sigma must be positive, got {min_sigma}.")
        self.min_sigma = min_sigma

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum log N(x; raw, sigma^2); in training mode sigma is first set from this batch."""
        if self.training:
            with torch.no_grad():
                error = _over_processes((x - raw).square().mean().float())
                self.log_sigma.copy_(0.5 * error.clamp_min(self.min_sigma**2).log())
        return super().log_prob(x, raw)


class OwnVariances(Likelihood):
    """Independent Gaussians, each number with a mean and a variance of its own, both by the decoder.

    Kingma & Welling (2014), arXiv:1312.6114, Appendix C.2. The decoder gives twice as many numbers, or channels: means,
    which have no bounds, then log-variances, which a softplus keeps above that of `min_sigma`.
    """

    separable = True

    def __init__(self, min_sigma: float = 0.05) -> None:
        """Sets the floor.

        Args:
            min_sigma: Smallest standard deviation, in units of the data; without it the density of constant numbers is
                unbounded.

        Raises:
            ValueError: If min_sigma is not positive.
        """
        super().__init__()
        if min_sigma <= 0:
            raise ValueError(f"likelihood.min_sigma must be positive, got {min_sigma}.")
        self.floor = 2 * math.log(min_sigma)

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances, [N, ...] each."""
        mean, logvar = raw.chunk(2, dim=1)
        return mean, self.floor + F.softplus(logvar - self.floor)

    def terms(self, x: Tensor, raw: Tensor) -> Tensor:
        """log N(x; mean, variance) of each number, constants included."""
        mean, logvar = self.parts(raw)
        return -0.5 * ((x - mean).square() * (-logvar).exp() + logvar + math.log(2 * math.pi))

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum log N(x; mean, variance)."""
        return self.terms(x, raw).flatten(1).sum(dim=1)

    def mean(self, raw: Tensor) -> Tensor:
        """The means."""
        return self.parts(raw)[0]

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """The means plus noise of each number's own standard deviation."""
        mean, logvar = self.parts(raw)
        noise = torch.randn(mean.shape, generator=rng, device=rng.device, dtype=raw.dtype)
        return mean + (0.5 * logvar).exp() * noise.to(raw.device)

    def visible_bias(self, x: Tensor) -> Tensor:
        """The mean sample and each number's log-variance, at least a little above the floor."""
        above = (x.var(dim=0, correction=0).log() - self.floor).clamp_min(0.01)  # of what the softplus gives
        return torch.cat([x.mean(dim=0), self.floor + above.expm1().log()])


class PixelGaussian(OwnVariances):
    """The same of images in [-1, 1]: means end in tanh, as in the code of Yan et al. (2016), arXiv:1512.00570.

    The decoder outputs 2 C channels: means before tanh, then log-variances.
    """

    kinds = ("image",)

    def __init__(self, shape: Sequence[int], min_sigma: float = 0.05, raw_shape: Sequence[int] | None = None) -> None:
        """Sets the floor.

        Args:
            shape: (C, H, W) of the images.
            min_sigma: See `OwnVariances`.
            raw_shape: Shape of the decoder's output, checked; None: not checked.

        Raises:
            ValueError: If min_sigma is not positive, or `raw_shape` is not (2 C, H, W).
        """
        super().__init__(min_sigma)
        needed = [2 * int(shape[0]), *(int(side) for side in shape[1:])]
        if raw_shape is not None and list(raw_shape) != needed:
            raise ValueError(f"likelihood.raw_shape must be {needed}, a mean and a variance for each number.")

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Means in (-1, 1) and log-variances above the floor, [N, C, H, W] each."""
        mean, logvar = super().parts(raw)
        return mean.tanh(), logvar

    def visible_bias(self, x: Tensor) -> Tensor:
        """That of `OwnVariances`, with a mean of at most 0.99 before tanh."""
        mean, logvar = super().visible_bias(x).chunk(2)
        return torch.cat([mean.clamp(-0.99, 0.99).atanh(), logvar])


class LogisticMixture(Likelihood):
    """A mixture of logistics for each pixel, discretised to 256 levels, so that p is a probability, not a density.

    Salimans et al. (2017), "PixelCNN++", arXiv:1701.05517, section 2.1: the probability of a level is the mass of the
    logistic between the midpoints to its neighbours; the lowest and highest level include the tails. Within a
    component the colours are dependent: the mean of green is shifted linearly by red, that of blue by red and green.

    For C channels and K components the decoder outputs K (1 + 2 C + C (C - 1) / 2) channels: K logits, K C means,
    K C log-scales and K C (C - 1) / 2 coefficients on the preceding channels.
    """

    kinds = ("image",)
    support = "levels"
    HALF = 1 / 255  # half the width of a level, for images in [-1, 1]
    LOG_SCALES = (-7.0, 7.0)

    def __init__(self, shape: Sequence[int], components: int = 10, raw_shape: Sequence[int] | None = None) -> None:
        """Sets the mixture.

        Args:
            shape: (C, H, W) of the images.
            components: K.
            raw_shape: Shape of the decoder's output, checked against `raw_channels`; None: not checked.

        Raises:
            ValueError: If K is below 1, or `raw_shape` does not match.
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
        """Number of output channels of a decoder of images with `channels` channels."""
        return components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log weights [N, K, H, W]; means and log-scales [N, K, C, H, W]; coefficients [N, K, C (C - 1) / 2, H, W]."""
        k, c = self.components, self.channels
        weights, means, log_scales, coefficients = raw.split([k, k * c, k * c, k * c * (c - 1) // 2], dim=1)
        means, log_scales, coefficients = (
            t.unflatten(1, (k, t.shape[1] // k)) for t in (means, log_scales, coefficients)
        )
        return weights.log_softmax(dim=1), means, log_scales.clamp(*self.LOG_SCALES), coefficients.tanh()

    def shifted(self, means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
        """Means [N, K, C, H, W], each shifted by the preceding channels of x [N, 1 or K, C, H, W]."""
        rows, used = [means[:, :, 0]], 0
        for channel in range(1, self.channels):
            before = coefficients[:, :, used : used + channel] * x[:, :, :channel]
            rows.append(means[:, :, channel] + before.sum(dim=2))
            used += channel
        return torch.stack(rows, dim=2)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """sum over pixels of log sum_k pi_k prod_c P_kc(x_c)."""
        log_weights, means, log_scales, coefficients = self.parts(raw)
        x = x.unsqueeze(1)  # [N, 1, C, H, W]
        centred = x - self.shifted(means, coefficients, x)
        inverse = (-log_scales).exp()
        upper, lower = inverse * (centred + self.HALF), inverse * (centred - self.HALF)
        # log(sigmoid(u) - sigmoid(l)), u > l, without cancellation: the difference is
        # sigmoid(u) sigmoid(-l) (1 - exp(l - u)).
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * self.HALF * inverse))
        log_mass = torch.where(x < -1 + self.HALF, F.logsigmoid(upper), log_mass)
        log_mass = torch.where(x > 1 - self.HALF, F.logsigmoid(-lower), log_mass)
        return (log_weights + log_mass.sum(dim=2)).logsumexp(dim=1).flatten(1).sum(dim=1)

    def mean(self, raw: Tensor) -> Tensor:
        """Weighted mean of the components' means (before discretisation), clamped to [-1, 1]."""
        log_weights, means, _, coefficients = self.parts(raw)
        full: list[Tensor] = []
        for channel in range(self.channels):
            known = torch.stack([*full, *[torch.zeros_like(means[:, :, 0])] * (self.channels - channel)], dim=2)
            full.append(self.shifted(means, coefficients, known)[:, :, channel])
        weighted = log_weights.exp().unsqueeze(2) * torch.stack(full, dim=2)
        return weighted.sum(dim=1).clamp(-1, 1)

    def sample(self, raw: Tensor, rng: torch.Generator) -> Tensor:
        """Draws a component for each pixel, then its channels in order; rounded to the 256 levels."""
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
        """Component means spread around each pixel's mean by its standard deviation; equal weights, coefficients 0."""
        mean, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(0.05)
        places = torch.linspace(-1, 1, self.components + 2)[1:-1].to(x)  # from -1 to 1 without the ends
        means = (mean + places[:, None, None, None] * spread).flatten(0, 1)
        log_scales = (spread / 2).log().repeat(self.components, 1, 1)
        c, k = self.channels, self.components
        weights, coefficients = (x.new_zeros(n, *x.shape[2:]) for n in (k, k * c * (c - 1) // 2))
        return torch.cat([weights, means, log_scales, coefficients])


def _uniform(shape: Sequence[int], like: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) from `rng`, with the device and type of `like`."""
    return torch.rand(tuple(shape), generator=rng, device=rng.device, dtype=like.dtype).to(like.device)


def _over_processes(value: Tensor) -> Tensor:
    """The mean over the training processes, which have equally many samples each."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
