"""Autoregressive networks over grids of tokens: PixelCNN and gated PixelCNN. No normalisation: it would leak."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.init import check_positive


def _check(levels: int, width: int, layers: int, kernel: int) -> None:
    for key, value in (("width", width), ("layers", layers)):
        check_positive(f"model.network.{key}", value)
    if levels < 2:
        raise UserError(f"model.levels must be at least 2, got {levels}.")
    if kernel < 3 or kernel % 2 == 0:
        raise UserError(f"model.network.kernel must be an odd number from 3, got {kernel}.")


class MaskedConv2d(nn.Conv2d):
    """A convolution that reads the pixels before its own in raster order, and its own unless `first` (mask A).

    van den Oord, Kalchbrenner & Kavukcuoglu (2016), arXiv:1601.06759, section 3.4.
    """

    mask: Tensor

    def __init__(self, channels: int, out_channels: int, kernel: int, first: bool) -> None:
        super().__init__(channels, out_channels, kernel, padding=kernel // 2)
        mask = torch.ones(kernel, kernel)
        mask[kernel // 2, kernel // 2 + (0 if first else 1) :] = 0
        mask[kernel // 2 + 1 :] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out, H, W]."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class PixelCNN(nn.Module):
    """Masked convolutions in residual blocks. arXiv:1601.06759, section 3.3 and Table 1.

    Its field of view has a blind spot above to the right, which the gated one has not.

    Args:
        levels: K, values of a token.
        width: Channels (2h of the paper).
        layers: Residual blocks.
        kernel: Side of the first convolution; the blocks have 3.
        hidden: Channels of the two 1 x 1 layers at the end.
    """

    def __init__(self, levels: int, width: int = 128, layers: int = 15, kernel: int = 7, hidden: int = 256) -> None:
        super().__init__()
        _check(levels, width, layers, kernel)
        self.embed = nn.Embedding(levels, width)
        self.first = MaskedConv2d(width, width, kernel, first=True)
        inner = max(1, width // 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(width, inner, 1),
                nn.ReLU(),
                MaskedConv2d(inner, inner, 3, first=False),
                nn.ReLU(),
                nn.Conv2d(inner, width, 1),
            )
            for _ in range(layers)
        )
        self.head = _head(width, hidden, levels)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [N, H, W] -> logits [N, K, H, W], each of the tokens before its own in raster order."""
        x = self.first(self.embed(tokens).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class GatedLayer(nn.Module):
    """Vertical and horizontal stack with gates tanh(a) sigmoid(b). arXiv:1606.05328, Figure 2.

    The vertical stack sees all rows down to its own; the horizontal one gets it from the row above, and sees its own
    row to the left (up to its own pixel, unless `first`).
    """

    def __init__(self, width: int, kernel: int, first: bool) -> None:
        super().__init__()
        half = kernel // 2
        self.first, self.reach = first, half
        self.vertical = nn.Conv2d(width, 2 * width, (half + 1, kernel))
        self.to_horizontal = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, half + (0 if first else 1)))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks [N, width, H, W]."""
        above = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        from_above = self.to_horizontal(F.pad(above, (0, 0, 1, 0))[:, :, :-1])  # down by one row
        left = F.pad(h, (self.reach, 0, 0, 0))
        along = self.horizontal(left[..., :-1] if self.first else left)
        gated = self.out(_gate(along + from_above))
        return _gate(above), gated if self.first else h + gated


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN. van den Oord et al. (2016), arXiv:1606.05328.

    Args:
        levels: K, values of a token.
        width: Channels of each stack.
        layers: Gated layers, the first included.
        kernel: Side of the first layer's field of view; the others have 3.
        hidden: Channels of the two 1 x 1 layers at the end.
    """

    def __init__(self, levels: int, width: int = 64, layers: int = 12, kernel: int = 7, hidden: int = 256) -> None:
        super().__init__()
        _check(levels, width, layers, kernel)
        self.embed = nn.Embedding(levels, width)
        self.layers = nn.ModuleList(GatedLayer(width, kernel if i == 0 else 3, first=i == 0) for i in range(layers))
        self.head = _head(width, hidden, levels)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [N, H, W] -> logits [N, K, H, W], each of the tokens before its own in raster order."""
        v = h = self.embed(tokens).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, h = layer(v, h)
        return self.head(h)


def _head(width: int, hidden: int, levels: int) -> nn.Sequential:
    check_positive("model.network.hidden", hidden)
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, levels, 1))


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
