"""Bounds on the log-likelihood: the ELBO with its parts, the importance-weighted bound; active units, bits/dim.

For any model that can draw z ~ q(z | x) and compute log q(z | x), log p(x, z) and log p(z).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.metrics.features import module_device
from genlab.metrics.scores import Scores
from genlab.sharing import shared, stream
from genlab.telling import telling

ACTIVE = 0.01  # Burda et al. (2016): variance of a unit's posterior mean over the data, above which it is active
SURE = 3.0  # standard errors from an inactive unit to the threshold, below which units are not counted
PIXEL_WIDTH = 1 / 127.5  # of one of 256 grey values in [-1, 1]


class PosteriorModel(Protocol):
    """The methods of a model that the bounds call."""

    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """z [k, N, Z] ~ q(z | x) and log q(z | x) [k, N]."""
        ...

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), [N]."""
        ...

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [N]."""
        ...


class PriorModel(Protocol):
    """The methods of a model that estimates by draws from the prior call."""

    def sample_prior(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """z ~ p(z), [n, Z]."""
        ...

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), [N]."""
        ...

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [N]."""
        ...


@dataclass
class Bounds:
    """Bounds on log p(x) of each sample, in nats; float64 on the CPU.

    Attributes:
        elbo: E_q[log p(x, z) - log q(z | x)], [N].
        recon: E_q[log p(x | z)], [N].
        kl: E_q[log q(z | x) - log p(z)], [N], so that elbo = recon - kl.
        iwae: log of the mean of k weights p(x, z) / q(z | x), [N].
        ess: Effective number of the k draws, 1..k, [N]: near 1 a single draw dominates the bound.
        means: Means of the k draws, [N, Z].
        errors: Squared standard errors of these means, [N, Z]; NaN with one draw.
        discrete: Whether all draws were whole numbers, as for codes and categories.
        samples: k.
    """

    elbo: Tensor
    recon: Tensor
    kl: Tensor
    iwae: Tensor
    ess: Tensor
    means: Tensor
    errors: Tensor
    discrete: bool
    samples: int


def importance_bounds(
    model: PosteriorModel,
    batches: Iterable[Tensor],
    samples: int = 500,
    seed: int = 2020,
    at_a_time: int = 4096,
    given: Sequence[Batch] | None = None,
) -> Bounds:
    """The ELBO and the bound L_k of Burda et al. (2016), arXiv:1509.00519, Eq. 8, of each sample.

    L_k = E log 1/k sum_i w_i with w_i = p(x, z_i) / q(z_i | x): at least the ELBO, at most log p(x), rising with k. w
    does not use the closed-form KL. The network runs in float32, the sum over draws in float64. The processes of a
    group share the batches.

    Args:
        model: Model to evaluate, on its own device.
        batches: Samples [N, ...]; moved to that device.
        samples: k; 500 for a quick estimate, 5000 in the paper.
        seed: Seed of the draws, with a stream per batch; the global random stream is not used.
        at_a_time: Latents decoded at once, which bounds the memory.
        given: The conditions of each batch, for a model that is given columns.

    Raises:
        UserError: If k is below 1.
        ValueError: If there is no sample.
    """
    if samples < 1:
        raise UserError(f"iwae_samples must be at least 1, got {samples}. Try iwae_samples=500.")
    samples = min(samples, getattr(model, "posterior_draws", samples))  # 1 where the posterior is a single point
    device = module_device(model)

    def work(piece: tuple[int, Tensor]) -> tuple[Tensor, ...]:
        number, x = piece
        one = model if given is None else telling(model, given[number])
        return _of_batch(one, x.to(device), samples, stream(seed, number), max(1, at_a_time // len(x)))

    parts = list(shared(enumerate(batches), work))
    if not parts:
        raise ValueError("importance_bounds needs samples.")
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    elbo, recon, kl, iwae, ess, means, errors, whole = columns
    return Bounds(elbo, recon, kl, iwae, ess, means, errors, bool(whole.all()), samples)


def _of_batch(model: PosteriorModel, x: Tensor, samples: int, rng: torch.Generator, chunk: int) -> tuple[Tensor, ...]:
    """The fields of `Bounds` for one batch, from running sums over chunks of draws; `discrete` is per sample, [N]."""
    n = len(x)
    sums = torch.zeros(3, n, dtype=torch.float64)  # sums of log w, log p(x | z), log q - log p(z)
    log_w = torch.full((n,), -math.inf, dtype=torch.float64)  # log of the sum of weights so far
    log_w2 = log_w.clone()  # log of the sum of their squares
    first: Tensor | None = None  # subtracted from all draws, since squares of large numbers would cancel
    total = squares = torch.zeros(())
    whole = torch.ones(n, dtype=torch.bool)
    for k in (min(chunk, samples - start) for start in range(0, samples, chunk)):
        z, log_q = model.sample_posterior(x, k=k, rng=rng)
        flat = z.flatten(0, 1)
        repeated = x.unsqueeze(0).expand(k, *x.shape).flatten(0, 1)
        log_joint = model.log_joint(repeated, flat).unflatten(0, (k, n)).cpu().double()
        log_prior = model.log_prior(flat).unflatten(0, (k, n)).cpu().double()
        log_q = log_q.cpu().double()
        weights = log_joint - log_q
        sums += torch.stack([weights, log_joint - log_prior, log_q - log_prior]).sum(dim=1)
        log_w = torch.logaddexp(log_w, weights.logsumexp(dim=0))
        log_w2 = torch.logaddexp(log_w2, (2 * weights).logsumexp(dim=0))
        draws = z.flatten(2).cpu().double()
        whole &= (draws == draws.round()).all(dim=2).all(dim=0)
        first = draws[0] if first is None else first
        total = total + (draws - first).sum(dim=0)
        squares = squares + (draws - first).square().sum(dim=0)
    elbo, recon, kl = sums / samples
    assert first is not None
    means = total / samples
    spread = (squares - samples * means.square()).clamp_min(0) / (samples - 1) if samples > 1 else means + math.nan
    ess = (2 * log_w - log_w2).exp()
    return elbo, recon, kl, log_w - math.log(samples), ess, first + means, spread / samples, whole


def prior_bounds(
    model: PriorModel,
    batches: Iterable[Tensor],
    samples: int = 500,
    seed: int = 2020,
    at_a_time: int = 4096,
    given: Sequence[Batch] | None = None,
) -> Tensor:
    """log 1/k sum_i p(x | z_i), z_i ~ p(z), of each sample, [N] nats; float64 on the CPU.

    Sohn, Lee & Yan (2015), NeurIPS, Eq. 7: the estimate without a posterior. Its mean is at most log p(x), the closer
    the more a condition leaves the prior to say.

    Args:
        model: Model to evaluate, on its own device.
        batches: Samples [N, ...]; moved to that device.
        samples: k.
        seed: Seed of the draws, with a stream per batch.
        at_a_time: Latents decoded at once, which bounds the memory.
        given: The conditions of each batch, for a model that is given columns.

    Raises:
        ValueError: If there is no sample.
    """
    device = module_device(model)

    def work(piece: tuple[int, Tensor]) -> Tensor:
        number, x = piece
        one = model if given is None else telling(model, given[number])
        return _prior_of_batch(one, x.to(device), samples, stream(seed, number), max(1, at_a_time // len(x)))

    parts = list(shared(enumerate(batches), work))
    if not parts:
        raise ValueError("prior_bounds needs samples.")
    return torch.cat(parts)


def _prior_of_batch(model: PriorModel, x: Tensor, samples: int, rng: torch.Generator, chunk: int) -> Tensor:
    n = len(x)
    log_p = torch.full((n,), -math.inf, dtype=torch.float64)
    for k in (min(chunk, samples - start) for start in range(0, samples, chunk)):
        z = model.sample_prior(k * n, rng=rng)
        repeated = x.unsqueeze(0).expand(k, *x.shape).flatten(0, 1)
        each = (model.log_joint(repeated, z) - model.log_prior(z)).unflatten(0, (k, n)).cpu().double()
        log_p = torch.logaddexp(log_p, each.logsumexp(dim=0))
    return log_p - math.log(samples)


def active_units(means: Tensor, errors: Tensor | None = None, threshold: float = ACTIVE) -> Scores:
    """Number of latent units that depend on the data. Burda et al. (2016), arXiv:1509.00519, section 5.2.

    Estimated means also vary by their standard error, which alone would make every unit active up to k = 100 draws. The
    squared error is therefore subtracted from the variance.

    Args:
        means: Posterior means E_q[z | x] of many samples, [N, Z], N >= 2, or estimates of them.
        errors: Squared standard errors of the estimates, [N, Z]; None: the means are exact.
        threshold: A unit is active if Var_x E_q[z_u | x] exceeds it.

    Returns:
        {"active_units"}, 0..Z; the card holds Z and the threshold. Empty if the means are so uncertain that an
        inactive unit could pass for an active one; with 500 samples about 20 draws of each are enough.
    """
    variance = means.double().flatten(1).var(dim=0)
    if errors is not None:
        error = errors.double().flatten(1).mean(dim=0)
        doubt = SURE * error * math.sqrt(2 / (len(means) - 1))
        if not bool((doubt <= threshold).all()):
            return Scores()
        variance = variance - error
    card = {"active_threshold": threshold, "latent_dim": variance.numel()}
    return Scores({"active_units": float((variance > threshold).sum())}, card)


def likelihood_scores(bounds: Bounds, likelihood: bool = True) -> Scores:
    """Averages over the samples, with the standard error of the bound.

    Args:
        bounds: From `importance_bounds`.
        likelihood: Whether p(x | z) is a distribution over these data; a Bernoulli on grey pixels is not. Otherwise the
            scores are named "objective".

    Returns:
        {"elbo", "elbo_recon", "elbo_kl", "iwae_<k>", "iwae_<k>_se", "ess", "active_units"}, nats per sample; or
        {"objective", "objective_recon", "objective_kl", "ess", "active_units"}. Discrete codes have no active units.
    """
    values = {"elbo": bounds.elbo, "elbo_recon": bounds.recon, "elbo_kl": bounds.kl}
    named = {key if likelihood else key.replace("elbo", "objective"): v.mean().item() for key, v in values.items()}
    if likelihood:
        name = f"iwae_{bounds.samples}"
        named[name] = bounds.iwae.mean().item()
        named[f"{name}_se"] = (bounds.iwae.std() / math.sqrt(len(bounds.iwae))).item() if len(bounds.iwae) > 1 else 0.0
    named["ess"] = bounds.ess.median().item()
    card = {"n_real": len(bounds.elbo), "iwae_samples": bounds.samples, "is_likelihood": likelihood}
    if bounds.discrete or len(bounds.elbo) < 2:
        return Scores(named, card)
    return Scores(named, card) | active_units(bounds.means, bounds.errors)


def is_likelihood(x: Tensor, support: str) -> bool:
    """Whether a distribution with this support covers the samples: "binary" covers only -1 and 1."""
    return support != "binary" or bool((x.abs() == 1).all())


def dequantise(x: Tensor, rng: torch.Generator) -> Tensor:
    """Adds uniform noise of one grey value's width to bytes in [-1, 1], so that a density bounds a probability.

    Uria et al. (2013), arXiv:1306.0186; Theis et al. (2016), arXiv:1511.01844, section 3.1: the mean log-density of the
    noisy data is at most the log-probability of the bytes. Without the noise a density may grow without bound.
    """
    noise = torch.rand(x.shape, generator=rng, dtype=x.dtype, device=rng.device) - 0.5
    return x + noise.to(x.device) * PIXEL_WIDTH


def bits_per_dim(log_p: float, dims: float, support: str) -> float:
    """Bits per pixel and channel of a (bound on a) log-likelihood in nats per image.

    Args:
        log_p: Nats: log-probability ("binary", "levels"), or log-density of dequantised data in [-1, 1] ("real").
        dims: Number of values in an image, of those that the likelihood is of.
        support: Support of the likelihood.
    """
    bits = -log_p / (dims * math.log(2))
    return bits - math.log2(PIXEL_WIDTH) if support == "real" else bits
