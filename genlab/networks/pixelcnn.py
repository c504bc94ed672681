"""Autoregressive networks over grids of tokens: PixelCNN and gated PixelCNN.

They have no normalisation: it would leak later tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.networks.codebook import perplexity
from genlab.networks.init import check_positive
from genlab.networks.vqvae import Residual


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

    Its receptive field has a blind spot above to the right; that of the gated PixelCNN has none.

    Args:
        levels: K, values of a token.
        width: Channels (2h of the paper).
        layers: Residual blocks.
        kernel: Kernel size of the first convolution; that of the blocks is 3.
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
        """int64 [N, H, W] -> logits [N, K, H, W], each from the tokens before its own in raster order."""
        x = self.first(self.embed(tokens).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class GatedLayer(nn.Module):
    """Vertical and horizontal stack with gates tanh(a) sigmoid(b). arXiv:1606.05328, Figure 2.

    The vertical stack reads all rows down to its own. The horizontal stack reads the vertical one at the row above, and
    its own row to the left (up to its own pixel, unless `first`). A map of `context` channels is added before the
    gates, Eq. 4.
    """

    def __init__(self, width: int, kernel: int, first: bool, context: int = 0) -> None:
        super().__init__()
        half = kernel // 2
        self.first, self.reach = first, half
        self.vertical = nn.Conv2d(width, 2 * width, (half + 1, kernel))
        self.to_horizontal = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, half + (0 if first else 1)))
        self.out = nn.Conv2d(width, width, 1)
        self.from_context = nn.Conv2d(context, 4 * width, 1) if context else None

    def forward(self, v: Tensor, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both stacks [N, width, H, W], given a context [N, context, H, W]."""
        above = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        from_above = self.to_horizontal(F.pad(above, (0, 0, 1, 0))[:, :, :-1])  # down by one row
        left = F.pad(h, (self.reach, 0, 0, 0))
        along = self.horizontal(left[..., :-1] if self.first else left) + from_above
        if self.from_context is not None:
            for_vertical, for_horizontal = self.from_context(context).chunk(2, dim=1)
            above, along = above + for_vertical, along + for_horizontal
        gated = self.out(_gate(along))
        return _gate(above), gated if self.first else h + gated


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN. van den Oord et al. (2016), arXiv:1606.05328.

    Args:
        levels: K, values of a token.
        width: Channels of each stack.
        layers: Number of gated layers, the first included.
        kernel: Side of the first layer's receptive field; that of the others is 3.
        hidden: Channels of the two 1 x 1 layers at the end.
        context: Channels of a map that conditions each position on its own entry, section 2.3; 0: none.
    """

    def __init__(
        self,
        levels: int,
        width: int = 64,
        layers: int = 12,
        kernel: int = 7,
        hidden: int = 256,
        context: int = 0,
    ) -> None:
        super().__init__()
        _check(levels, width, layers, kernel)
        self.embed = nn.Embedding(levels, width)
        self.layers = nn.ModuleList(
            GatedLayer(width, kernel if i == 0 else 3, first=i == 0, context=context) for i in range(layers)
        )
        self.head = _head(width, hidden, levels)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """int64 [N, H, W] -> logits [N, K, H, W], each from the tokens before its own in raster order.

        Args:
            tokens: Values in 0 .. K - 1.
            context: [N, context, H, W], where the network has one.
        """
        v = h = self.embed(tokens).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, h = layer(v, h, context)
        return self.head(h)


class CodeContext(nn.Module):
    """Tokens of a coarse grid to a map of features on a finer one, as the context of a prior of the finer one.

    The residual conditioning stack of Razavi et al. (2019), arXiv:1906.00446, section 3.2, then doublings.

    Args:
        levels: K of the coarse tokens.
        channels: Channels of the map.
        width: Channels of the stack.
        blocks: Number of residual blocks.
        doublings: Number of doublings from the coarse grid to the finer one.
    """

    def __init__(self, levels: int, channels: int, width: int = 64, blocks: int = 4, doublings: int = 1) -> None:
        super().__init__()
        check_positive("model.conditioner.width", width)
        self.embed = nn.Embedding(levels, width)
        layers: list[nn.Module] = [Residual(width, max(1, width // 2)) for _ in range(blocks)]
        for _ in range(doublings):
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, channels, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [N, h, w] -> [N, channels, h 2^doublings, w 2^doublings]."""
        return self.body(self.embed(tokens).permute(0, 3, 1, 2))


def draw_tokens(network: nn.Module, uniform: Tensor, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
    """Tokens int64 [n, h, w], drawn one after the other in raster order.

    Args:
        network: A PixelCNN.
        uniform: Random numbers in [0, 1), [n, h, w].
        temperature: Logits are divided by it.
        context: Map [n, C, h, w] for a network that is conditioned on one.
    """
    n, h, w = uniform.shape
    tokens = torch.zeros(n, h, w, dtype=torch.long, device=uniform.device)
    for i in range(h):
        # The network need not read the rows below.
        seen = () if context is None else (context[:, :, : i + 1],)
        for j in range(w):
            p = (in_float64(network(tokens[:, : i + 1], *seen)[:, :, i, j]) / temperature).softmax(dim=1)
            drawn = (p.cumsum(dim=1) < uniform[:, i, j, None].to(p.device)).sum(dim=1)
            tokens[:, i, j] = drawn.clamp_max(p.shape[1] - 1)
    return tokens


def log_prob_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """log p of tokens int64 [N, H, W] under logits [N, K, H, W], summed over positions: [N] nats."""
    # Not `cross_entropy`, which has no deterministic implementation for maps on a GPU.
    return logits.log_softmax(dim=1).gather(1, tokens.unsqueeze(1)).flatten(1).sum(dim=1)


def code_lengths(tokens: Tensor, log_p: Tensor, levels: int) -> dict[str, Tensor]:
    """Code lengths of tokens int64 [N, H, W]: mean -log p in nats per sample (`loss`) and in bits per token.

    `unigram_bits_per_token` is the entropy of these tokens' frequencies, the minimum for a code without context. The
    uniform code needs log2(levels) bits.
    """
    loss = -log_p.mean()
    return {
        "loss": loss,
        "bits_per_token": loss / (tokens[0].numel() * math.log(2)),
        "unigram_bits_per_token": perplexity(tokens, levels).log2(),
    }


def pixels_to_tokens(x: Tensor, levels: int) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] as tokens int64 [N, H, W C]: the channels of a pixel side by side."""
    return ((x + 1) / 2 * (levels - 1)).round().long().permute(0, 2, 3, 1).flatten(2)


def tokens_to_pixels(tokens: Tensor, levels: int, channels: int) -> Tensor:
    """The images float32 [N, C, H, W] in [-1, 1] of tokens [N, H, W C]."""
    return tokens.unflatten(2, (-1, channels)).permute(0, 3, 1, 2).float() * (2 / (levels - 1)) - 1


def _head(width: int, hidden: int, levels: int) -> nn.Sequential:
    check_positive("model.network.hidden", hidden)
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, levels, 1))


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
