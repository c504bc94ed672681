"""Class maps: of each pixel of a picture, what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.fields.decoding import centre_crop
from genlab.fields.drawing import class_colours
from genlab.fields.label import one_hot
from genlab.fields.readout import Readout, overlap
from genlab.fields.typed import files_at, fitted, listed
from genlab.files import write_atomic

UNKNOWN = 255  # in the store and in files; -1 for a model
WHITE = (255, 255, 255)  # colour of pixels that are not known
TOLD = 4  # classes in a text


@dataclass(frozen=True)
class Layout(Field):
    """A class a pixel: uint8 [H, W] in the store, 255 where it is not known; int64 for a model, -1 where not known.

    `size` and `names` are those of the classes.
    """

    kind: ClassVar[str] = "layout"
    suffixes: ClassVar[tuple[str, ...]] = (".png",)
    pictured: ClassVar[bool] = True
    located: ClassVar[bool] = True
    pixelwise: ClassVar[bool] = True
    mirrors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or self.ragged:
            raise UserError(f"A class map has the shape [H, W], got {list(self.shape)}.")
        if self.size is not None and not 1 <= self.size <= UNKNOWN:
            raise UserError(f"A class map has 1 to {UNKNOWN} classes, got size={self.size}.")
        if self.names is not None and self.size not in (None, len(self.names)):
            raise UserError(f"{self.size} classes of a map need as many names, got {len(self.names)}.")

    @property
    def _classes(self) -> int:
        return self.size or len(self.names or ()) or UNKNOWN

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not uint8 [N, H, W]."""
        if stored.dtype != torch.uint8 or stored.shape[1:] != self.fixed_shape:
            height, width = self.fixed_shape
            raise ValueError(
                f"Class maps must be uint8 [N, {height}, {width}], got {stored.dtype} {list(stored.shape)}."
            )

    def known(self, values: Column) -> Tensor:
        """Maps with a pixel that is known."""
        assert isinstance(values, Tensor)
        mark = UNKNOWN if values.dtype == torch.uint8 else -1
        return (values != mark).flatten(1).any(dim=1)

    def normalise(self, stored: Tensor) -> Tensor:
        """As int64; 255 becomes -1."""
        return torch.where(stored == UNKNOWN, -1, stored.long())

    def stored(self, values: Tensor) -> Tensor:
        """As uint8; -1 becomes 255."""
        return torch.where(values < 0, UNKNOWN, values).to(torch.uint8)

    def mirror(self, values: Tensor) -> Tensor:
        """Left becomes right."""
        return values.flip(-1)

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Classes, all equally likely in each pixel."""
        return torch.randint(self._classes, (n, *self.fixed_shape), generator=rng)

    def readout(self, size: tuple[int, int]) -> Readout | None:
        """The class of each pixel; None where the number of classes is not known."""

        def target(values: Column) -> Tensor:
            assert isinstance(values, Tensor)
            return F.interpolate(values.unsqueeze(1).float(), size, mode="nearest-exact").squeeze(1).long()

        def compared(out: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
            read = out.argmax(dim=1).masked_fill(told < 0, -1)
            return overlap(*(one_hot(each, self._classes, dim=1) > 0 for each in (read, told)))

        loss, known = partial(F.cross_entropy, ignore_index=-1), self.size or self.names
        return Readout("mean IoU of classes", (self._classes, *size), compared, target, loss) if known else None

    def text(self, values: Column) -> list[str]:
        """The classes that cover most, with their shares."""
        assert isinstance(values, Tensor)
        texts = []
        for value in values.cpu():
            classes, counts = value[value >= 0].unique(return_counts=True)
            order = counts.argsort(descending=True, stable=True)[:TOLD].tolist()
            names = [self.names[classes[i]] if self.names else str(int(classes[i])) for i in order]
            shares = [100 * int(counts[i]) / value.numel() for i in order]
            texts.append(", ".join(f"{t} {share:.0f} %" for t, share in zip(names, shares, strict=True)) or "?")
        return texts

    def cells(self, values: Column) -> Tensor:
        """uint8 [N, 3, H, W], a colour a class; white where it is not known."""
        assert isinstance(values, Tensor)
        colours = torch.tensor([*class_colours(self._classes), WHITE], dtype=torch.uint8)
        return colours[values.cpu()].permute(0, 3, 1, 2).contiguous()  # -1 takes the last colour

    def parse(self, text: str, n: int) -> Tensor:
        """n maps of a png file, or of a folder's in the order of their names, whose pixels are numbers of classes.

        They are cropped as pictures are, and resized by nearest neighbours.
        """
        maps = [self._read(path) for path in files_at(text, self.suffixes, "class maps")[:n]]
        return self.normalise(torch.stack(maps))[spread(len(maps), n)]

    def fitting(self, text: str, n: int) -> str | None:
        """See `Field.fitting`."""
        return fitted(files_at(text, self.suffixes, "class maps")[:n], self.fixed_shape[-2:])

    def _read(self, path: Path) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # whatever PIL raises
            raise UserError(f"{path} cannot be read as a picture: {error}") from error
        if image.mode not in ("P", "L"):
            raise UserError(f"{path} has pixels of mode {image.mode}; a class map is a palette or a grey png of 8 bits")
        found = np.asarray(image)
        wrong = found[(found >= self._classes) & (found != UNKNOWN)]
        if wrong.size:
            known = f"0 to {self._classes - 1}" + (f" ({listed(self.names)})" if self.names else "")
            raise UserError(f"{path} holds the class {wrong[0]}; they are {known}, and {UNKNOWN} for what is not known")
        height, width = self.fixed_shape
        small = centre_crop(image, (height, width)).resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small))

    def write(self, values: Column, path: Path) -> Path:
        """A folder of png files that `parse` reads, 000000.png, ..., in the colours of `cells`."""
        from PIL import Image

        assert isinstance(values, Tensor)
        colours = [*class_colours(UNKNOWN), WHITE]
        for i, value in enumerate(self.stored(values).cpu().numpy()):
            image = Image.fromarray(value, "L")
            image.putpalette([part for colour in colours for part in colour])
            write_atomic(path / f"{i:06d}.png", partial(image.save, format="png"))
        return path
