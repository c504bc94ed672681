"""Grids of pictures, texts as pictures, and files of pictures."""

from __future__ import annotations

import colorsys
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.ImageDraw import ImageDraw as Pen


TINY = 16  # pixels
TEXT_CELL = (64, 128)  # height and width of a text's picture
CANVAS = 128  # side in pixels of the picture of boxes, keypoints or a drawing
# Okabe & Ito (2008), "Color Universal Design": told apart also by the colour-blind.
COLOURS = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0)),
    *((204, 121, 167), (86, 180, 233), (240, 228, 66), (0, 0, 0)),
)


def image_grid(
    x: Tensor, nrow: int | None = None, *, min_width: int = 512, gap: int = 2, fill: int = 255
) -> np.ndarray:
    """Tile images, row by row, into one picture for the screen.

    Args:
        x: uint8 images [N, 1 or 3, H, W], N >= 1.
        nrow: Images per row; default the ceiling of sqrt(N).
        min_width: Small images are enlarged by an integer factor until the grid is this many pixels wide: by nearest
            neighbours, or bicubically below 16 pixels. (Single-image files and scores use the original pixels.)
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
        # A digit of 8 x 8 square blocks is hard to read; interpolation makes it legible.
        x = F.interpolate(x.float(), scale_factor=scale, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    else:
        x = x.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    height, width = height * scale, width * scale
    cells = torch.full((rows * columns, 3, height + gap, width + gap), fill, dtype=torch.uint8)
    cells[:count, :, :height, :width] = x
    grid = cells.view(rows, columns, 3, height + gap, width + gap).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), 3)
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap].contiguous().numpy()


def to_rgb(x: Tensor) -> Tensor:
    """Images [N, 1 or 3, H, W] as [N, 3, H, W]; grey is repeated.

    Raises:
        ValueError: If there are neither one nor three channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"Images must be [N, 1 or 3, H, W], got {tuple(x.shape)}.")
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)


def text_cells(texts: Sequence[str], size: tuple[int, int] = TEXT_CELL) -> Tensor:
    """Texts as pictures, dark on white, wrapped to the width; uint8 [N, 3, H, W].

    Args:
        texts: One a picture; what does not fit is cut off.
        size: Height and width in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = size
    cells = np.empty((len(texts), height, width, 3), dtype=np.uint8)
    font = ImageFont.load_default(12)
    for cell, text in zip(cells, texts, strict=True):
        picture = Image.new("RGB", (width, height), "white")
        lines = _lines(text, width)
        ImageDraw.Draw(picture).multiline_text((4, 2), "\n".join(lines), fill="black", font=font, spacing=2)
        cell[:] = np.asarray(picture)
    return torch.from_numpy(cells).permute(0, 3, 1, 2).contiguous()


def text_height(texts: Sequence[str], width: int) -> int:
    """Height in pixels at which `text_cells` of this width cut nothing off."""
    return 6 + 15 * max(len(_lines(text, width)) for text in texts)


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(1, width // 7)) or [""]


def drawn_cells(n: int, draw: Callable[[int, Pen], None]) -> Tensor:
    """n white squares, uint8 [n, 3, CANVAS, CANVAS], on number i of which `draw(i, pen)` draws."""
    from PIL import Image, ImageDraw

    cells = np.empty((n, CANVAS, CANVAS, 3), dtype=np.uint8)
    for i, cell in enumerate(cells):
        picture = Image.new("RGB", (CANVAS, CANVAS), "white")
        draw(i, ImageDraw.Draw(picture))
        cell[:] = np.asarray(picture)
    return torch.from_numpy(cells).permute(0, 3, 1, 2).contiguous()


def class_colours(n: int) -> list[tuple[int, int, int]]:
    """n different colours, the same in every run: those of `COLOURS`, then hues that turn by the golden angle."""
    colours = list(COLOURS[:n])
    for i in range(len(colours), n):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.9, 0.5)[i % 2], (0.95, 0.75, 0.5)[i % 3])
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colours


def save_png(path: str | os.PathLike[str], array: np.ndarray) -> Path:
    """Write a uint8 picture [H, W, 3], [H, W, 1] or [H, W] as PNG, atomically; missing folders are created."""
    from PIL import Image

    array = np.asarray(array)
    if array.dtype != np.uint8:
        raise ValueError(f"save_png takes uint8, got {array.dtype}; to_uint8 converts from [-1, 1].")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return write_atomic(path, lambda file: Image.fromarray(array).save(file, format="png"))


def save_gif(path: str | os.PathLike[str], frames: Sequence[np.ndarray], seconds: float = 3.0) -> Path:
    """Write uint8 pictures [H, W, 3] of one size as an endless GIF, atomically; missing folders are created.

    Args:
        path: File to write.
        frames: The pictures, at least one; the last is held for a second.
        seconds: Duration of the other frames together (at least 0.02 s per frame, the minimum of viewers).
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


def new_figure(width: float, height: float, axes: bool = True) -> tuple[Figure, Any]:
    """A figure in inches, without a window or pyplot's global state, and its axes (None if `axes` is false)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if axes else None


def to_array(figure: Figure) -> np.ndarray:
    """The drawn figure, uint8 [H, W, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[attr-defined]
