"""Residual networks of WGAN-GP and SNGAN.

Gulrajani et al. (2017), "Improved Training of Wasserstein GANs", the networks for CIFAR-10, after the authors' code
(igul222/improved_wgan_training, gan_cifar_resnet.py). The discriminator of Miyato et al. (2018), "Spectral
Normalization for GANs" (pfnet-research/sngan_projection, snresnet_32.py), is the same with spectral norm, sum pooling
and no bias in the head. There is one up-block and one down-block more or less for each factor of two between the
shorter side and 32, all of one width (the papers' larger networks vary the width).
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm

from genlab.errors import UserError
from genlab.networks.init import check_norm, check_positive, glorot_init_, image_scales, norm_layer
from genlab.networks.layers import Layered

LATENT_SIDE = 4  # the generator starts at 4 x 4
TRUNK_SIDE = 8  # the discriminator stops halving at 8 x 8


class UpBlock(nn.Module):
    """Norm - ReLU - up - conv3 - norm - ReLU - conv3, plus up - conv1: [N, C, H, W] -> [N, C, 2 H, 2 W].

    No convolution has a bias: it would add a constant to a channel, which the next batch norm removes (a departure from
    the authors' code, whose biases here have no gradient).

    Args:
        channels: C, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_layer("batch", channels), norm_layer("batch", channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, channels, 1, bias=False)
        _init_block_(self.conv1, self.conv2, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2 H, 2 W]."""
        residual = self.conv1(_double(F.relu(self.norm1(x))))
        residual = self.conv2(F.relu(self.norm2(residual)))
        # A 1 x 1 convolution commutes with copying; applied before, it costs a quarter.
        return residual + _double(self.shortcut(x))


class Block(nn.Module):
    """(Norm - ReLU -) conv3 - norm - ReLU - conv3 (- halve), plus the shortcut: [N, C_in, H, W] -> [N, C_out, H', W'].

    Args:
        in_channels: C_in.
        out_channels: C_out. The shortcut is the identity if channels and size stay the same, else a 1 x 1 convolution.
        norm: One of batch, instance, layer, none.
        down: Whether height and width are halved, by means over 2 x 2.
        first: Whether the block reads the image: no ReLU before its first convolution, and no norm ("optimized" in the
            authors' code).
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str, down: bool = False, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        norm = "none" if first else norm
        self.norm1, self.norm2 = norm_layer(norm, in_channels), norm_layer(norm, out_channels)
        shifted = norm in ("batch", "instance")  # norm2 removes any constant per channel
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not shifted)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        identity = in_channels == out_channels and not down
        self.shortcut = nn.Identity() if identity else nn.Conv2d(in_channels, out_channels, 1)
        _init_block_(self.conv1, self.conv2, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], with half of H and W if `down`."""
        residual = self.conv1(x if self.first else F.relu(self.norm1(x)))
        residual = self.conv2(F.relu(self.norm2(residual)))
        if self.down:
            # A 1 x 1 convolution commutes with the mean, so the shortcut halves first, at a quarter of the cost.
            residual, x = F.avg_pool2d(residual, 2), F.avg_pool2d(x, 2)
        return residual + self.shortcut(x)


def _double(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W], each value four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _init_block_(conv1: nn.Module, conv2: nn.Module, shortcut: nn.Module) -> None:
    """The authors' weights: Glorot-uniform, with gain sqrt(2) after a ReLU (He's correction)."""
    glorot_init_(conv1, math.sqrt(2))
    glorot_init_(conv2, math.sqrt(2))
    glorot_init_(shortcut)


class _Upward(nn.Module):
    """The generator up to its tanh: [N, latent_dim] -> [N, *shape]."""

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int) -> None:
        super().__init__()
        check_positive("model.latent_dim", latent_dim)
        check_positive("network.width", width)
        doublings, base = image_scales(shape, base=LATENT_SIDE, smallest=16, network="resnet")
        self.start = (width, *base)
        self.input = nn.Linear(latent_dim, math.prod(self.start))
        self.blocks = nn.Sequential(*(UpBlock(width) for _ in range(doublings)))
        self.norm = norm_layer("batch", width)
        self.output = nn.Conv2d(width, int(shape[0]), 3, padding=1)
        glorot_init_(self.input)
        glorot_init_(self.output)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W], unbounded."""
        h = self.blocks(self.input(z).unflatten(1, self.start))
        return self.output(F.relu(self.norm(h)))


def _downward(shape: Sequence[int], width: int, norm: str) -> tuple[nn.Sequential, tuple[int, int]]:
    """The discriminator's blocks: [N, *shape] -> [N, width, h, w], the shorter of h, w being 8; also returns (h, w).

    At 32 x 32: the first block and one more halve the image, two blocks keep the size.
    """
    check_positive("network.width", width)
    check_norm(norm)
    halvings, base = image_scales(shape, base=TRUNK_SIDE, smallest=16, network="resnet")
    blocks = [Block(int(shape[0]), width, norm, down=True, first=True)]
    blocks += [Block(width, width, norm, down=True) for _ in range(halvings - 1)]
    blocks += [Block(width, width, norm) for _ in range(2)]
    return nn.Sequential(*blocks, nn.ReLU()), base


class Generator(nn.Module):
    """Noise to images in [-1, 1]: linear to width x 4 x 4, up-blocks, batch norm - ReLU - conv3 - tanh.

    Args:
        latent_dim: Z (128 in the paper).
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        width: Channels of all blocks.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    always_normalised = True

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.body = _Upward(latent_dim, shape, width)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W] in [-1, 1]."""
        return torch.tanh(self.body(z))


class Decoder(nn.Module):
    """The generator without its tanh: means or logits of pixels.

    Args:
        latent_dim: Z.
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        width: Channels of all blocks.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    always_normalised = True

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.body = _Upward(latent_dim, shape, width)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W], unbounded."""
        return self.body(z)


class Discriminator(Layered):
    """Images to one logit each: residual blocks - ReLU - pooling over positions - linear.

    Args:
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        width: Channels of all blocks.
        norm: One of none (the paper), layer, instance, batch; a gradient penalty forbids batch.
        pooling: "mean" (WGAN-GP) or "sum" (SNGAN) over the positions.
        spectral_norm: Whether the weight of every layer is divided by its largest singular value, as in SNGAN; one
            power iteration per forward in training mode, none in eval mode.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        norm: str = "none",
        pooling: str = "mean",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "sum"):
            raise UserError(f"network.pooling must be mean or sum, got {pooling!r}. Try network.pooling=mean.")
        self.pooling = pooling
        self.trunk, _ = _downward(shape, width, norm)
        self.head = nn.Linear(width, 1)
        glorot_init_(self.head)
        if spectral_norm:  # after the initial weights are set, since its vectors start from them
            for layer in [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
                add_spectral_norm(layer)

    def pooled(self, h: Tensor) -> Tensor:
        """[N, width, h, w] -> [N, width]."""
        return h.mean(dim=(2, 3)) if self.pooling == "mean" else h.sum(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """[N, width] -> logits [N], a linear map."""
        return self.head(features).squeeze(1)


class Encoder(nn.Module):
    """The discriminator's blocks with `out_features` linear outputs, without pooling: a code needs the positions.

    Args:
        shape: (C, H, W); sides from 16 on that `image_scales` allows.
        out_features: 2 Z for a Gaussian posterior (mean and log-variance), Z for a code.
        width: Channels of all blocks.
        norm: One of none, layer, instance, batch.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], out_features: int, width: int = 128, norm: str = "none") -> None:
        super().__init__()
        check_positive("model.encoder_features", out_features)
        self.trunk, base = _downward(shape, width, norm)
        self.head = nn.Linear(width * math.prod(base), out_features)
        glorot_init_(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out_features]."""
        return self.head(self.trunk(x).flatten(1))
