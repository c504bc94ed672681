"""Capabilities of models: a Protocol for each, and `offers`, which tests a model for one.

Scripts, samplers, judges and callbacks ask `offers` (or the model's `can`) and never test the name of a method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from genlab.batch import Batch

Rng = torch.Generator | None


class Samples(Protocol):
    """Draws samples."""

    def sample(self, n: int, given: Batch | None = None, rng: Rng = None) -> Tensor:
        """Samples [n, ...] under the conditions of the given rows [n], for a model that is given columns."""
        ...


class Encodes(Protocol):
    """Maps samples to codes."""

    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, ...] of samples [N, ...]."""
        ...


class Decodes(Protocol):
    """Maps codes to samples."""

    def decode(self, z: Tensor) -> Tensor:
        """Samples [N, ...] of codes [N, ...]."""
        ...


class Reconstructs(Protocol):
    """Reconstructs samples."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructions of samples, both [N, ...]."""
        ...


class LogJoint(Protocol):
    """Evaluates p(x, z); with `LogPrior` and `SamplesPosterior`, importance-weighted bounds can be computed."""

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), [N] nats."""
        ...


class LogPrior(Protocol):
    """Evaluates p(z)."""

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [N] nats."""
        ...


class SamplesPrior(Protocol):
    """Draws continuous latents from the prior; with `LogJoint` and `LogPrior`, annealed estimates can be computed."""

    def sample_prior(self, n: int, rng: Rng = None) -> Tensor:
        """z ~ p(z), [n, Z]."""
        ...


class SamplesPosterior(Protocol):
    """Draws latents of given samples, with their densities."""

    def sample_posterior(self, x: Tensor, k: int = 1, rng: Rng = None) -> tuple[Tensor, Tensor]:
        """z ~ q(z | x) [k, N, Z] and log q(z | x) [k, N]."""
        ...


class ScoresLogits(Protocol):
    """Has a discriminator of data and samples that judges each sample by itself."""

    def score_logits(self, x: Tensor) -> Tensor:
        """Logits [N] of samples [N, ...]; for an optimal discriminator, log p_data / p_model."""
        ...


class Translates(Protocol):
    """Turns samples of one kind into another."""

    def translate(self, x: Tensor) -> Tensor:
        """Translations [N, ...] of samples [N, ...]."""
        ...


class Frames(Protocol):
    """Draws samples step by step."""

    def frames(self, n: int, rng: Rng = None) -> Tensor:
        """The T intermediate states of n samples, [T, n, ...]."""
        ...


class PredictsNext(Protocol):
    """Predicts the next token of sequences, for perplexities."""

    def next_logits(self, x: Any) -> Tensor:
        """Logits [N, T, V] of each token of `x` ([N, T], or a `Seq`), given those before it."""
        ...


class Classifies(Protocol):
    """Predicts the classes of the data."""

    def classify(self, x: Tensor) -> Tensor:
        """Logits [N, K] of classes."""
        ...


class Discerns(Protocol):
    """Has a discriminator that predicts the classes of the data, beside a classifier of its own in `classify`."""

    def discern(self, x: Tensor) -> Tensor:
        """Logits [N, K] of classes, by the discriminator."""
        ...


class Clusters(Protocol):
    """Predicts categories that were learned without labels."""

    def cluster(self, x: Tensor) -> Tensor:
        """Logits [N, K] of categories."""
        ...


class Further(Protocol):
    """Attributes that some methods have and others ask for; a method without one is taken to have its default.

    Attributes:
        batches_at: Fresh batches of an iteration, by its number, where `batches_per_step` is no constant.
        factor_units: The latent that stands for each known factor of the data, by position; none.
        first_stage: The trained model that this one builds on; none.
        has_averages: Whether samples and scores use averaged weights; no.
        latent_dim: Width of the latent; unknown.
        likelihood: p(x | z), whose `support` says of which data it is one; that of real numbers.
        log_partition: Annealed estimates of log Z, for energy-based models; none.
        objective: The terms of the training loss on samples, for validation; none.
        penalty: The penalty on the discriminator's gradient, None for none; the method takes none.
        posterior_draws: The largest number of posterior draws that make a difference; any.
        spec: The facts about the data; not set yet.
        whole_batch: Name of the term that needs all samples of a batch at once, with gradients; none. Modules may have
            it, too.
    """

    batches_at: Callable[[int], int]
    factor_units: tuple[int, ...]
    first_stage: Any
    has_averages: bool
    latent_dim: int
    likelihood: Any
    log_partition: Callable[..., Tensor]
    objective: Callable[..., dict[str, Tensor]]
    penalty: Any
    posterior_draws: int
    spec: Any
    whole_batch: str


CAPABILITIES: dict[str, type] = {
    "sample": Samples,
    "encode": Encodes,
    "decode": Decodes,
    "reconstruct": Reconstructs,
    "log_joint": LogJoint,
    "log_prior": LogPrior,
    "sample_prior": SamplesPrior,
    "sample_posterior": SamplesPosterior,
    "score_logits": ScoresLogits,
    "translate": Translates,
    "frames": Frames,
    "next_logits": PredictsNext,
    "classify": Classifies,
    "discern": Discerns,
    "cluster": Clusters,
}


def offers(model: Any, capability: str) -> bool:
    """Whether the model offers a capability, a key of `CAPABILITIES`."""
    assert capability in CAPABILITIES
    if capability == "score_logits" and any(getattr(m, "couples_samples", False) for m in model.modules()):
        return False  # the logit of a sample depends on its batch
    return callable(getattr(model, capability, None))


if TYPE_CHECKING:

    class Offered:
        """Capabilities for the type checker, offered or not; `offers` tells."""

        sample: Callable[..., Tensor]
        encode: Callable[..., Tensor]
        decode: Callable[..., Tensor]
        reconstruct: Callable[..., Tensor]
        log_joint: Callable[..., Tensor]
        log_prior: Callable[..., Tensor]
        sample_prior: Callable[..., Tensor]
        sample_posterior: Callable[..., tuple[Tensor, Tensor]]
        score_logits: Callable[..., Tensor]
        translate: Callable[..., Tensor]
        frames: Callable[..., Tensor]
        next_logits: Callable[..., Tensor]
        classify: Callable[..., Tensor]
        discern: Callable[..., Tensor]
        cluster: Callable[..., Tensor]

else:
    Offered = object
