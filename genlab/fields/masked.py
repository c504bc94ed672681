"""Pictures of which only a part is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.drawing import to_rgb
from genlab.fields.image import to_uint8

HIDDEN = (214, 196, 222)  # colour of hidden pixels, which no grey picture has


@dataclass(frozen=True)
class Masked(Field):
    """A picture and, as its last channel, which pixels are seen: float32 [C + 1, H, W].

    Pixels are in [-1, 1], and 0 where they are hidden; the last channel is 1 where they are seen and 0 elsewhere.
    """

    kind: ClassVar[str] = "masked"
    pictured: ClassVar[bool] = True
    pixelwise: ClassVar[bool] = True
    mirrors: ClassVar[bool] = True

    value_range: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or self.fixed_shape[0] < 2:
            raise UserError(f"A masked image has the shape [C + 1, H, W], got {list(self.shape)}.")

    def mirror(self, values: Tensor) -> Tensor:
        """Left becomes right."""
        return values.flip(-1)

    def seen(self, values: Column) -> Tensor:
        """The last channel."""
        assert isinstance(values, Tensor)
        return values[:, -1:]

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Uniform pixels, each seen or not with probability 1/2."""
        channels, *sides = self.fixed_shape
        seen = (torch.rand(n, 1, *sides, generator=rng) < 0.5).float()
        return torch.cat([(2 * torch.rand(n, channels - 1, *sides, generator=rng) - 1) * seen, seen], dim=1)

    def text(self, values: Column) -> list[str]:
        """The shares that are seen."""
        assert isinstance(values, Tensor)
        return [f"{100 * float(v[-1].mean()):.0f} % seen" for v in values]

    def cells(self, values: Column) -> Tensor:
        """uint8 [N, 3, H, W]; hidden pixels in one colour."""
        assert isinstance(values, Tensor)
        pixels, seen = to_rgb(to_uint8(values[:, :-1])), values[:, -1:] > 0.5
        hidden = torch.tensor(HIDDEN, dtype=torch.uint8, device=values.device).view(1, 3, 1, 1)
        return torch.where(seen, pixels, hidden)
