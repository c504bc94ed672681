"""DRAW's read and write operators: windows of Gaussian filters, or the whole image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from genlab.networks.init import check_positive

LOG_LIMIT = 6.0  # bound on |log variance|, |log stride|, |log intensity|: beyond, one training step can overflow


def filterbank(centre: Tensor, stride: Tensor, variance: Tensor, filters: int, size: int) -> Tensor:
    """A row of Gaussian filters along one axis of an image. Gregor et al. (2015), arXiv:1502.04623, Eq. 19, 20, 25, 26.

    Filter i of 1..n lies at centre + (i - n/2 - 1/2) stride; pixels are counted from 1.

    Args:
        centre: Centre of the row, in pixels, [N].
        stride: Distance between filters, in pixels, [N].
        variance: Variance of each filter, in pixels squared, [N].
        filters: n.
        size: Pixels along the axis.

    Returns:
        [N, n, size]; each row sums to one.
    """
    place = torch.arange(1, filters + 1, device=centre.device, dtype=centre.dtype) - filters / 2 - 0.5
    pixels = torch.arange(1, size + 1, device=centre.device, dtype=centre.dtype)
    means = centre[:, None] + place * stride[:, None]
    # A softmax, since far from the image all exponentials of the quotient would underflow to zero.
    return (-(pixels - means[:, :, None]).square() / (2 * variance[:, None, None])).softmax(dim=2)


class Window(NamedTuple):
    """A grid of n x n filters on each image of a batch.

    Attributes:
        rows: Filters from top to bottom, F_Y, [N, n, H].
        columns: Filters from left to right, F_X, [N, n, W].
        gain: gamma, [N].
    """

    rows: Tensor
    columns: Tensor
    gain: Tensor

    def look(self, x: Tensor) -> Tensor:
        """gamma F_Y x F_X^T, the glimpse [N, C, n, n] of images [N, C, H, W]. Eq. 27."""
        glimpse = self.rows[:, None] @ x @ self.columns[:, None].transpose(2, 3)
        return self.gain[:, None, None, None] * glimpse

    def stamp(self, patch: Tensor) -> Tensor:
        """F_Y^T w F_X / gamma, the patch [N, C, n, n] on images [N, C, H, W] that are 0 elsewhere. Eq. 29."""
        image = self.rows[:, None].transpose(2, 3) @ patch @ self.columns[:, None]
        return image / self.gain[:, None, None, None]


class Attention(nn.Module):
    """Places a window by five numbers that are linear in the decoder's state. Eq. 21 to 24.

    Args:
        hidden: Length of the decoder's state.
        shape: (C, H, W) of the images.
        filters: n.
    """

    def __init__(self, hidden: int, shape: Sequence[int], filters: int) -> None:
        super().__init__()
        self.size, self.filters = (int(shape[1]), int(shape[2])), filters
        self.place = nn.Linear(hidden, 5)

    def forward(self, state: Tensor) -> Window:
        """States [N, hidden] -> the window."""
        return self.window(self.place(state))

    def window(self, numbers: Tensor) -> Window:
        """The window of [N, 5]: horizontal and vertical centre, log variance, log stride, log intensity.

        Centres -1 and 1 lie half a pixel outside of the image; at log stride 0 the filters span its longer side.
        """
        x, y, *logs = numbers.unbind(dim=1)
        variance, stride, gain = (log.clamp(-LOG_LIMIT, LOG_LIMIT).exp() for log in logs)
        height, width = self.size
        stride = stride * (max(self.size) - 1) / max(self.filters - 1, 1)
        rows = filterbank((height + 1) / 2 * (y + 1), stride, variance, self.filters, height)
        columns = filterbank((width + 1) / 2 * (x + 1), stride, variance, self.filters, width)
        return Window(rows, columns, gain)


class Reader(nn.Module):
    """The encoder's input at a step: the image and its residual to the canvas. Eq. 17, or 27 with a window.

    Args:
        shape: (C, H, W) of the images.
        hidden: Length of the decoder's state.
        size: n of the window; None reads the whole image.

    Attributes:
        features: Length of the output.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], hidden: int, size: int | None) -> None:
        super().__init__()
        if size is not None:
            check_positive("model.read_size", size, cure="2")
        self.attention = None if size is None else Attention(hidden, shape, size)
        self.features = 2 * (math.prod(shape) if size is None else int(shape[0]) * size**2)

    def forward(self, x: Tensor, error: Tensor, state: Tensor) -> Tensor:
        """Images and errors [N, C, H, W] and states [N, hidden] -> [N, features]."""
        both = torch.cat([x, error], dim=1)
        return (both if self.attention is None else self.attention(state).look(both)).flatten(1)


class Writer(nn.Module):
    """The decoder's addition to the canvas at a step. Eq. 18, or 28 and 29 with a window of its own.

    Args:
        shape: (C, H, W) of the images.
        hidden: Length of the decoder's state.
        size: n of the window; None writes the whole image.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], hidden: int, size: int | None) -> None:
        super().__init__()
        if size is not None:
            check_positive("model.write_size", size, cure="5")
        self.attention = None if size is None else Attention(hidden, shape, size)
        channels, height, width = (int(n) for n in shape)
        self.patch_shape = (channels, height, width) if size is None else (channels, size, size)
        self.patch = nn.Linear(hidden, math.prod(self.patch_shape))

    def forward(self, state: Tensor) -> Tensor:
        """States [N, hidden] -> [N, C, H, W]."""
        patch = self.patch(state).unflatten(1, self.patch_shape)
        return patch if self.attention is None else self.attention(state).stamp(patch)
