"""Putting maps into boxes and cutting them out: the two spatial transformers of "learning what and where to draw"."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.losses.numerics import exact

LEAST = 1e-4  # side of a box, relative to the picture, below which it has no inside


def _middles(n: int, like: Tensor) -> Tensor:
    """The middles of n cells along a side, relative to the side: [n]."""
    return (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n


@exact
def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Whether the middle of each cell lies in a box, [M, height, width] of 0 and 1; no cell lies in a missing box.

    Args:
        boxes: [M, 5]: class, left, top, width and height, see `genlab.fields.boxes`; a class of -1 is no box.
        height: Cells along the left side.
        width: Cells along the upper side.
    """
    kind, left, top, across, down = boxes[:, :, None].unbind(dim=1)
    x, y = _middles(width, boxes) - left, _middles(height, boxes) - top
    columns, rows = (x >= 0) & (x <= across), (y >= 0) & (y <= down)
    return (rows.unsqueeze(2) & columns.unsqueeze(1) & (kind.unsqueeze(2) >= 0)).to(boxes.dtype)


@exact
def place(maps: Tensor, boxes: Tensor) -> Tensor:
    """Maps shrunk into their boxes, exactly 0 outside: the inverse transform of Reed et al. (2016), arXiv:1610.02454.

    A cell has the value of the map at its middle's place in the box, between the middles of the map's cells. In the
    whole picture as a box a map stays what it is.

    Args:
        maps: [M, C, H, W].
        boxes: [M, 5], see `inside`.

    Returns:
        [M, C, H, W].
    """
    height, width = maps.shape[2:]
    _, left, top, across, down = boxes[:, :, None].unbind(dim=1)
    x = (_middles(width, boxes) - left) / across.clamp_min(LEAST)
    y = (_middles(height, boxes) - top) / down.clamp_min(LEAST)
    return _sampled(maps, x, y) * inside(boxes, height, width).unsqueeze(1)


@exact
def crop(maps: Tensor, boxes: Tensor) -> Tensor:
    """What lies in the boxes, enlarged to whole maps; of a constant map the same constant. Same paper.

    Args:
        maps: [M, C, H, W].
        boxes: [M, 5], see `inside`.

    Returns:
        [M, C, H, W].
    """
    height, width = maps.shape[2:]
    _, left, top, across, down = boxes[:, :, None].unbind(dim=1)
    return _sampled(maps, left + across * _middles(width, boxes), top + down * _middles(height, boxes))


def _sampled(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Maps at the columns x [M, W] and rows y [M, H], relative to the sides; beyond the outer middles they go on.

    By products with the weights along each side: `grid_sample` has no deterministic gradient on a GPU.
    """
    return torch.einsum("mcij,mhi,mwj->mchw", maps, _weights(y, maps.shape[2]), _weights(x, maps.shape[3]))


def _weights(places: Tensor, cells: int) -> Tensor:
    """Weights [M, P, cells] of the cells at places [M, P] between their middles: those of the two next ones."""
    at = (places * cells - 0.5).clamp(0, cells - 1).unsqueeze(2)
    return (1 - (at - torch.arange(cells, device=at.device, dtype=at.dtype)).abs()).clamp_min(0)
