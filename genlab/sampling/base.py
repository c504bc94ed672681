"""Base of all samplers: the model methods they call, fitting, drawing, and a state of plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError

WITHOUT = {  # the reason, in messages, by missing capability
    "sample": "it cannot draw samples",
    "decode": "it cannot turn a given latent into a sample",
    "encode": "it has no encoder",
    "score_logits": "it has no discriminator",
}


class Model(Protocol):
    """The methods of a `GenerativeModel` that a sampler calls; `can` tests for the optional ones."""

    def can(self, capability: str) -> bool:
        """Whether the model offers "sample", "encode", "decode" or "score_logits"."""
        ...

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents from the prior, [n, Z]."""
        ...

    def inference(self, gradients: bool = False) -> AbstractContextManager[None]:
        """Context with averaged weights and eval mode; with `gradients`, inputs of the capabilities get gradients."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's weights by name."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def latent_prior(self) -> str:
        """The distribution of `noise`: "normal" (standard) or "uniform" on [-1, 1]."""
        ...

    @property
    def sample(self) -> Callable[..., Tensor]:
        """`sample(n, given=None, rng=None)`: samples [n, ...]."""
        ...

    @property
    def encode(self) -> Callable[..., Tensor]:
        """Samples [N, ...] to codes [N, Z]."""
        ...

    @property
    def decode(self) -> Callable[..., Tensor]:
        """Latents [N, Z] to samples [N, ...]."""
        ...

    @property
    def score_logits(self) -> Callable[..., Tensor]:
        """Samples [N, ...] to a discriminator's logits [N]."""
        ...


class Sampler:
    """Draws from a trained model without changing its weights, buffers or random streams.

    A subclass sets `needs` and defines `_sample`. If it must be fitted to the model or to data, it also defines `_fit`.
    Its `state_dict` holds all fitted values as plain tensors and is saved beside the checkpoint.

    Attributes:
        name: Name on the command line.
        needs: Capabilities that the model must have.
        fitted_by: Settings that the fit depends on; a changed setting needs a new fit. Empty without a fit.
        needs_data: Whether the fit uses real samples: "no", "optional" (without them the fit is worse) or "yes".
        split: Split of these samples.
        data_samples: Largest number of these samples.
        grows: Whether drawing changes the state, so that batches must be drawn one after the other.
        report: Figures of the last fit and the last draw by name, such as the acceptance rate.
        progress: Called with "fitting" or "drawing" and the share of it that is done, in [0, 1], where it takes long.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("sample",)
    fitted_by: ClassVar[tuple[str, ...]] = ()
    needs_data: str = "no"
    split: str = "train"
    data_samples: int = 10_000
    grows: ClassVar[bool] = False

    def __init__(self) -> None:
        self.report: dict[str, float] = {}
        self.progress: Callable[[str, float], None] = _silent

    @property
    def is_fitted(self) -> bool:
        """Whether the sampler is ready to draw."""
        return True

    def fit(self, model: Model, data: Tensor | None = None, rng: torch.Generator | None = None) -> None:
        """Fits the sampler to the model and real samples; most samplers need no fit.

        Args:
            model: A trained model.
            data: Real samples [N, ...] in the model's format, or None.
            rng: Random stream of the fit.

        Raises:
            UserError: If the model lacks a capability, or required samples are missing.
        """
        self.check(model)
        if data is None and self.needs_data == "yes":
            raise UserError(f"sampler={self.name} is fitted to codes of real samples, and there are none.")
        self._fit(model, data, generator(rng))

    def sample(self, model: Model, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws n samples, [n, ...].

        Args:
            model: The model that the sampler was fitted to.
            n: Number of samples.
            given: Conditions [n], for models that are given columns and `sampler=prior`.
            rng: Random stream; None: a new one, seeded from torch's global stream, as in `model.sample`.

        Raises:
            UserError: If the model lacks a capability, the sampler is not fitted, or it does not support conditions.
        """
        self.check(model)
        if n < 1:
            raise UserError(f"A sampler draws at least one sample, got n={n}.")
        if given is not None and self.name != "prior":
            raise UserError(f"sampler={self.name} takes no {', '.join(given.columns)}. Try sampler=prior.")
        if not self.is_fitted:
            raise UserError(f"sampler={self.name} must be fitted before it can draw: call its `fit` first.")
        return self._sample(model, n, given, generator(rng))

    def check(self, model: Model) -> None:
        """Refuses a model that the sampler cannot draw from.

        Raises:
            UserError: If the model lacks a capability; the message names the first one.
        """
        for capability in self.needs:
            if not model.can(capability):
                raise UserError(
                    f"sampler={self.name} does not fit {type(model).__name__}: {WITHOUT[capability]} "
                    f"(`{capability}`). Try sampler=prior."
                )

    def check_normal(self, model: Model) -> None:
        """Refuses a model whose latents are not standard normal."""
        if model.latent_prior != "normal":
            raise UserError(
                f"sampler={self.name} is for standard normal latents, and those of {type(model).__name__} are "
                f"{model.latent_prior}. Try sampler=prior."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """The fitted values, plain tensors by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the fitted values from a `state_dict`.

        Raises:
            UserError: If the state belongs to another sampler or to other settings.
        """
        expect_keys(self, state, set())

    def _fit(self, model: Model, data: Tensor | None, rng: torch.Generator) -> None:
        """The fit itself; `fit` calls it after its checks."""

    def _sample(self, model: Model, n: int, given: Batch | None, rng: torch.Generator) -> Tensor:
        """The drawing itself; `sample` calls it after its checks."""
        raise NotImplementedError


def _silent(what: str, share: float) -> None:
    """Shows nothing."""


def generator(rng: torch.Generator | None) -> torch.Generator:
    """`rng`, or a new stream seeded from torch's global stream if it is None."""
    return rng if rng is not None else torch.Generator().manual_seed(new_seed(None))


def new_seed(rng: torch.Generator | None) -> int:
    """A seed drawn from `rng` (None: the global stream), for code that cannot draw from a torch stream itself."""
    return int(torch.randint(2**31 - 1, (), generator=rng, device=None if rng is None else rng.device))


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal draws with the shape, type and device of x; `rng` may be on another device."""
    return torch.randn(x.shape, generator=rng, device=rng.device, dtype=x.dtype).to(x.device)


def rand_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) with the shape, type and device of x; `rng` may be on another device."""
    return torch.rand(x.shape, generator=rng, device=rng.device, dtype=x.dtype).to(x.device)


def expect_keys(sampler: Sampler, state: Mapping[str, Any], wanted: set[str]) -> None:
    """Refuses a state whose keys are not `wanted`.

    Raises:
        UserError: If the keys differ; the message names the first difference.
    """
    odd = sorted(set(state) ^ wanted)
    if odd:
        where = "the state" if odd[0] in wanted else "the sampler"
        raise UserError(
            f"The state does not fit sampler={sampler.name} as it is set: {odd[0]!r} is missing from {where}."
        )
