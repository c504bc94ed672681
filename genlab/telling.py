"""A model with its conditions filled in, for those who know samples and latents only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.contracts import offers


class Telling:
    """The capabilities of a model that is given columns, each under the conditions of N rows.

    An input of k N rows is taken for k draws of each, one set after the other, and has the conditions k times.
    """

    def __init__(self, model: Any, given: Batch) -> None:
        """Fills the conditions in.

        Args:
            model: The model.
            given: Its columns [N], on its device.
        """
        self.model, self.conditions = model, given

    def _rows(self, n: int) -> Batch:
        """The conditions of n rows, a multiple of N."""
        if n == len(self.conditions):
            return self.conditions
        return self.conditions.rows(torch.arange(n, device=self.model.device) % len(self.conditions))

    def _told(self, method: Callable[..., Any], n: int) -> dict[str, Batch]:
        """The conditions of n rows as an argument, if the method takes them: not all read what samples are told."""
        return {"given": self._rows(n)} if takes_conditions(method) else {}

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    @property
    def likelihood(self) -> Any:
        """The model's."""
        return self.model.likelihood

    def can(self, capability: str) -> bool:
        """Whether the model offers a capability."""
        return offers(self.model, capability)

    def parameters(self) -> Any:
        """The model's."""
        return self.model.parameters()

    def inference(self, gradients: bool = False) -> AbstractContextManager[None]:
        """See `GenerativeModel.inference`."""
        return self.model.inference(gradients)

    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Samples [n, ...]; of other conditions where some are given."""
        return self.model.sample(n, given=self._rows(n) if given is None else given, rng=rng)

    def frames(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Samples [T, n, ...] step by step."""
        return self.model.frames(n, rng=rng, **self._told(self.model.frames, n))

    def encode(self, x: Tensor) -> Tensor:
        """Codes of samples [n, ...]."""
        return self.model.encode(x, **self._told(self.model.encode, len(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Samples of codes [n, ...]."""
        return self.model.decode(z, **self._told(self.model.decode, len(z)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructions of samples [n, ...]."""
        return self.model.reconstruct(x, **self._told(self.model.reconstruct, len(x)))

    def score_logits(self, x: Tensor) -> Tensor:
        """Logits [n] of samples [n, ...]."""
        return self.model.score_logits(x, **self._told(self.model.score_logits, len(x)))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z | conditions), [n] nats."""
        return self.model.log_joint(x, z, **self._told(self.model.log_joint, len(x)))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z | conditions), [n] nats."""
        return self.model.log_prior(z, **self._told(self.model.log_prior, len(z)))

    def sample_prior(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """z ~ p(z | conditions), [n, Z]."""
        return self.model.sample_prior(n, rng=rng, **self._told(self.model.sample_prior, n))

    def sample_posterior(self, x: Tensor, k: int = 1, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """k draws z ~ q(z | x, conditions) of each sample and their log q."""
        told = self._told(self.model.sample_posterior, len(x))
        return self.model.sample_posterior(x, k, rng=rng, **told)

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the objective on samples [n, ...]."""
        return self.model.objective(x, rng, **self._told(self.model.objective, len(x)))


def takes_conditions(method: Callable[..., Any]) -> bool:
    """Whether a capability of a model takes the conditions of its samples, `given`."""
    return "given" in inspect.signature(method).parameters


def telling(model: Any, batch: Batch | None) -> Any:
    """The model under the conditions of a batch; the model itself if it is given no column.

    Raises:
        UserError: If the batch lacks a column.
    """
    told = model.told(batch)
    return Telling(model, told[0].to(model.device)) if told else model
