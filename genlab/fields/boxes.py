"""Boxes around the things in a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.drawing import CANVAS, class_colours, drawn_cells
from genlab.fields.readout import Readout, overlap
from genlab.fields.typed import listed, number_in, read_yaml, rows_of

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as Pen

EXAMPLE = "[[0, 0.1, 0.2, 0.3, 0.4], ...]: class, left, top, width, height"
SIDES = ("left", "top", "width", "height")
ROUNDING = 1e-3  # of typed shares


@dataclass(frozen=True)
class Boxes(Field):
    """At most K boxes, float32 [K, 5]: class, left, top, width and height, the last four relative to the picture.

    A class of -1 says that there is no box. `size` and `names` are those of the classes, `most` is K.
    """

    kind: ClassVar[str] = "boxes"
    pictured: ClassVar[bool] = True
    located: ClassVar[bool] = True
    mirrors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or self.ragged or self.shape[1] != 5:
            raise UserError(f"Boxes have the shape [K, 5], got {list(self.shape)}.")
        if self.most not in (None, self.shape[0]):
            raise UserError(f"Boxes of shape {list(self.shape)} are at most {self.shape[0]}, got most={self.most}.")
        if self.names is not None and self.size not in (None, len(self.names)):
            raise UserError(f"{self.size} classes of boxes need as many names, got {len(self.names)}.")

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not float32 [N, K, 5]."""
        if stored.dtype != torch.float32 or stored.shape[1:] != self.fixed_shape:
            raise ValueError(f"Boxes must be float32 [N, {self.shape[0]}, 5], got {stored.dtype} {list(stored.shape)}.")

    def mirror(self, values: Tensor) -> Tensor:
        """The left edge becomes the right one; places without a box stay as they are."""
        kind, left, top, width, height = values.unbind(dim=-1)
        left = torch.where(kind >= 0, 1 - left - width, left)
        return torch.stack([kind, left, top, width, height], dim=-1)

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """1 to K boxes within the picture."""
        k = self.fixed_shape[0]
        kind = torch.randint(self._classes or 1, (n, k, 1), generator=rng).float()
        corner, share = torch.rand(2, n, k, 2, generator=rng)
        there = torch.arange(k)[:, None] < torch.randint(1, k + 1, (n, 1, 1), generator=rng)
        empty = torch.tensor([-1.0, 0, 0, 0, 0])
        return torch.where(there, torch.cat([kind, corner, share * (1 - corner)], dim=2), empty)

    @property
    def _classes(self) -> int | None:
        return len(self.names) if self.names else self.size

    def _name(self, kind: float) -> str:
        return self.names[int(kind)] if self.names else str(int(kind))

    def readout(self, size: tuple[int, int]) -> Readout:
        """The pixels whose middle lies within a box of each class; of any class where their number is not known."""
        classes = torch.arange(self._classes or 1)
        y, x = ((torch.arange(n) + 0.5) / n for n in size)

        def target(values: Column) -> Tensor:
            assert isinstance(values, Tensor)
            kind, left, top, width, height = (part.unsqueeze(2).cpu() for part in values.unbind(dim=2))
            mine = kind == classes if self._classes else kind >= 0
            within = (mine, (y >= top) & (y < top + height), (x >= left) & (x < left + width))
            return torch.einsum("nkc,nkh,nkw->nchw", *(each.float() for each in within)).clamp(max=1).to(values.device)

        return Readout("IoU of filled boxes", (len(classes), *size), lambda out, t: overlap(out > 0, t > 0), target)

    def text(self, values: Column) -> list[str]:
        """As `parse` reads them."""
        assert isinstance(values, Tensor)
        rows = [[box for box in row if box[0] >= 0] for row in values.tolist()]
        typed = [[", ".join([self._name(k), *(f"{v:.3g}" for v in box)]) for k, *box in row] for row in rows]
        return [f"[{', '.join(f'[{box}]' for box in row)}]" for row in typed]

    def cells(self, values: Column) -> Tensor:
        """Outlines in the colours of the classes, on white, with the name of the class where it fits."""
        assert isinstance(values, Tensor)
        rows = values.tolist()
        colours = class_colours(self._classes or 1 + int(values[..., 0].max()))

        def draw(i: int, pen: Pen) -> None:
            for kind, left, top, width, height in rows[i]:
                if kind < 0:
                    continue
                x0, y0 = round(left * CANVAS), round(top * CANVAS)
                x1, y1 = max(x0, round((left + width) * CANVAS) - 1), max(y0, round((top + height) * CANVAS) - 1)
                pen.rectangle((x0, y0, x1, y1), outline=colours[int(kind)], width=2)
                name = self._name(kind)
                _, _, right, bottom = pen.textbbox((x0 + 4, y0 + 3), name)
                if right < x1 - 2 and bottom < y1 - 2:
                    pen.text((x0 + 4, y0 + 3), name, fill=colours[int(kind)])

        return drawn_cells(len(rows), draw)

    def parse(self, text: str, n: int) -> Tensor:
        """Boxes [n, K, 5] of "[[ellipse, 0.1, 0.2, 0.3, 0.4], ...]", classes by name or number; "[]" is none.

        Several values have ";" between them.
        """
        return rows_of(text, n, self._parsed)

    def _parsed(self, text: str) -> Tensor:
        found = read_yaml(text, EXAMPLE)
        k = self.fixed_shape[0]
        if not isinstance(found, list) or not all(isinstance(box, list) and len(box) == 5 for box in found):
            raise UserError(f"{text!r} is no list of boxes; write it as {EXAMPLE}")
        if len(found) > k:
            raise UserError(f"there are at most {k} boxes, got {len(found)}")
        boxes = [[self._class(str(kind)), *_within(map(_share, SIDES, sides))] for kind, *sides in found]
        return torch.tensor(boxes + [[-1.0, 0.0, 0.0, 0.0, 0.0]] * (k - len(boxes)))

    def _class(self, word: str) -> float:
        if self.names and word in self.names:
            return float(self.names.index(word))
        if not word.isdecimal() or int(word) >= (self._classes or int(word) + 1):
            known = f" ({listed(self.names)})" if self.names else ""
            upper = f" to {self._classes - 1}" if self._classes else " upwards"
            raise UserError(f"{word!r} is no class; they are 0{upper}{known}")
        return float(word)


def _within(sides: Iterable[float]) -> list[float]:
    """Left, top, width and height of a box that does not reach beyond the picture, but for rounding."""
    left, top, width, height = sides
    for start, length, (side, noun) in ((left, width, ("left", "width")), (top, height, ("top", "height"))):
        if start + length > 1 + ROUNDING:
            raise UserError(f"a box lies within the picture, so {side} + {noun} is at most 1, got {start + length:g}")
    return [left, top, width, height]


def _share(noun: str, word: str) -> float:
    return number_in(word, 0, 1, noun)
