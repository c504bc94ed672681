"""Keypoints: named places in a picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.drawing import CANVAS, class_colours, drawn_cells
from genlab.fields.readout import Readout
from genlab.fields.typed import listed, number_in, read_yaml, rows_of

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as Pen

EXAMPLE = "{nose: [0.5, 0.4], ...}: x and y"
RADIUS = 3  # of a dot, in pixels
# As a word of its own or the start of one: left_eye, eye_left, eyeLeft, leftmost; not bright, upright, cleft.
SIDE = re.compile(r"(?<![A-Za-z])(?:left|right|LEFT|RIGHT)|Left|Right")
OTHER = {"left": "right", "right": "left", "LEFT": "RIGHT", "RIGHT": "LEFT", "Left": "Right", "Right": "Left"}


@dataclass(frozen=True)
class Keypoints(Field):
    """P places, float32 [P, 3]: x and y relative to the picture, from the upper left corner, and 1 if seen, else 0."""

    kind: ClassVar[str] = "keypoints"
    pictured: ClassVar[bool] = True
    located: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or self.ragged or self.shape[1] != 3:
            raise UserError(f"Keypoints have the shape [P, 3], got {list(self.shape)}.")
        if self.names is not None and len(self.names) != self.shape[0]:
            raise UserError(f"{self.shape[0]} keypoints need as many names, got {len(self.names)}.")

    @property
    def titles(self) -> tuple[str, ...]:
        """The names, else the numbers from 0."""
        return self.names or tuple(map(str, range(self.fixed_shape[0])))

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not float32 [N, P, 3]."""
        if stored.dtype != torch.float32 or stored.shape[1:] != self.fixed_shape:
            raise ValueError(
                f"Keypoints must be float32 [N, {self.shape[0]}, 3], got {stored.dtype} {list(stored.shape)}."
            )

    @property
    def mirrors(self) -> bool:  # type: ignore[override]
        """Whether every point has its partner on the other side."""
        try:
            return len(self._partners()) > 0
        except UserError:
            return False

    def mirror(self, values: Tensor) -> Tensor:
        """Left becomes right, and the left eye the right eye: partners are those whose names differ by the side.

        Raises:
            UserError: If there are no names, or a name's partner is missing.
        """
        partners = torch.tensor(self._partners(), device=values.device)
        x, y, seen = values.index_select(-2, partners).unbind(dim=-1)
        return torch.stack([torch.where(seen > 0, 1 - x, x), y, seen], dim=-1)

    def _partners(self) -> list[int]:
        if self.names is None:
            raise UserError(
                "Keypoints without names cannot be mirrored: the left ones are unknown. Try data.flip=false."
            )
        others = [SIDE.sub(lambda found: OTHER[found[0]], name) for name in self.names]
        missing = [name for name, other in zip(self.names, others, strict=True) if other not in self.names]
        if missing:
            raise UserError(
                f"Keypoints cannot be mirrored: {missing[0]} has no partner {others[self.names.index(missing[0])]}. "
                "Try data.flip=false."
            )
        return [self.names.index(other) for other in others]

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Uniform places, each seen with probability 3/4, zeros where not."""
        p = self.fixed_shape[0]
        seen = (torch.rand(n, p, 1, generator=rng) < 0.75).float()
        return torch.cat([torch.rand(n, p, 2, generator=rng), torch.ones(n, p, 1)], dim=2) * seen

    def readout(self, size: tuple[int, int]) -> Readout:
        """The places of those that are seen."""

        def distance(out: Tensor, told: Tensor) -> Tensor:
            return (out.view(len(out), -1, 2) - told[..., :2]).norm(dim=2) * told[..., 2]

        def compared(out: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
            return (told[..., 2] - distance(out, told)).clamp_min(0), told[..., 2]

        def loss(out: Tensor, told: Tensor) -> Tensor:
            return distance(out, told).square().sum() / told[..., 2].sum().clamp_min(1)

        return Readout("1 - distance in sides of the picture", (2 * self.fixed_shape[0],), compared, loss=loss)

    def text(self, values: Column) -> list[str]:
        """Those that are seen, as `parse` reads them."""
        assert isinstance(values, Tensor)
        rows = [zip(self.titles, row, strict=True) for row in values.tolist()]
        return [f"{{{', '.join(f'{t}: [{x:.3g}, {y:.3g}]' for t, (x, y, s) in row if s > 0.5)}}}" for row in rows]

    def cells(self, values: Column) -> Tensor:
        """A dot for each that is seen, on white, in a colour of its own."""
        assert isinstance(values, Tensor)
        rows, colours = values.tolist(), class_colours(self.fixed_shape[0])

        def draw(i: int, pen: Pen) -> None:
            for (x, y, seen), colour in zip(rows[i], colours, strict=True):
                if seen > 0.5:
                    column, row = (min(int(place * CANVAS), CANVAS - 1) for place in (x, y))  # the pixel around it
                    pen.ellipse((column - RADIUS, row - RADIUS, column + RADIUS, row + RADIUS), fill=colour)

        return drawn_cells(len(rows), draw)

    def parse(self, text: str, n: int) -> Tensor:
        """Keypoints [n, P, 3] of "{nose: [0.5, 0.4], ...}"; those that are not typed are unseen, (0, 0, 0).

        Several values have ";" between them.
        """
        return rows_of(text, n, self._parsed)

    def _parsed(self, text: str) -> Tensor:
        found = read_yaml(text, EXAMPLE)
        if not isinstance(found, dict) or not all(isinstance(v, list) and len(v) == 2 for v in found.values()):
            raise UserError(f"{text!r} is no list of keypoints; write it as {EXAMPLE}")
        values = dict.fromkeys(self.titles, [0.0, 0.0, 0.0])
        for name, (x, y) in found.items():
            if name not in values:
                raise UserError(f"{name!r} is no keypoint; they are {listed(self.titles)}")
            values[name] = [number_in(x, 0, 1, f"x of {name}"), number_in(y, 0, 1, f"y of {name}"), 1.0]
        return torch.tensor(list(values.values()))
