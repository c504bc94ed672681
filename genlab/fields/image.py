"""Pictures, and the conversion of model outputs to uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.fields.drawing import save_png, to_rgb
from genlab.fields.typed import files_at, fitted

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], any floating type and shape, as uint8 in 0..255.

    The only conversion in genlab, so that grids, files and scores use the same pixels: floor(x * 127.5 + 128), clamped
    to 0..255. It maps -1 to 0 and 1 to 255, and inverts `v / 127.5 - 1` for every byte v. NaN becomes 0 on all devices.
    """
    # In float32, because bfloat16 (8 bits of mantissa) would merge neighbouring grey values.
    return x.float().nan_to_num(nan=-2.0).mul(127.5).add(128).clamp(0, 255).to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """uint8 pictures to float32 in [-1, 1]; 0 and 255 are reached exactly."""
    return x.float().div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class Pixels(Field):
    """Pixels [..., H, W]: uint8 in the store, float32 in [-1, 1] for a model. Base of kinds, no kind of its own."""

    pictured: ClassVar[bool] = True
    pixelwise: ClassVar[bool] = True
    mirrors: ClassVar[bool] = True

    value_range: tuple[float, float] | None = (-1.0, 1.0)

    def normalise(self, stored: Tensor) -> Tensor:
        """uint8 to float32 in [-1, 1]; 0 and 255 are reached exactly."""
        return from_uint8(stored)

    def stored(self, values: Tensor) -> Tensor:
        """float to uint8, see `to_uint8`."""
        return to_uint8(values)

    def mirror(self, values: Tensor) -> Tensor:
        """Left becomes right."""
        return values.flip(-1)

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Uniform pixels."""
        return 2 * torch.rand(n, *self.fixed_shape, generator=rng) - 1


@dataclass(frozen=True)
class Image(Pixels):
    """A picture: uint8 [C, H, W] in the store, float32 in [-1, 1] for a model.

    Attributes:
        background: Colour under transparent pixels of files: `white`, `black` or `#rrggbb`.
        bits: Of the values in 16-bit files, of which the upper eight are kept; None: as many as a file needs.
    """

    kind: ClassVar[str] = "image"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    background: str = "white"
    bits: int | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise UserError(f"An image has the shape [C, H, W], got data.shape={list(self.shape)}.")

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not uint8 [N, C, H, W]."""
        if stored.dtype != torch.uint8 or stored.dim() != 4:
            raise ValueError(f"Images must be uint8 [N, C, H, W], got {stored.dtype} {list(stored.shape)}.")

    def text(self, values: Column) -> list[str]:
        """Their sizes: a picture is not told in words."""
        assert isinstance(values, Tensor)
        return [f"{v.shape[-1]} x {v.shape[-2]} pixels" for v in values]

    def render(self, values: Tensor) -> Tensor:
        """Pictures in [-1, 1] as uint8 [N, C, H, W], with the channels that they have."""
        return to_uint8(values)

    def cells(self, values: Column) -> Tensor:
        """uint8 [N, 3, H, W]."""
        assert isinstance(values, Tensor)
        return to_rgb(to_uint8(values))

    def parse(self, text: str, n: int) -> Tensor:
        """n pictures of a file, or of a folder's files in the order of their names, cropped and resized as in training.

        Raises:
            UserError: If there is no such file, or none that can be read.
        """
        from genlab.fields.decoding import decode_image  # PIL, which judges do without

        channels, height, width = self.fixed_shape
        pictures = []
        for file in files_at(text, self.suffixes, "pictures")[:n]:
            try:
                data = file.read_bytes()
                pictures.append(decode_image(data, (height, width), channels, self.background, self.bits))
            except Exception as error:  # whatever PIL raises
                raise UserError(f"{file} cannot be read as a picture: {error}") from error
        return self.normalise(torch.from_numpy(np.stack(pictures)))[spread(len(pictures), n)]

    def fitting(self, text: str, n: int) -> str | None:
        """See `Field.fitting`."""
        return fitted(files_at(text, self.suffixes, "pictures")[:n], self.fixed_shape[-2:])

    def of_files(self, paths: Sequence[Path]) -> Field:
        """With the bits that the largest value of all 16-bit files needs, unless they are stated."""
        from genlab.fields.decoding import bits_for, largest_value

        if self.bits is not None:
            return self
        largest = []
        for path in paths:
            try:
                largest.append(largest_value(path.read_bytes()))
            except Exception as error:  # whatever PIL raises
                raise UserError(f"{path} cannot be read as a picture: {error}") from error
        deep = [value for value in largest if value is not None]
        return replace(self, bits=bits_for(max(deep))) if deep else self

    def write(self, values: Column, path: Path) -> Path:
        """A folder of png files, 000000.png, 000001.png, ..."""
        assert isinstance(values, Tensor)
        for i, picture in enumerate(to_uint8(values).permute(0, 2, 3, 1).cpu().numpy()):
            save_png(path / f"{i:06d}.png", picture)
        return path
