"""Capabilities of models: a Protocol for each, and whether a model offers it.

Scripts, samplers, judges and callbacks ask `offers` (a method's `can`), never for names of methods.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

Rng = torch.Generator | None


class Samples(Protocol):
    """Draws samples."""

    def sample(self, n: int, y: Tensor | None = None, rng: Rng = None) -> Tensor:
        """[n, ...], of the classes y [n] where the model knows classes."""
        ...


class Encodes(Protocol):
    """Has codes of samples."""

    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, ...] of samples [N, ...]."""
        ...


class Decodes(Protocol):
    """Makes samples of codes."""

    def decode(self, z: Tensor) -> Tensor:
        """Samples [N, ...] of codes [N, ...]."""
        ...


class Reconstructs(Protocol):
    """Gives back what it is shown."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructions of samples, both [N, ...]."""
        ...


class LogJoint(Protocol):
    """Knows p(x, z); with `LogPrior` and `SamplesPosterior` it has importance-weighted bounds."""

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), [N] nats."""
        ...


class LogPrior(Protocol):
    """Knows p(z)."""

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [N] nats."""
        ...


class SamplesPrior(Protocol):
    """Draws continuous latents; with `LogJoint` and `LogPrior` it has annealed estimates."""

    def sample_prior(self, n: int, rng: Rng = None) -> Tensor:
        """z ~ p(z), [n, Z]."""
        ...


class SamplesPosterior(Protocol):
    """Draws latents of samples, and knows their density."""

    def sample_posterior(self, x: Tensor, k: int = 1, rng: Rng = None) -> tuple[Tensor, Tensor]:
        """z ~ q(z | x) [k, N, Z] and log q(z | x) [k, N]."""
        ...


class ScoresLogits(Protocol):
    """Has a discriminator that tells samples from data, each for itself."""

    def score_logits(self, x: Tensor) -> Tensor:
        """Logits [N] of samples [N, ...]: log p_data / p_model at its optimum."""
        ...


class Translates(Protocol):
    """Turns samples of one kind into another."""

    def translate(self, x: Tensor) -> Tensor:
        """Translations [N, ...] of samples [N, ...]."""
        ...


class Frames(Protocol):
    """Draws samples step by step."""

    def frames(self, n: int, rng: Rng = None) -> Tensor:
        """How n samples come about, [T, n, ...]."""
        ...


class Classifies(Protocol):
    """Knows the data's classes."""

    def classify(self, x: Tensor) -> Tensor:
        """Logits [N, K] of classes."""
        ...


class Clusters(Protocol):
    """Has found categories, which have no names."""

    def cluster(self, x: Tensor) -> Tensor:
        """Logits [N, K] of categories."""
        ...


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
    "classify": Classifies,
    "cluster": Clusters,
}


def offers(model: Any, capability: str) -> bool:
    """Whether a model offers a capability, one of `CAPABILITIES`."""
    assert capability in CAPABILITIES
    if capability == "score_logits" and any(getattr(m, "couples_samples", False) for m in model.modules()):
        return False  # a sample has no logit of its own
    return callable(getattr(model, capability, None))
