"""The convolutional networks of the VQ-VAE."""

from collections.abc import Sequence
from typing import ClassVar

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
    """Halvings by 4 x 4 convolutions, residual blocks, 1 x 1 to the codes' length. arXiv:1711.00937, section 4.1.

    Args:
        shape: (C, H, W).
        code_dim: D.
        width: Channels.
        inner: Channels inside the residual blocks.
        blocks: Their number.
        halvings: Of the image's sides.
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
    """The encoder's mirror: residual blocks, then doublings by 4 x 4 transposed convolutions.

    Args:
        shape: (C, H, W) of what it gives.
        code_dim: D.
        width: Channels.
        inner: Channels inside the residual blocks.
        blocks: Their number.
        halvings: Doublings here.
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
