"""Pictures of samples and curves, as arrays or files. matplotlib is imported only when something is drawn with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genlab.looks.images import image_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from genlab.data.module import ArrayData
    from genlab.data.spec import DataSpec

PLAYER_COLOURS = {"d": "#4878d0", "g": "#ee854a", "e": "#6acc64", "c": "#956cb4"}


def sample_picture(spec: DataSpec, x: Tensor, x_real: Tensor | None = None) -> np.ndarray:
    """Samples as one picture: a grid of images, or a scatter of points over real ones.

    Args:
        spec: What the samples are.
        x: Samples [N, ...].
        x_real: Real points [M, 2], drawn beneath (images: ignored).

    Returns:
        uint8 array [H, W, 3].
    """
    if spec.kind == "image":
        return image_grid(spec.render(x))
    return scatter(x, x_real)


def scatter(x: Tensor, x_real: Tensor | None = None, title: str | None = None) -> np.ndarray:
    """Generated points over the density of real ones, uint8 [H, W, 3].

    Of more than two dimensions the first two principal components of the real points are drawn.
    """
    figure, axes = new_figure(6, 6)
    points = x.detach().float().cpu().numpy()
    if x_real is not None:
        real = x_real.detach().float().cpu().numpy()
        if real.shape[1] > 2:
            centre = real.mean(0)
            axes_of_real = np.linalg.eigh(np.cov(real, rowvar=False))[1][:, :-3:-1]
            points, real = (points - centre) @ axes_of_real, (real - centre) @ axes_of_real
        low, high = real.min(0), real.max(0)
        margin = 0.25 * (high - low).max()
        bounds = [(float(a - margin), float(b + margin)) for a, b in zip(low, high, strict=True)]
        density, *_ = np.histogram2d(real[:, 0], real[:, 1], bins=160, range=bounds)
        # The logarithm lets a mode of a few hundredths' width and the space around it be seen together.
        axes.imshow(
            np.log1p(_blurred(density)).T,
            origin="lower",
            extent=(*bounds[0], *bounds[1]),
            cmap="Blues",
            aspect="equal",
            interpolation="bilinear",
        )
        axes.set_xlim(*bounds[0])
        axes.set_ylim(*bounds[1])
    axes.scatter(points[:, 0], points[:, 1], s=3, color="#d1495b", alpha=0.6, linewidths=0, label="generated")
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title)
    return to_array(figure)


def _blurred(density: np.ndarray) -> np.ndarray:
    kernel = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    for axis in (0, 1):
        density = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), axis, density)
    return density


def beside(x: Tensor, x_recon: Tensor) -> Tensor:
    """Rows of originals and of their reconstructions in turn, for a grid eight wide."""
    pairs = [torch.stack([a, b]) for a, b in zip(x.split(8), x_recon.split(8), strict=True)]
    return torch.cat([pair.flatten(0, 1) for pair in pairs])


def curves(history: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Draws losses, other recorded values and scores over iterations, one panel each, as a PNG.

    Args:
        history: Name to (iterations, values), from `read_metrics`.
        path: Where to write.
    """
    from genlab.looks.images import save_png

    groups: dict[str, list[str]] = {}
    for name in history:
        kind, _, rest = name.partition("/")
        if kind == "train" and not rest.startswith("grad_norm"):
            groups.setdefault("losses" if rest == "loss" or rest.endswith("_loss") else _panel(rest), []).append(name)
        elif kind == "val" and not rest.partition("/")[0].endswith("_std"):
            groups.setdefault(rest.partition("/")[0], []).append(name)
    if not groups:
        return
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure, _ = new_figure(4.2 * columns, 2.9 * rows, axes=False)
    for i, (title, names) in enumerate(groups.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for name in names:
            steps, values = history[name]
            label = name.partition("/")[2]
            colour = PLAYER_COLOURS.get(label.partition("_")[0]) if title == "losses" else None
            axes.plot(steps, values, label=label, color=colour, linewidth=1.2, marker="." if len(steps) < 30 else None)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7, frameon=False)
    figure.supxlabel("iteration", fontsize=9)
    save_png(path, to_array(figure))


def _panel(name: str) -> str:
    for prefix, title in (("logits", "mean logits"), ("acc", "discriminator's accuracy"), ("l_", "energies")):
        if name.startswith(prefix):
            return title
    return name


def box_plots(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> np.ndarray:
    """A panel of boxes for each score: the quartiles of every group's values, whiskers to the ends, values as dots.

    Args:
        panels: For each title, the values of each group; all groups in one order.

    Returns:
        uint8 array [height, width, 3].
    """
    groups = list(dict.fromkeys(name for values in panels.values() for name in values))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, _ = new_figure((1.6 + 0.75 * len(groups)) * columns, 3.0 * rows, axes=False)
    for i, (title, values) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        places = [groups.index(name) for name in values]
        axes.boxplot(list(values.values()), positions=places, widths=0.6, whis=(0, 100), medianprops={"color": "0.1"})
        for place, found in zip(places, values.values(), strict=True):
            axes.plot([place] * len(found), list(found), ".", color="#3b6fb6", alpha=0.6, markersize=5)
        axes.set_xticks(range(len(groups)), groups, rotation=35, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", labelsize=8)
    return to_array(figure)


def new_figure(width: float, height: float, axes: bool = True) -> tuple[Figure, Any]:
    """A figure of so many inches without a window or pyplot's global state, and its axes (None where not asked)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if axes else None


def to_array(figure: Figure) -> np.ndarray:
    """The drawn figure, uint8 [H, W, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[attr-defined]


def some_real(data: ArrayData, n: int) -> Tensor:
    """n validation samples, of all classes where they are sorted by class."""
    return next(iter(data.batches("val", batch_size=n, limit=n))).x
