"""Networks of StackGAN: Zhang et al. (2017), arXiv:1612.03242, after the authors' code (hanzhanggit/StackGAN)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.conditions import SLOPE, tiled
from genlab.networks.init import check_norm, check_positive, dcgan_init_, norm_layer


class Augmentation(nn.Module):
    """A condition's vector to mean and log-variance of its code: one linear layer and, as in the code, a leaky ReLU.

    Args:
        shape: (F,), the width of the vector.
        code_dim: C.
    """

    def __init__(self, shape: Sequence[int], code_dim: int) -> None:
        super().__init__()
        check_positive("model.code_dim", code_dim)
        self.body = nn.Sequential(nn.Linear(int(shape[0]), 2 * code_dim), nn.LeakyReLU(SLOPE))

    def forward(self, t: Tensor) -> Tensor:
        """[N, F] -> [N, 2 C]: the mean, then log sigma^2, twice the log sigma of the code."""
        mu, log_sigma = self.body(t).chunk(2, dim=1)
        return torch.cat([mu, 2 * log_sigma], dim=1)


class Refiner(nn.Module):
    """Small pictures and a code to larger pictures in [-1, 1]: halve, join the code, residual blocks, double.

    Args:
        shape: (C, H, W) of the larger pictures; `scale` 2^halvings divides H and W.
        code_dim: Width of the code.
        scale: Larger side over smaller one, a power of two (4 in the paper).
        width: Channels of the first convolution; doubled with each halving (128 in the paper).
        halvings: Of the small picture (2 in the paper).
        blocks: Residual blocks (4 in the paper's networks for 256 x 256).
        norm: One of batch (the paper), instance, layer, none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        shape: Sequence[int],
        code_dim: int,
        scale: int = 2,
        width: int = 64,
        halvings: int = 1,
        blocks: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_positive("model.generator.width", width)
        side = scale * 2**halvings
        if scale < 1 or scale & (scale - 1) or int(shape[1]) % side or int(shape[2]) % side:
            raise UserError(
                f"A stage that enlarges pictures {scale} times needs a power of two, and sides that {side} divides; "
                f"got {shape[1]} x {shape[2]}. Try data.image_size=64."
            )
        layers: list[nn.Module] = [nn.Conv2d(int(shape[0]), width, 3, padding=1), nn.ReLU()]
        for _ in range(halvings):
            layers.append(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=check_norm(norm) == "none"))
            layers += [norm_layer(norm, 2 * width), nn.ReLU()]
            width *= 2
        self.down = nn.Sequential(*layers)
        self.join = nn.Sequential(*_convolved(width + code_dim, width, norm), nn.ReLU())
        self.blocks = nn.Sequential(*(Residual(width, norm) for _ in range(blocks)))
        up: list[nn.Module] = []
        for _ in range(halvings + scale.bit_length() - 1):
            up += [nn.Upsample(scale_factor=2), *_convolved(width, width // 2, norm), nn.ReLU()]
            width //= 2
        self.up = nn.Sequential(*up, nn.Conv2d(width, int(shape[0]), 3, padding=1), nn.Tanh())
        dcgan_init_(self)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Pictures [N, C, H / scale, W / scale] and codes [N, code_dim] -> [N, C, H, W]."""
        h = self.down(x)
        return self.up(self.blocks(self.join(torch.cat([h, tiled(c, h.shape[2:])], dim=1))))


class Residual(nn.Module):
    """Conv3 - norm - ReLU - conv3 - norm, plus the input, then a ReLU.

    Args:
        channels: In and out.
        norm: One of batch, instance, layer, none.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        first, second = _convolved(channels, channels, norm), _convolved(channels, channels, norm)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return torch.relu(x + self.body(x))


def _convolved(channels: int, wide: int, norm: str) -> list[nn.Module]:
    return [nn.Conv2d(channels, wide, 3, padding=1, bias=check_norm(norm) == "none"), norm_layer(norm, wide)]
