"""Grids of images, and files of pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.fields.image import to_rgb
from genlab.files import write_atomic

if TYPE_CHECKING:
    import numpy as np


TINY = 16  # pixels


def image_grid(
    x: Tensor, nrow: int | None = None, *, min_width: int = 512, gap: int = 2, fill: int = 255
) -> np.ndarray:
    """Tile images, row by row, into one picture that a screen can show.

    Args:
        x: uint8 images [N, 1 or 3, H, W], N >= 1.
        nrow: Images per row; default the ceiling of sqrt(N).
        min_width: Small images grow by a whole factor until the grid is this many pixels wide: by nearest neighbours,
            and bicubically below 16 pixels (files of single images and all scores keep the pixels as they are).
        gap: Pixels between images, after scaling.
        fill: Grey value of gaps and of places without an image.

    Returns:
        uint8 array [height, width, 3].

    Raises:
        ValueError: If `x` is not uint8, is empty or has another shape.
    """
    if x.dtype != torch.uint8 or x.ndim != 4 or len(x) == 0:
        raise ValueError(f"image_grid takes uint8 [N, C, H, W] with N >= 1, got {x.dtype} {tuple(x.shape)}.")
    x = to_rgb(x.detach().cpu())
    count, _, height, width = x.shape
    columns = min(nrow or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil((min_width - gap * (columns - 1)) / (columns * width)))
    if scale > 1 and min(height, width) < TINY:
        # Squares of 8 pixels hide what the eye would read at once; interpolated, a digit is a digit again.
        x = F.interpolate(x.float(), scale_factor=scale, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    else:
        x = x.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    height, width = height * scale, width * scale
    cells = torch.full((rows * columns, 3, height + gap, width + gap), fill, dtype=torch.uint8)
    cells[:count, :, :height, :width] = x
    grid = cells.view(rows, columns, 3, height + gap, width + gap).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), 3)
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap].contiguous().numpy()


def save_png(path: str | os.PathLike[str], array: np.ndarray) -> Path:
    """Write a uint8 picture [H, W, 3], [H, W, 1] or [H, W] as png, whole or not at all; folders are made."""
    import numpy as np
    from PIL import Image

    array = np.asarray(array)
    if array.dtype != np.uint8:
        raise ValueError(f"save_png takes uint8, got {array.dtype}; to_uint8 converts from [-1, 1].")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return write_atomic(path, lambda file: Image.fromarray(array).save(file, format="png"))


def save_gif(path: str | os.PathLike[str], frames: Sequence[np.ndarray], seconds: float = 3.0) -> Path:
    """Write uint8 pictures [H, W, 3] of one size as an endless animation, whole or not at all; folders are made.

    Args:
        path: Where to write.
        frames: The pictures, at least one; the last is held for a second.
        seconds: What the others take together (a frame takes at least 0.02 s, the least that viewers show).
    """
    from PIL import Image

    if not frames:
        raise ValueError("save_gif needs at least one frame.")
    each = max(20, round(1000 * seconds / max(1, len(frames) - 1)))
    first, *others = [Image.fromarray(frame) for frame in frames]
    times = [each] * len(others) + [1000]
    return write_atomic(
        path,
        lambda file: first.save(file, format="gif", save_all=True, append_images=others, duration=times, loop=0),
    )
