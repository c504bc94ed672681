"""Sketches as movements of a pen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.drawing import CANVAS, drawn_cells
from genlab.fields.sequences import apart, cut, random_lengths
from genlab.files import write_text

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as Pen

MARGIN = 8  # pixels around a drawing
INK = (34, 34, 34)


@dataclass(frozen=True)
class Strokes(Field):
    """Sequences of pen movements; Ha & Eck (2018), "A Neural Representation of Sketch Drawings", section 3.1.

    Stored are float32 steps (dx, dy, 1 if the pen is lifted after it), y downwards. A model sees float32
    (dx, dy, p1, p2, p3): the pen stays down after the step, is lifted after it, or the sketch has ended before it.
    Storing knows no p3, because a `Seq` has lengths; a model that samples it may leave it as the last step.
    """

    kind: ClassVar[str] = "strokes"
    pictured: ClassVar[bool] = True
    mirrors: ClassVar[bool] = True

    shape: tuple[int | None, ...] = (None, 5)

    def __post_init__(self) -> None:
        if self.shape != (None, 5):
            raise UserError(f"Strokes have the shape [null, 5], got {list(self.shape)}.")

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not float32 [S, 3]."""
        if stored.dtype != torch.float32 or stored.dim() != 2 or stored.shape[1] != 3:
            raise ValueError(
                f"Strokes must be float32 [S, 3], all sketches joined, got {stored.dtype} {list(stored.shape)}."
            )

    def normalise(self, stored: Tensor) -> Tensor:
        """(dx, dy, lifted) -> (dx, dy, 1 - lifted, lifted, 0)."""
        lifted = stored[..., 2:]
        return torch.cat([stored[..., :2], 1 - lifted, lifted, torch.zeros_like(lifted)], dim=-1)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """A step (dx, dy, lifted)."""
        return (3,)

    def stored(self, values: Tensor) -> Tensor:
        """(dx, dy, p1, p2, p3) -> (dx, dy, p2)."""
        return torch.cat([values[..., :2], values[..., 3:4]], dim=-1)

    def mirror(self, values: Tensor) -> Tensor:
        """dx becomes -dx."""
        return torch.cat([-values[..., :1], values[..., 1:]], dim=-1)

    def random(self, n: int, rng: torch.Generator) -> Column:
        """Steps from a standard normal distribution; after each the pen is lifted with probability 1/8."""
        length = random_lengths(n, self.most, rng)
        steps = int(length.max())
        lifted = (torch.rand(n, steps, 1, generator=rng) < 0.125).float()
        return cut(self.normalise(torch.cat([torch.randn(n, steps, 2, generator=rng), lifted], dim=2)), length)

    def text(self, values: Column) -> list[str]:
        """Their numbers of strokes and places."""
        drawings = [lines(value) for value in apart(values)]
        return [f"strokes: {len(drawing)}, places: {sum(map(len, drawing))}" for drawing in drawings]

    def cells(self, values: Column) -> Tensor:
        """The drawings, dark on white, each as large as fits and centred."""
        drawings = [lines(value) for value in apart(values)]

        def draw(i: int, pen: Pen) -> None:
            if not drawings[i]:
                return
            low, high = bounds(drawings[i])
            scale = (CANVAS - 1 - 2 * MARGIN) / float((high - low).max().clamp_min(1e-6))
            for line in drawings[i]:
                places = ((line - (low + high) / 2) * scale + (CANVAS - 1) / 2).tolist()
                pen.line([(x, y) for x, y in [places[0], *places]], fill=INK, width=2)  # one place alone is a dot

        return drawn_cells(len(drawings), draw)

    def write(self, values: Column, path: Path) -> Path:
        """A folder of svg files, 000000.svg, 000001.svg, ..."""
        for i, value in enumerate(apart(values)):
            write_text(path / f"{i:06d}.svg", svg(lines(value)))
        return path


def lines(steps: Tensor) -> list[Tensor]:
    """The lines of a sketch [T, 5]: the places [M, 2] that the pen passes without being lifted, from (0, 0).

    The step to the first place draws nothing, as in the authors' code, nor does anything from the first p3 on.
    """
    pen = steps[:, 2:].argmax(dim=1)
    drawn = int((pen == 2).cumsum(0).eq(0).sum())
    lifted = (pen[:drawn] == 1).nonzero().squeeze(1) + 1
    return [line for line in steps[:drawn, :2].cumsum(0).tensor_split(lifted) if len(line)]


def bounds(drawing: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The upper left and the lower right corner, [2] each."""
    places = torch.cat(drawing)
    return places.amin(dim=0), places.amax(dim=0)


def svg(drawing: list[Tensor]) -> str:
    """A drawing as an svg file, in its own units."""
    low, high = bounds(drawing) if drawing else (torch.zeros(2), torch.ones(2))
    side = float((high - low).max()) or 1.0
    (x, y), (width, height) = (low - side / 20).tolist(), (high - low + side / 10).tolist()
    paths = [
        "M" + " L".join(f"{a:g},{b:g}" for a, b in (line if len(line) > 1 else line.repeat(2, 1)).tolist())
        for line in drawing
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x:g} {y:g} {width:g} {height:g}">\n'
        f'<path d="{" ".join(paths)}" fill="none" stroke="black" stroke-width="{side / 100:g}" '
        'stroke-linecap="round" stroke-linejoin="round"/>\n</svg>\n'
    )
