"""Piano rolls: which notes sound at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Column, Seq
from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.sequences import apart, cut, random_lengths

PAPER, AFTER = 255, 225  # grey values within a piece and after its end


@dataclass(frozen=True)
class Roll(Field):
    """Sequences of steps [P], 1 for each pitch that sounds: uint8 in the store, float32 for a model.

    `names` are those of the pitches, from the lowest.
    """

    kind: ClassVar[str] = "roll"
    pictured: ClassVar[bool] = True

    value_range: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or not self.ragged or None in self.shape[1:]:
            raise UserError(f"A piano roll has the shape [null, P], got {list(self.shape)}.")
        if self.names is not None and len(self.names) != self.shape[1]:
            raise UserError(f"{self.shape[1]} pitches need as many names, got {len(self.names)}.")

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not uint8 [S, P]."""
        if stored.dtype != torch.uint8 or stored.dim() != 2 or stored.shape[1] != self.shape[1]:
            raise ValueError(
                f"Piano rolls must be uint8 [S, {self.shape[1]}], all pieces joined, got {stored.dtype} "
                f"{list(stored.shape)}."
            )

    def normalise(self, stored: Tensor) -> Tensor:
        """As float32."""
        return stored.float()

    def stored(self, values: Tensor) -> Tensor:
        """As uint8: 1 from a half on."""
        return (values >= 0.5).to(torch.uint8)

    def random(self, n: int, rng: torch.Generator) -> Column:
        """Pitches that each sound with probability 1/8."""
        length = random_lengths(n, self.most, rng)
        drawn = torch.rand(n, int(length.max()), *self.fixed_shape, generator=rng)
        return cut((drawn < 0.125).float(), length)

    def text(self, values: Column) -> list[str]:
        """The pitches of each step, "-" for silence, with "|" between steps."""
        titles = self.names or tuple(map(str, range(*self.fixed_shape)))
        return [
            " | ".join(
                " ".join(t for t, v in zip(titles, step, strict=True) if v > 0.5) or "-" for step in piece.tolist()
            )
            for piece in apart(values)
        ]

    def cells(self, values: Column) -> Tensor:
        """One pixel a step and pitch, uint8 [N, 3, P, T]: time to the right, high pitches above, black notes on white.

        What follows a piece's end is grey. T is `most` where the field has it, so that all pictures are equally wide.
        """
        assert isinstance(values, Seq)
        pieces = values.values.cpu().transpose(1, 2).flip(1)
        paper = torch.where(values.mask.cpu(), PAPER, AFTER).unsqueeze(1)
        cells = (paper * (1 - pieces.float().clamp(0, 1))).round()
        missing = max(0, (self.most or 0) - cells.shape[2])
        cells = torch.nn.functional.pad(cells, (0, missing), value=AFTER).to(torch.uint8)
        return cells.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
