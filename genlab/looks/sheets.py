"""Figures as uint8 arrays [H, W, 3]: captioned groups of images, paths over points, maps of codes."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.fields.drawing import TEXT_CELL, image_grid, new_figure, text_cells, text_height, to_array

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    from genlab.batch import Batch
    from genlab.data.module import ArrayData
    from genlab.data.spec import DataSpec

CELL = 60  # minimum width of an image in pixels, reached by an integer factor
MARGIN, GUTTER, TITLE, TEXT = 16, 22, 16, 12  # pixels; the last two are font sizes
INK, PALE = (34, 34, 34), (105, 105, 105)


def image_sheet(
    groups: Sequence[tuple[str, Tensor]], title: str, note: str = "", row_labels: Sequence[str] | None = None
) -> np.ndarray:
    """Image grids side by side, each under its caption, with an optional label per row.

    Args:
        groups: Captions and uint8 images [R, C_i, channels, H, W]; R is the same for all.
        title: Heading.
        note: Explanation below the heading.
        row_labels: R short texts, on the left.

    Returns:
        uint8 array [height, width, 3].
    """
    from PIL import Image, ImageDraw

    scale = max(1, -(-CELL // groups[0][1].shape[-1]))
    grids = []
    for _, images in groups:
        rows, columns = images.shape[:2]
        wide = scale * columns * images.shape[-1] + 2 * (columns - 1)
        grids.append(image_grid(images.flatten(0, 1), nrow=columns, min_width=wide))
    rows, height = groups[0][1].shape[0], grids[0].shape[0]
    font, small = _font(TITLE), _font(TEXT)
    left = MARGIN + (round(max(small.getlength(label) for label in row_labels)) + 10 if row_labels else 0)
    widths = [
        max(grid.shape[1], round(small.getlength(caption)) if len(groups) > 1 else 0)
        for (caption, _), grid in zip(groups, grids, strict=True)
    ]
    width = left + sum(widths) + GUTTER * (len(grids) - 1) + MARGIN
    title_lines, note_lines = _wrapped(title, font, width - 2 * MARGIN), _wrapped(note, small, width - 2 * MARGIN)
    captions = any(caption for caption, _ in groups)
    top = MARGIN + 22 * len(title_lines) + 17 * len(note_lines) + 6 + (19 if captions else 0)
    sheet = Image.new("RGB", (width, top + height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    y = MARGIN - 4
    for lines, face, colour, step in ((title_lines, font, INK, 22), (note_lines, small, PALE, 17)):
        for line in lines:
            draw.text((MARGIN, y), line, fill=colour, font=face)
            y += step
    x = left
    for (caption, _), grid, wide in zip(groups, grids, widths, strict=True):
        draw.text((x, top - 19), caption, fill=INK, font=small)
        sheet.paste(Image.fromarray(grid), (x, top))
        x += wide + GUTTER
    for i, label in enumerate(row_labels or ()):
        draw.text((left - 10, top + (i + 0.5) * height / rows), label, fill=INK, font=small, anchor="rm")
    return np.asarray(sheet)


def told_sheet(spec: DataSpec, x: Tensor, given: Batch | None) -> np.ndarray:
    """Samples beside the pictures and above the captions that they were given; one picture of many without.

    Args:
        spec: The fields of all columns.
        x: Samples [N, ...].
        given: Their conditions [N]; None without. Where they are told by texts, as labels are, and each text comes
            in a row and as often as the others, but for one, each has a row of the sheet. Other texts of kinds with too
            many to show them all, such as captions, stand under the samples.

    Returns:
        uint8 array [height, width, 3].
    """
    fields = {} if given is None else {name: spec.fields[name] for name in given.columns}
    drawn = [name for name, field in fields.items() if field.pictured]
    if given is None or not spec.x.pictorial:
        return spec.x.sheet(x)
    written = [name for name in fields if name not in drawn]
    texts = [", ".join(row) for row in zip(*(fields[name].text(given[name]) for name in written), strict=True)]
    under = any(fields[name].each(1) is None for name in written)
    if not drawn:
        runs = {text: len(list(group)) for text, group in itertools.groupby(texts)}
        fewest, most = min(runs.values()), max(runs.values())
        if len(runs) == 1 or sum(runs.values()) < len(texts) or most - fewest > 1:  # in the second case one comes again
            return image_grid(_captioned(spec.x.cells(x), texts)) if under and len(runs) > 1 else spec.x.sheet(x)
        if under and most == 1:
            return image_grid(_captioned(spec.x.cells(x), texts))
        parts = spec.x.cells(x).cpu().split([*runs.values()])
        cells = torch.stack([F.pad(part, (0,) * 7 + (most - len(part),), value=255) for part in parts])
        return image_sheet([("", cells)], f"Samples for each {', '.join(fields)}", "", list(runs))
    columns = [
        *((name, fields[name].cells(given[name])[:, None]) for name in drawn),
        ("sample", spec.x.cells(x)[:, None]),
    ]
    cells = torch.cat([part for _, part in alike(columns)], dim=1)
    rows = max(1, round(len(x) ** 0.5))
    groups = []
    for start in range(0, len(x) - len(x) % rows or rows, rows):
        row = cells[start : start + rows]
        if under:
            row = _captioned(torch.cat(row.unbind(dim=1), dim=3), texts[start : start + rows]).unsqueeze(1)
        groups.append((", ".join(name for name, _ in columns), row))
    return image_sheet(groups, "Samples beside the conditions that they were given")


def _captioned(cells: Tensor, texts: Sequence[str]) -> Tensor:
    """Pictures, uint8 [N, 3, H, W], enlarged to the width of a text where they are smaller, each above its text."""
    scale = max(1, -(-TEXT_CELL[1] // cells.shape[3]))
    large = cells.cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return torch.cat([large, text_cells(texts, (text_height(texts, large.shape[3]), large.shape[3]))], dim=2)


def alike(groups: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Captions and uint8 pictures [R, C_i, channels, H_i, W_i], all enlarged to the largest height and width."""
    size = max(x.shape[3] for _, x in groups), max(x.shape[4] for _, x in groups)
    large = [F.interpolate(x.flatten(0, 1).float(), size).to(torch.uint8).unflatten(0, x.shape[:2]) for _, x in groups]
    return [(caption, x.cpu()) for (caption, _), x in zip(groups, large, strict=True)]


def _font(size: int) -> FreeTypeFont:
    """The default font of matplotlib, so that sheets look like plots."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrapped(text: str, font: FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def point_ways(
    ways: Tensor, x_real: Tensor, title: str, note: str = "", labels: Sequence[str] | None = None
) -> np.ndarray:
    """Paths in the plane over real points, each with a dot at its end.

    Args:
        ways: Points [W, T, 2] of W paths.
        x_real: Real points [M, 2].
        title: Heading.
        note: Explanation below the heading.
        labels: Names [W] of the paths, for a legend.
    """
    figure, axes = new_figure(6.4, 6.4)
    real, drawn = x_real.detach().float().cpu().numpy(), ways.detach().float().cpu().numpy()
    axes.scatter(real[:, 0], real[:, 1], s=4, color="#c3cfe2", linewidths=0, zorder=1)
    # More than ten colours are hard to distinguish.
    few = len(drawn) <= 10
    colours = _colours(len(drawn)) if few else ["#d1495b"] * len(drawn)
    for i, way in enumerate(drawn):
        axes.plot(way[:, 0], way[:, 1], color=colours[i], linewidth=1.4, alpha=0.9, zorder=2)
        name = labels[i] if labels else None
        axes.scatter(*way[-1], s=22 if few else 9, color=[colours[i]], zorder=3, label=name)
    _frame(axes, title, note, legend=labels is not None)
    axes.set_aspect("equal")
    return to_array(figure)


def code_map(
    codes: Tensor, y: Tensor | None, names: Sequence[str] | None, title: str, note: str, axes_names: Sequence[str]
) -> np.ndarray:
    """Codes in the plane, coloured by class.

    Args:
        codes: [N, 2].
        y: Labels [N], -1 = missing; None if there are none.
        names: Names of the classes; None for their numbers.
        title: Heading.
        note: Explanation below the heading.
        axes_names: Names of the two axes.
    """
    figure, axes = new_figure(7.4, 6.4)
    places = codes.detach().float().cpu().numpy()
    if y is None:
        axes.scatter(places[:, 0], places[:, 1], s=12, color="#4878d0", alpha=0.7, linewidths=0)
    else:
        classes = [int(c) for c in y.unique().tolist()]
        # Class c has the c-th colour, the same in every run.
        colours = _colours(max(classes) + 1)
        size = 26 if len(places) < 1000 else 9
        for c in classes:
            rows = (y == c).numpy()
            name = "no label" if c < 0 else names[c] if names else str(c)
            colour = "#bbbbbb" if c < 0 else colours[c]
            axes.scatter(places[rows, 0], places[rows, 1], s=size, color=[colour], alpha=0.85, linewidths=0, label=name)
    _frame(axes, title, note, legend=y is not None and len(classes) <= 30)
    axes.set_xlabel(axes_names[0], fontsize=9)
    axes.set_ylabel(axes_names[1], fontsize=9)
    return to_array(figure)


def latent_scatter(model: Any, data: ArrayData, n: int) -> np.ndarray | None:
    """The codes of n validation samples, coloured by class; None if codes are not two-dimensional."""
    import torch

    found = [(model.encode(b.x.to(model.device)).cpu(), b.y) for b in data.batches("val", batch_size=256, limit=n)]
    codes = torch.cat([code for code, _ in found])
    if codes.shape[1:] != (2,):
        return None
    labels = [y.cpu() for _, y in found if y is not None]
    y = torch.cat(labels) if labels else None
    mean, std = (", ".join(f"{v:.2f}" for v in values.tolist()) for values in (codes.mean(dim=0), codes.std(dim=0)))
    note = f"The codes of {len(codes)} validation samples: mean ({mean}), standard deviation ({std})."
    return code_map(codes, y, model.spec.class_names, "latents", note, ("z0", "z1"))


def heat_map(values: Tensor, rows: Sequence[str], columns: Sequence[str], title: str, note: str) -> np.ndarray:
    """A heat map of numbers in [0, 1], dark for large ones, with each number printed in its cell.

    Args:
        values: Matrix [R, C].
        rows: Names [R] of the rows.
        columns: Names [C] of the columns.
        title: Heading.
        note: Explanation below the heading.
    """
    figure, axes = new_figure(2.2 + 0.9 * len(columns), 1.8 + 0.42 * len(rows))
    axes.imshow(values.detach().float().cpu().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value > 0.5 else "k")
    _frame(axes, title, note, legend=False)
    return to_array(figure)


def _colours(n: int) -> list[Any]:
    import matplotlib

    if n <= 10:
        return [matplotlib.colormaps["tab10"](i) for i in range(10)]
    return [matplotlib.colormaps["turbo"]((i + 0.5) / n) for i in range(n)]


def _frame(axes: Any, title: str, note: str, legend: bool) -> None:
    axes.figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    axes.set_title(textwrap.fill(note, 92), fontsize=8.5, loc="left", color="#696969")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if legend:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
