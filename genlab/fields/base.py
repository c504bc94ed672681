"""Kinds of columns: the base of them all, and their registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Column, Seq
from genlab.errors import UserError
from genlab.fields.drawing import image_grid, text_cells
from genlab.fields.readout import Readout
from genlab.fields.sequences import flattened, together
from genlab.files import write_atomic

KINDS: dict[str, type[Field]] = {}


class Way(NamedTuple):
    """Values of a column in which one part varies.

    Attributes:
        part: Its name; "" where a value has only one.
        values: The values [T, ...], from one end to the other.
        texts: The part of each, T of them.
    """

    part: str
    values: Column
    texts: list[str]


@dataclass(frozen=True)
class Field:
    """The facts about one column, and what can be done with its values whatever the model.

    A kind is a subclass with a `kind` of its own: it is registered by being defined, also outside of genlab.

    Attributes:
        shape: Shape of one value as a model sees it; None first where values are sequences.
        size: Number of classes or words; None for kinds without.
        names: Of the classes, attributes or words.
        most: Longest sequence, or largest number of parts; None for kinds without.
        value_range: Smallest and largest value; None where there are no bounds.
    """

    kind: ClassVar[str] = ""
    pictorial: ClassVar[bool] = True  # whether each value makes a picture of its own, so that many are a grid of them
    pictured: ClassVar[bool] = False  # whether a value is seen best as a picture, not as a text
    pixelwise: ClassVar[bool] = False  # whether a value has a place for each pixel of the sample that it goes with
    located: ClassVar[bool] = (
        False  # whether a value says where in the picture things are, for networks that place them
    )
    mirrors: ClassVar[bool] = False  # whether a value can be mirrored left to right with its picture
    suffixes: ClassVar[tuple[str, ...]] = ()  # of the files that hold a value, if `parse` takes a file and not a text

    shape: tuple[int | None, ...] = ()
    size: int | None = None
    names: tuple[str, ...] | None = None
    most: int | None = None
    value_range: tuple[float, float] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            KINDS[cls.kind] = cls

    @property
    def ragged(self) -> bool:
        """Whether values are sequences of different lengths."""
        return bool(self.shape) and self.shape[0] is None

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape of one value; of one step where values are sequences."""
        return tuple(int(n) for n in self.shape if n is not None)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of one value in the store; of one step where values are sequences."""
        return self.fixed_shape

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for checkpoints and cards; facts at their default are left out."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}}

    # --- In the store and in a batch ------------------------------------------------------------------------------

    def check_stored(self, stored: Tensor) -> None:
        """Refuses stored values [N, ...] of another type or shape. Of sequences: all steps, joined.

        Raises:
            ValueError: Says what came and what is stored.
        """

    def known(self, values: Column) -> Tensor:
        """Which values are known, bool [N]; all of them unless the kind has a mark for those that are not."""
        device = values.values.device if isinstance(values, Seq) else values.device
        return torch.ones(len(values), dtype=torch.bool, device=device)

    def normalise(self, stored: Tensor) -> Tensor:
        """Stored values [N, ...] as a model sees them."""
        return stored

    def stored(self, values: Tensor) -> Tensor:
        """The inverse of `normalise`: values [N, ...] as the store keeps them, in its type."""
        return values

    def mirror(self, values: Tensor) -> Tensor:
        """Values [N, ...], stored or normalised, of the pictures mirrored left to right.

        Raises:
            UserError: If mirroring would make them wrong.
        """
        raise UserError(f"A column of kind {self.kind} cannot be mirrored with its picture. Try data.flip=false.")

    def random(self, n: int, rng: torch.Generator) -> Column:
        """n values at random, as a model sees them: for dry runs and tests."""
        raise NotImplementedError

    # --- For networks that are told it ----------------------------------------------------------------------------

    @property
    def vector_width(self) -> int | None:
        """Length of what `vector` gives; None where there is no `vector`."""
        return None

    def vector(self, values: Column) -> Tensor:
        """Values as vectors, float [N, vector_width], without weights; others: `genlab.networks.conditions`."""
        raise NotImplementedError

    def seen(self, values: Column) -> Tensor | None:
        """Which pixels of the samples the values show, [N, 1, H, W] of 0 and 1; None for kinds that show none."""
        return None

    # --- For networks that read it --------------------------------------------------------------------------------

    def readout(self, size: tuple[int, int]) -> Readout | None:
        """How values are read from pictures of this height and width; None for kinds that cannot be."""
        return None

    # --- For people -----------------------------------------------------------------------------------------------

    def text(self, values: Column) -> list[str]:
        """The values in words."""
        raise NotImplementedError

    def render(self, values: Tensor) -> Tensor:
        """Pictures as uint8 [N, C, H, W], with the channels that they have.

        Raises:
            UserError: If the values are no pictures (`cells` makes a picture of everything).
        """
        raise UserError(f"Samples of kind {self.kind!r} cannot be shown as images; choose an image data set.")

    def cells(self, values: Column) -> Tensor:
        """Each value as a picture, uint8 [N, 3, H, W]; of kinds that are no pictures, its text."""
        return text_cells(self.text(values))

    def sheet(self, values: Column, reference: Column | None = None) -> np.ndarray:
        """Many values as one picture, uint8 [H, W, 3]; a reference is drawn beneath where the kind has a use for it."""
        return image_grid(self.cells(values))

    def each(self, n: int) -> Column | None:
        """About n values that show all that there are, in order; None for kinds with too many to show."""
        return None

    def ways(self, value: Column, steps: int) -> list[Way]:
        """For each part of a value [1, ...] that can vary alone the way through all that it can be; [] for others.

        Args:
            value: Gives the parts that stay.
            steps: Values of a part that is a number.
        """
        return []

    def parse(self, text: str, n: int) -> Column:
        """n values of what was typed on a command line, as a model sees them.

        Raises:
            UserError: What is wrong with it and what is allowed, without the name of the column.
        """
        raise UserError(f"values of kind {self.kind} cannot be typed")

    def fitting(self, text: str, n: int) -> str | None:
        """How the files that `parse` reads are changed to fit, in words; None if they are not."""
        return None

    def of_files(self, paths: Sequence[Path]) -> Field:
        """The field with the facts that all files of a column tell together, for kinds with `suffixes`.

        Raises:
            UserError: If a file cannot be read.
        """
        return self

    def read(self, texts: Sequence[str], training: Tensor) -> tuple[Field, Column]:
        """Values [N] of the cells of a table, as a model sees them, and the field with the facts that the cells add.

        Args:
            texts: What `parse` takes, N of them.
            training: Positions of the training rows, from which such facts may be taken.

        Raises:
            UserError: What is wrong with a cell, without the name of the column.
        """
        values = [self.parse(text, 1) for text in texts]
        if self.ragged:
            return self, together([v.values[0, : int(v.length)] for v in values if isinstance(v, Seq)])
        return self, torch.cat([v for v in values if isinstance(v, Tensor)])

    def write(self, values: Column, path: Path) -> Path:
        """Writes values to a file of the kind's own format, its suffix added; an npz unless the kind has another.

        Sequences are written joined, with their offsets.
        """
        path = path.with_name(f"{path.name}.npz")
        if isinstance(values, Seq):
            flat, offsets = (part.cpu().numpy() for part in flattened(values))
            return write_atomic(path, lambda file: np.savez_compressed(file, flat=flat, offsets=offsets))
        return write_atomic(path, lambda file: np.savez_compressed(file, values=values.cpu().numpy()))


def spread(count: int, n: int) -> Tensor:
    """Which of `count` typed values each of n rows takes, [n]: each as often as the others, one after the other."""
    return torch.arange(n) * count // max(n, 1) if n >= count else torch.arange(n)
