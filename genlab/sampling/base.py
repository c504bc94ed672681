"""Base of all samplers: their view of a model, fitting, drawing, and a state of plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from genlab.errors import UserError

WITHOUT = {  # what a model lacks that cannot do this
    "sample": "it cannot draw samples",
    "decode": "it cannot turn a given latent into a sample",
    "encode": "it has no encoder",
    "score_logits": "it has no discriminator",
}


class Model(Protocol):
    """The methods of a model that a sampler calls; every `GenerativeModel` has them. `can` tells its capabilities."""

    def can(self, capability: str) -> bool:
        """Whether the model offers "sample", "encode", "decode" or "score_logits"."""
        ...

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents from the prior, [n, Z]."""
        ...

    def inference(self, gradients: bool = False) -> AbstractContextManager[None]:
        """Averaged weights and eval mode; with `gradients` they flow to what the capabilities are given."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's weights by name."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def latent_prior(self) -> str:
        """The distribution of `noise`: "normal" (standard), or "uniform" on [-1, 1]."""
        ...

    @property
    def sample(self) -> Callable[..., Tensor]:
        """`sample(n, y=None, rng=None)`: [n, ...]."""
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
    """A way of drawing from a trained model, which it never changes: not a weight, not a buffer, not a random stream.

    A subclass says what it `needs`, may `_fit` something to model and data, and writes `_sample`. Everything that it
    learns is in `state_dict`, plain tensors, so that it can be kept beside the checkpoint.

    Attributes:
        name: Under which the command line knows it.
        needs: The capabilities that a model must have.
        fitted_by: The settings that its fit depends on; empty for samplers that need no fit. Another value of one of
            them asks for another fit.
        needs_data: Whether the fit uses real samples: "no"; "optional", if it can do without, worse; or "yes".
        split: Which split these come from.
        data_samples: How many of them at most.
        grows: Whether drawing changes what it knows, so that batches must be drawn one after the other.
        report: What is to be said about the last fit and the last draw (acceptance, ...): numbers by name.
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

    @property
    def is_fitted(self) -> bool:
        """Whether it is ready to draw."""
        return True

    def fit(self, model: Model, data: Tensor | None = None, rng: torch.Generator | None = None) -> None:
        """Learns what it must know before it can draw; nothing for most.

        Args:
            model: A trained model.
            data: Real samples [N, ...] as the model knows them; None where there are none.
            rng: What the fit draws from.

        Raises:
            UserError: If the model lacks something, or data are needed and there are none.
        """
        self.check(model)
        if data is None and self.needs_data == "yes":
            raise UserError(f"sampler={self.name} is fitted to codes of real samples, and there are none.")
        self._fit(model, data, generator(rng))

    def sample(self, model: Model, n: int, y: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws n samples, [n, ...].

        Args:
            model: The model that it was fitted to.
            n: How many.
            y: Classes [n], for models that know them and samplers that pass them on.
            rng: What is drawn from; without one, it is seeded from torch's global stream, as in `model.sample`.

        Raises:
            UserError: If the model lacks something, the sampler was not fitted, or it knows no classes.
        """
        self.check(model)
        if n < 1:
            raise UserError(f"A sampler draws at least one sample, got n={n}.")
        if y is not None and self.name != "prior":
            raise UserError(f"sampler={self.name} knows no classes. Leave y out, or try sampler=prior.")
        if not self.is_fitted:
            raise UserError(f"sampler={self.name} must be fitted before it can draw: call its `fit` first.")
        return self._sample(model, n, y, generator(rng))

    def check(self, model: Model) -> None:
        """Refuses a model that the sampler cannot draw from.

        Raises:
            UserError: Names the first thing that is missing.
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
        """The fitted values: plain tensors by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            UserError: If it belongs to another sampler, or to another setting of this one.
        """
        expect_keys(self, state, set())

    def _fit(self, model: Model, data: Tensor | None, rng: torch.Generator) -> None:
        """The work of `fit`, after its checks."""

    def _sample(self, model: Model, n: int, y: Tensor | None, rng: torch.Generator) -> Tensor:
        """The work of `sample`, after its checks."""
        raise NotImplementedError


def generator(rng: torch.Generator | None) -> torch.Generator:
    """The stream to draw from; a new one, seeded from torch's global stream, where none is given."""
    return rng if rng is not None else torch.Generator().manual_seed(new_seed(None))


def new_seed(rng: torch.Generator | None) -> int:
    """A seed for whatever cannot draw from a torch stream itself."""
    return int(torch.randint(2**31 - 1, (), generator=rng, device=None if rng is None else rng.device))


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal draws of the shape, type and place of x, whatever the stream's own place."""
    return torch.randn(x.shape, generator=rng, device=rng.device, dtype=x.dtype).to(x.device)


def rand_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) of the shape, type and place of x."""
    return torch.rand(x.shape, generator=rng, device=rng.device, dtype=x.dtype).to(x.device)


def expect_keys(sampler: Sampler, state: Mapping[str, Any], wanted: set[str]) -> None:
    """Refuses a state that does not hold what it must.

    Raises:
        UserError: Names the first difference.
    """
    odd = sorted(set(state) ^ wanted)
    if odd:
        where = "the state" if odd[0] in wanted else "the sampler"
        raise UserError(
            f"The state does not fit sampler={sampler.name} as it is set: {odd[0]!r} is missing from {where}."
        )
