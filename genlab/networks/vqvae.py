"""The convolutional networks of the VQ-VAE and of the VQ-VAE-2."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.init import check_positive


class Residual(nn.Module):
    """x + conv 1x1 (ReLU (conv 3x3 (ReLU x)))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same."""
        return x + self.body(x)


def _blocks(width: int, inner: int, blocks: int) -> list[nn.Module]:
    return [*(Residual(width, inner) for _ in range(blocks)), nn.ReLU()]


def _check(shape: Sequence[int], width: int, halvings: int) -> None:
    check_positive("width", width)
    if halvings < 1 or len(shape) != 3 or any(side % 2**halvings for side in shape[1:]):
        raise UserError(
            f"The VQ-VAE's networks need images whose sides are multiples of {2 ** max(halvings, 1)} "
            f"({halvings} halvings), got data of shape {list(shape)}."
        )


class Encoder(nn.Module):
    """Halving 4 x 4 convolutions, residual blocks, a 1 x 1 convolution to D channels. arXiv:1711.00937, section 4.1.

    Args:
        shape: (C, H, W).
        code_dim: D.
        width: Channels.
        inner: Channels inside the residual blocks.
        blocks: Number of residual blocks.
        halvings: Number of halvings of the image's sides.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        shape: Sequence[int],
        code_dim: int,
        width: int = 256,
        inner: int = 256,
        blocks: int = 2,
        halvings: int = 2,
    ) -> None:
        super().__init__()
        _check(shape, width, halvings)
        layers: list[nn.Module] = []
        channels = int(shape[0])
        for _ in range(halvings):
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
            channels = width
        layers += [nn.Conv2d(width, width, 3, padding=1), *_blocks(width, inner, blocks)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, code_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H / 2^halvings, W / 2^halvings]."""
        return self.body(x)


class Decoder(nn.Module):
    """The encoder's mirror: residual blocks, then doubling 4 x 4 transposed convolutions.

    Args:
        shape: (C, H, W) of the output.
        code_dim: D.
        width: Channels.
        inner: Channels inside the residual blocks.
        blocks: Number of residual blocks.
        halvings: Number of doublings.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        shape: Sequence[int],
        code_dim: int,
        width: int = 256,
        inner: int = 256,
        blocks: int = 2,
        halvings: int = 2,
    ) -> None:
        super().__init__()
        _check(shape, width, halvings)
        layers: list[nn.Module] = [nn.Conv2d(code_dim, width, 3, padding=1), *_blocks(width, inner, blocks)]
        for i in range(halvings):
            last = i == halvings - 1
            layers.append(nn.ConvTranspose2d(width, int(shape[0]) if last else width, 4, stride=2, padding=1))
            layers += [] if last else [nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """[N, D, H / 2^halvings, W / 2^halvings] -> [N, C, H, W], unbounded."""
        return self.body(z)


class TopEncoder(Encoder):
    """Top encoder of a VQ-VAE-2, on the features of the bottom encoder. arXiv:1906.00446, Figure 2a.

    Args:
        shape: (C, H, W) of the images.
        code_dim: D of the top codes.
        width: Channels, also of the bottom encoder's features.
        inner: Channels inside the residual blocks.
        blocks: Number of residual blocks.
        halvings: Number of halvings from the image to the bottom level.
        top_halvings: Number of halvings from the bottom to the top level.
    """

    def __init__(
        self,
        shape: Sequence[int],
        code_dim: int,
        width: int = 128,
        inner: int = 32,
        blocks: int = 2,
        halvings: int = 2,
        top_halvings: int = 1,
    ) -> None:
        _check(shape, width, halvings + top_halvings)
        sides = (int(side) >> halvings for side in shape[1:])
        super().__init__((width, *sides), code_dim, width, inner, blocks, top_halvings)


class TopDecoder(Decoder):
    """Top codes to features at the bottom level's resolution; arguments as in `TopEncoder`."""

    def __init__(
        self,
        shape: Sequence[int],
        code_dim: int,
        width: int = 128,
        inner: int = 32,
        blocks: int = 2,
        halvings: int = 2,
        top_halvings: int = 1,
    ) -> None:
        sides = (int(side) >> halvings for side in shape[1:])
        super().__init__((width, *sides), code_dim, width, inner, blocks, top_halvings)


class BottomHead(nn.Module):
    """Bottom encodings from the bottom encoder's features and the decoded top codes.

    Args:
        width: Channels of each input.
        code_dim: D of the bottom codes.
    """

    def __init__(self, width: int, code_dim: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(2 * width, code_dim, 1)

    def forward(self, features: Tensor, from_top: Tensor) -> Tensor:
        """Two maps [N, width, h, w] -> [N, D, h, w]."""
        return self.body(torch.cat([features, from_top], dim=1))


class TwoLevelDecoder(nn.Module):
    """Upsamples the top codes to the bottom level's resolution, then decodes both levels with one `Decoder`.

    Args:
        shape: (C, H, W) of the output.
        top_dim: D of the top codes.
        bottom_dim: D of the bottom codes.
        width: Channels.
        inner: Channels inside the residual blocks.
        blocks: Number of residual blocks.
        halvings: Doublings from the bottom level to the image.
        top_halvings: Doublings from the top level to the bottom one.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        shape: Sequence[int],
        top_dim: int,
        bottom_dim: int,
        width: int = 128,
        inner: int = 32,
        blocks: int = 2,
        halvings: int = 2,
        top_halvings: int = 1,
    ) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            *(nn.ConvTranspose2d(top_dim, top_dim, 4, stride=2, padding=1) for _ in range(top_halvings))
        )
        self.body = Decoder(shape, top_dim + bottom_dim, width, inner, blocks, halvings)

    def forward(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Codes [N, top_dim, h / 2^top_halvings, ...] and [N, bottom_dim, h, w] -> [N, C, H, W], unbounded."""
        return self.body(torch.cat([self.upsample(top), bottom], dim=1))
