"""Videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import spread
from genlab.fields.decoding import fit_image, opaque
from genlab.fields.drawing import save_gif, to_rgb
from genlab.fields.image import Pixels, to_uint8
from genlab.fields.typed import files_at

FRAMES = 8  # in a strip


@dataclass(frozen=True)
class Video(Pixels):
    """T pictures: uint8 [T, C, H, W] in the store, float32 in [-1, 1] for a model.

    Attributes:
        fps: Pictures a second.
    """

    kind: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = (".gif",)

    fps: int = 10

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or self.ragged:
            raise UserError(f"A video has the shape [T, C, H, W], got {list(self.shape)}.")
        if self.fps < 1:
            raise UserError(f"fps of a video is a positive number of pictures a second, got {self.fps}.")

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not uint8 [N, T, C, H, W]."""
        if stored.dtype != torch.uint8 or stored.shape[1:] != self.fixed_shape:
            sides = ", ".join(map(str, self.shape))
            raise ValueError(f"Videos must be uint8 [N, {sides}], got {stored.dtype} {list(stored.shape)}.")

    def text(self, values: Column) -> list[str]:
        """Their lengths and sizes."""
        assert isinstance(values, Tensor)
        return [f"{len(v)} frames of {v.shape[-1]} x {v.shape[-2]} pixels" for v in values]

    def cells(self, values: Column) -> Tensor:
        """Strips of at most 8 frames side by side, from the first to the last, uint8 [N, 3, H, 8 W]."""
        assert isinstance(values, Tensor)
        frames = values.shape[1]
        shown = torch.linspace(0, frames - 1, min(frames, FRAMES)).round().long()
        strip = to_uint8(values.cpu()[:, shown]).permute(0, 2, 3, 1, 4).flatten(3)
        return to_rgb(strip).contiguous()

    def parse(self, text: str, n: int) -> Tensor:
        """n videos of a gif file, or of a folder's in the order of their names: the first T frames of each.

        Frames are cropped and resized as pictures are.
        """
        videos = [self._read(path) for path in files_at(text, self.suffixes, "videos")[:n]]
        return self.normalise(torch.from_numpy(np.stack(videos)))[spread(len(videos), n)]

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image, ImageSequence

        length, channels, height, width = self.fixed_shape
        frames: list[np.ndarray] = []
        try:
            with Image.open(path) as image:
                for frame in ImageSequence.Iterator(image):
                    if len(frames) < length:
                        frames.append(fit_image(opaque(frame).convert("RGB"), (height, width), channels))
        except Exception as error:  # whatever PIL raises
            raise UserError(f"{path} cannot be read as a video: {error}") from error
        if len(frames) < length:
            raise UserError(f"{path} has {len(frames)} frames, fewer than the {length} of a video of these data")
        return np.stack(frames)

    def write(self, values: Column, path: Path) -> Path:
        """A folder of gif files, 000000.gif, 000001.gif, ..."""
        assert isinstance(values, Tensor)
        for i, video in enumerate(to_uint8(values.cpu())):
            frames = list(to_rgb(video).permute(0, 2, 3, 1).contiguous().numpy())
            save_gif(path / f"{i:06d}.gif", frames, seconds=max(1, len(frames) - 1) / self.fps)
        return path
