"""Attributes: numbers with names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field, Way
from genlab.fields.readout import Readout
from genlab.fields.typed import listed, number_in, rows_of


@dataclass(frozen=True)
class Attributes(Field):
    """Numbers with names, [A]: uint8 0 or 1, or float32, in the store; float32 for a model.

    `value_range` is (0, 1) for what a thing is or is not; known factors of variation use (-1, 1). None: no bounds.
    """

    kind: ClassVar[str] = "attributes"
    mirrors: ClassVar[bool] = True

    value_range: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 1 or self.ragged:
            raise UserError(f"Attributes have the shape [A], got {list(self.shape)}.")
        if self.names is not None and len(self.names) != self.shape[0]:
            raise UserError(f"{self.shape[0]} attributes need as many names, got {len(self.names)}.")

    @property
    def titles(self) -> tuple[str, ...]:
        """The names, else the numbers from 0."""
        return self.names or tuple(map(str, range(*self.fixed_shape)))

    @property
    def ends(self) -> tuple[float, float]:
        """The lower and the upper end: absent and present."""
        return self.value_range or (0.0, 1.0)

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not uint8 or float32 [N, A]."""
        if stored.dtype not in (torch.uint8, torch.float32) or stored.shape[1:] != self.fixed_shape:
            raise ValueError(
                f"Attributes must be uint8 or float32 [N, {self.shape[0]}], got {stored.dtype} {list(stored.shape)}."
            )

    def normalise(self, stored: Tensor) -> Tensor:
        """As float32; bytes 0 and 1 become the ends of the range."""
        if stored.dtype != torch.uint8:
            return stored.float()
        low, high = self.ends
        return low + (high - low) * stored.float()

    def mirror(self, values: Tensor) -> Tensor:
        """The same values."""
        return values

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Uniform in their range."""
        low, high = self.ends
        return low + (high - low) * torch.rand(n, *self.fixed_shape, generator=rng)

    def readout(self, size: tuple[int, int]) -> Readout | None:
        """Of a range from 0 to 1 whether each is present, else each amount; None without bounds."""
        low, high = self.ends
        binary = self.value_range == (0.0, 1.0)

        def target(values: Column) -> Tensor:
            assert isinstance(values, Tensor)
            return ((values - low) / (high - low)).clamp(0, 1)

        def compared(out: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
            right = (out > 0) == (told > 0.5) if binary else 1 - (out.sigmoid() - told).abs()
            return right, torch.ones_like(told)

        noun = "share of attributes" if binary else "1 - error as a share of the range"
        return Readout(noun, self.fixed_shape, compared, target) if self.value_range else None

    def text(self, values: Column) -> list[str]:
        """Of a range from 0 to 1 the names of those above the middle, or "none"; else each name with its value."""
        assert isinstance(values, Tensor)
        if self.value_range == (0.0, 1.0):
            present = [[t for t, v in zip(self.titles, row, strict=True) if v > 0.5] for row in values.tolist()]
            return [", ".join(names) or "none" for names in present]
        return [", ".join(f"{t}: {v:.3g}" for t, v in zip(self.titles, row, strict=True)) for row in values.tolist()]

    def ways(self, value: Column, steps: int) -> list[Way]:
        """One way for each attribute: from the lower to the upper end of the range."""
        assert isinstance(value, Tensor)
        numbers = torch.linspace(*self.ends, steps)
        texts = [f"{number:.3g}" for number in numbers.tolist()]
        rows = value.cpu().expand(steps, -1)
        return [
            Way(t, rows.index_copy(1, torch.tensor([i]), numbers[:, None]), texts) for i, t in enumerate(self.titles)
        ]

    def parse(self, text: str, n: int) -> Tensor:
        """Attributes [n, A] of "{smiling: 1, male: 0}", or "smiling, male" for those at the upper end, or "none".

        Those that are not typed are at the lower end. Several values have ";" between them.
        """
        return rows_of(text, n, self._parsed)

    def _parsed(self, text: str) -> Tensor:
        low, high = self.ends
        bounds = self.value_range or (-float("inf"), float("inf"))
        values = dict.fromkeys(self.titles, low)
        body = text.strip("{} ")
        for part in [] if body in ("", "none") and body not in values else body.split(","):
            name, colon, number = (piece.strip() for piece in part.partition(":"))
            if name not in values:
                raise UserError(f"{name!r} is no attribute; they are {listed(self.titles)}")
            values[name] = number_in(number, *bounds, noun=name) if colon else high
        return torch.tensor(list(values.values()))
