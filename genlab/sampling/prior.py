"""Sampling from the prior, full or truncated."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.sampling.base import Model, Sampler


class Prior(Sampler):
    """The model's own `sample`."""

    name = "prior"

    def _sample(self, model: Model, n: int, given: Batch | None, rng: torch.Generator) -> Tensor:
        return model.sample(n, given=given, rng=rng)


class Truncated(Sampler):
    """Truncation: latents nearer to the centre give fewer failed samples and less variety.

    There are two versions. `threshold`: Brock, Donahue & Simonyan (2019), arXiv:1809.11096, section 3.1; each
    coordinate of a standard normal latent outside [-threshold, threshold] is drawn again. `psi`: Karras, Laine & Aila
    (2019), arXiv:1812.04948, appendix B, with z in place of w; latents are multiplied by psi.
    """

    name = "truncated"
    needs: ClassVar[tuple[str, ...]] = ("decode",)

    def __init__(self, threshold: float | None = None, psi: float | None = None) -> None:
        """Chooses the version; exactly one of the two arguments must be given.

        Args:
            threshold: Largest absolute coordinate, in standard deviations, above 0.
            psi: Factor of the latents, from 0 (all equal) to 1 (the prior).

        Raises:
            UserError: If none or both are given, or the value is out of its range.
        """
        super().__init__()
        if (threshold is None) == (psi is None):
            raise UserError(
                f"sampler=truncated takes either sampler.threshold or sampler.psi and null for the other, "
                f"got {threshold} and {psi}."
            )
        if threshold is not None and not threshold > 0:
            raise UserError(f"sampler.threshold must be above 0, got {threshold}. Try sampler.threshold=1.0.")
        if psi is not None and not 0 <= psi <= 1:
            raise UserError(f"sampler.psi must be from 0 to 1, got {psi}. Try sampler.threshold=null sampler.psi=0.7.")
        self.threshold, self.psi = threshold, psi

    def check(self, model: Model) -> None:
        """As in the base class; the latents must also be standard normal."""
        super().check(model)
        self.check_normal(model)

    def latents(self, model: Model, n: int, rng: torch.Generator) -> Tensor:
        """Truncated latents, [n, Z]."""
        z = model.noise(n, rng)
        if self.psi is not None:
            return self.psi * z
        assert self.threshold is not None
        # For a small threshold, redrawing until all coordinates are inside takes thousands of rounds. Instead Phi(z),
        # which is uniform, is mapped to the quantile of the truncated normal: one draw, the same distribution.
        mass = math.erf(self.threshold / math.sqrt(2))
        inside = math.sqrt(2) * torch.erfinv(mass * torch.erf(in_float64(z) / math.sqrt(2)))
        return inside.to(z)

    def _sample(self, model: Model, n: int, given: Batch | None, rng: torch.Generator) -> Tensor:
        return model.decode(self.latents(model, n, rng))
