"""Annealed importance sampling: log p(x) of a model with a tractable joint, without its encoder.

For any model with continuous latents that can draw z ~ p(z) and compute log p(x, z) and log p(z), differentiable by z.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.metrics.features import module_device
from genlab.metrics.scores import Scores
from genlab.sharing import shared, stream
from genlab.telling import telling

SHARPNESS = 4.0  # of the sigmoid schedule, as in the authors' code
LEAPFROGS = 10  # steps of each trajectory
JITTER = 0.2  # relative, random, of the step sizes: trajectories of a fixed length may return to their start
WANTED = 0.65  # acceptance that the step sizes are tuned to
FIRST_STEP, SMALLEST, LARGEST = 0.1, 1e-4, 2.0  # step sizes
TUNING = 20  # trajectories at the first temperature that tune the initial step size


class JointModel(Protocol):
    """The methods of a model that AIS calls."""

    def inference(self, gradients: bool = False) -> AbstractContextManager[None]:
        """Context with averaged weights and eval mode; with `gradients`, inputs get gradients."""
        ...

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
class Annealed:
    """Estimates of log p(x) of each sample, in nats; float64 on the CPU.

    Attributes:
        log_p: log of the mean of the chains' weights, [N]: in expectation at most log p(x).
        ess: Effective number of chains, 1..k, [N].
        acceptance: Share of the trajectories that were accepted, [N].
        steps: Temperatures between prior and posterior.
        chains: k.
    """

    log_p: Tensor
    ess: Tensor
    acceptance: Tensor
    steps: int
    chains: int


def ais(
    model: JointModel,
    batches: Iterable[Tensor],
    steps: int = 1000,
    chains: int = 16,
    seed: int = 2020,
    at_a_time: int = 4096,
    given: Sequence[Batch] | None = None,
) -> Annealed:
    """Annealed importance sampling from the prior to the posterior, p(z) p(x | z)^beta, with Hamiltonian transitions.

    Neal (2001), "Annealed importance sampling", arXiv:physics/9803008; for decoders Wu et al. (2017), arXiv:1611.04273,
    section 3, with their sigmoid schedule and trajectories of 10 leapfrog steps. The step size of each sample and
    temperature is tuned on separate chains, which are discarded. The counted chains run with fixed steps, so that
    the mean of their weights is an unbiased estimate of p(x) and its logarithm a lower bound in expectation. The
    processes of a group share the batches.

    Args:
        model: Model to evaluate, on its own device.
        batches: Samples [N, ...]; moved to that device.
        steps: Temperatures; the bound rises with them. The paper has 10,000.
        chains: Chains per sample; 16 in the paper.
        seed: Seed of all draws, with a stream per batch; the global random stream is not used.
        at_a_time: Chains run at once, which bounds the memory.
        given: The conditions of each batch, for a model that is given columns.

    Raises:
        UserError: If a number is below 1.
        ValueError: If there is no sample.
    """
    if steps < 1 or chains < 1:
        raise UserError(f"ais_steps and ais_samples must be at least 1, got {steps} and {chains}.")
    device = module_device(model)

    def work(piece: tuple[int, Tensor]) -> tuple[Tensor, ...]:
        number, x = piece
        one = model if given is None else telling(model, given[number])
        with model.inference(gradients=True):
            return _of_batch(one, x.to(device), steps, chains, stream(seed, number), max(1, at_a_time // len(x)))

    parts = list(shared(enumerate(batches), work))
    if not parts:
        raise ValueError("ais needs samples.")
    log_p, ess, acceptance = (torch.cat(column) for column in zip(*parts, strict=True))
    return Annealed(log_p, ess, acceptance, steps, chains)


def can_anneal(model: object) -> bool:
    """Whether a model has the methods that AIS calls; GANs, autoregressive and categorical models lack some."""
    return all(callable(getattr(model, name, None)) for name in ("sample_prior", "log_joint", "log_prior"))


def ais_scores(found: Annealed) -> Scores:
    """Averages over the samples: {"ais_<steps>", "ais_<steps>_se", "ais_ess", "ais_acceptance"}, nats per sample.

    The card holds the numbers of samples, temperatures and chains, and the kind of transitions.
    """
    name, n = f"ais_{found.steps}", len(found.log_p)
    values = {
        name: found.log_p.mean().item(),
        f"{name}_se": (found.log_p.std() / math.sqrt(n)).item() if n > 1 else 0.0,
        "ais_ess": found.ess.median().item(),
        "ais_acceptance": found.acceptance.mean().item(),
    }
    transitions = f"HMC, {LEAPFROGS} leapfrogs, tuned to {WANTED}"
    card = {"n_real": n, "ais_steps": found.steps, "ais_samples": found.chains, "ais_transitions": transitions}
    return Scores(values, card)


def partition_scores(log_w: Tensor, log_unnormalised: Tensor, steps: int) -> Scores:
    """log p(x) = log p*(x) - log Z, with log Z from annealed importance weights whose mean is Z.

    Salakhutdinov & Murray (2008), "On the quantitative analysis of deep belief networks", section 4. The estimate of
    log Z is too low in expectation and that of log p(x) therefore too high: it is not a bound.

    Args:
        log_w: Logarithms of the weights, one for each chain, [K].
        log_unnormalised: log p*(x) of each sample, [N].
        steps: Number of temperatures, for the name.

    Returns:
        {"ais_<steps>", "ais_<steps>_se", "log_z", "log_z_se"}: the mean log p(x) and its standard error over the
        samples; log Z and its standard error from the spread of the chains' weights.
    """
    log_w, log_p = log_w.cpu().double(), log_unnormalised.cpu().double()
    k, n = len(log_w), len(log_p)
    log_z = (log_w.logsumexp(dim=0) - math.log(k)).item()
    relative = (log_w - log_z).exp()
    values = {
        f"ais_{steps}": log_p.mean().item() - log_z,
        f"ais_{steps}_se": (log_p.std() / math.sqrt(n)).item() if n > 1 else 0.0,
        "log_z": log_z,
        "log_z_se": (relative.std() / math.sqrt(k)).item() if k > 1 else 0.0,
    }
    card = {"n_real": n, "ais_steps": steps, "ais_samples": k, "ais_transitions": "Gibbs, of log Z; no bound"}
    return Scores(values, card)


def schedule(steps: int) -> Tensor:
    """beta_0 = 0 to beta_steps = 1 along a sigmoid, float64 [steps + 1]: slow at both ends, where most changes."""
    t = torch.sigmoid(SHARPNESS * torch.linspace(-1, 1, steps + 1, dtype=torch.float64))
    return (t - t[0]) / (t[-1] - t[0])


class _Chains:
    """k chains for each of N samples, [k N, Z], with log-densities and gradients at their positions."""

    def __init__(self, model: JointModel, x: Tensor, k: int, rng: torch.Generator) -> None:
        self.model, self.rng, self.n, self.k = model, rng, len(x), k
        self.x = x.unsqueeze(0).expand(k, *x.shape).flatten(0, 1)
        self.z = model.sample_prior(k * len(x), rng).detach()
        self.place = self._at(self.z)
        self.accepted = torch.zeros_like(self.place[0][: len(x)])

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log p(z), log p(x | z) [k N] in float64, and their gradients by z [k N, Z]."""
        z = z.detach().requires_grad_()
        log_prior = self.model.log_prior(z)
        (of_prior,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
        log_joint = self.model.log_joint(self.x, z)
        (of_joint,) = torch.autograd.grad(log_joint.sum(), z)
        log_prior, log_joint = in_float64(log_prior.detach()), in_float64(log_joint.detach())
        return log_prior, log_joint - log_prior, of_prior, of_joint - of_prior

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x | z) of each chain, [k, N]."""
        return self.place[1].unflatten(0, (self.k, self.n))

    def move(self, beta: float, step: Tensor) -> Tensor:
        """Runs one trajectory, which leaves p(z) p(x | z)^beta invariant; returns the mean acceptance [N].

        `step` holds the step size of each sample, [N].
        """

        def energy(place: tuple[Tensor, ...], momentum: Tensor) -> Tensor:
            return -place[0] - beta * place[1] + 0.5 * in_float64(momentum).square().sum(dim=1)

        def force(place: tuple[Tensor, ...]) -> Tensor:
            return place[2] + beta * place[3]

        jitter = 1 + JITTER * (2 * self._random(torch.rand, len(self.z)) - 1)
        eps = (jitter * step.to(self.z).repeat(self.k)).unsqueeze(1)
        momentum = self._random(torch.randn, *self.z.shape)
        z, place, start = self.z, self.place, energy(self.place, momentum)
        momentum = momentum + 0.5 * eps * force(place)
        for i in range(LEAPFROGS):
            z = z + eps * momentum
            place = self._at(z)
            momentum = momentum + (0.5 if i == LEAPFROGS - 1 else 1.0) * eps * force(place)
        # A trajectory with a non-finite energy has diverged: it is rejected.
        probability = torch.nan_to_num((start - energy(place, momentum)).clamp_max(0).exp(), nan=0.0)
        taken = in_float64(self._random(torch.rand, len(z))) < probability
        self.z = torch.where(taken[:, None].to(z.device), z, self.z)
        self.place = tuple(  # type: ignore[assignment]
            torch.where((taken if new.dim() == 1 else taken[:, None]).to(new.device), new, old)
            for new, old in zip(place, self.place, strict=True)
        )
        self.accepted += taken.double().view(self.k, self.n).mean(dim=0)
        return probability.view(self.k, self.n).mean(dim=0)

    def _random(self, draw: object, *shape: int) -> Tensor:
        assert callable(draw)
        values: Tensor = draw(*shape, generator=self.rng, device=self.rng.device, dtype=self.z.dtype)
        return values.to(self.z.device)


def _of_batch(
    model: JointModel, x: Tensor, steps: int, chains: int, rng: torch.Generator, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of `Annealed` for one batch."""
    beta = schedule(steps).tolist()
    sizes = _tuned(_Chains(model, x, min(2, chunk), rng), beta)
    weights, accepted = [], torch.zeros(len(x), dtype=torch.float64)
    for k in (min(chunk, chains - start) for start in range(0, chains, chunk)):
        group = _Chains(model, x, k, rng)
        log_w = torch.zeros_like(group.log_likelihood)
        for t in range(1, steps + 1):
            log_w += (beta[t] - beta[t - 1]) * group.log_likelihood
            if t < steps:
                group.move(beta[t], sizes[t])
        weights.append(log_w.cpu())
        accepted += group.accepted.cpu() * (k / chains / max(1, steps - 1))
    log_w = torch.cat(weights)
    log_sum = log_w.logsumexp(dim=0)
    return log_sum - math.log(chains), (2 * log_sum - (2 * log_w).logsumexp(dim=0)).exp(), accepted


def _tuned(pilot: _Chains, beta: list[float]) -> list[Tensor]:
    """A step size [N] for each temperature, tuned on pilot chains that are used for nothing else.

    The size grows if the acceptance is above `WANTED`, and shrinks if it is below.
    """
    size = torch.full_like(pilot.accepted, FIRST_STEP)
    sizes = [size]
    for t in [min(1, len(beta) - 1)] * TUNING + list(range(1, len(beta) - 1)):
        acceptance = pilot.move(beta[t], size)
        size = (size * (0.2 * (acceptance - WANTED)).exp()).clamp(SMALLEST, LARGEST)
        sizes[t:] = [size]
    return sizes
