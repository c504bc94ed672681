"""Conversion of model outputs to uint8 images."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], any floating type and shape, to uint8 in 0..255.

    The only conversion in genlab, so that grids, files and scores see the same pixels: x * 127.5 + 128, cut off below,
    which sends -1 to 0 and 1 to 255 and inverts `v / 127.5 - 1` for every byte v. A NaN becomes 0 on every device.
    """
    # In float32: bfloat16 has 8 bits of mantissa and would merge neighbouring grey values.
    return x.float().nan_to_num(nan=-2.0).mul(127.5).add(128).clamp(0, 255).to(torch.uint8)


def to_rgb(x: Tensor) -> Tensor:
    """Images [N, 1 or 3, H, W] as [N, 3, H, W]; grey is repeated.

    Raises:
        ValueError: If there are neither one nor three channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"Images must be [N, 1 or 3, H, W], got {tuple(x.shape)}.")
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)
