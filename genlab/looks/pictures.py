"""Pictures of samples and curves, as arrays or files. matplotlib is imported on first use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from genlab.fields.drawing import new_figure, save_png, to_array
from genlab.looks.curves import smoothed

if TYPE_CHECKING:
    from genlab.data.module import ArrayData

PLAYER_COLOURS = {"d": "#4878d0", "g": "#ee854a", "e": "#6acc64", "c": "#956cb4"}


def beside(x: Tensor, x_recon: Tensor) -> Tensor:
    """Alternating rows of originals and their reconstructions, for a grid of eight columns."""
    pairs = [torch.stack([a, b]) for a, b in zip(x.split(8), x_recon.split(8), strict=True)]
    return torch.cat([pair.flatten(0, 1) for pair in pairs])


def curves(history: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Draws losses, other recorded values and scores over iterations, one panel each, as a PNG.

    A noisy curve is a pale line, with its moving mean over it.

    Args:
        history: Name to (iterations, values), from `read_metrics`.
        path: File to write.
    """
    groups: dict[str, list[str]] = {}
    for name in history:
        phase, _, rest = name.partition("/")
        if phase == "train" and not rest.startswith("grad_norm"):
            groups.setdefault("losses" if rest == "loss" or rest.endswith("_loss") else _panel(rest), []).append(name)
        elif phase == "val" and not rest.partition("/")[0].endswith("_std"):
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
            mean, marker = smoothed(values), "." if len(steps) < 30 else None
            (line,) = axes.plot(
                steps, mean or values, label=label, color=colour, linewidth=1.2, marker=marker, zorder=3
            )
            if mean is not None:
                axes.plot(steps, values, color=line.get_color(), linewidth=0.7, alpha=0.25)
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
    """One panel of box plots per title: quartiles of each group's values, whiskers to the extremes, values as dots.

    Args:
        panels: Values by title and group; the groups have the same order in all panels.

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


def some_real(data: ArrayData, n: int) -> Tensor:
    """n validation samples, from all classes even if the split is sorted by class."""
    return next(iter(data.batches("val", batch_size=n, limit=n))).x
