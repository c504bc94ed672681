"""DCGAN: Radford, Metz, Chintala (2015), "Unsupervised Representation Learning with Deep Convolutional GANs".

Follows the torch code (soumith/dcgan.torch): 4 x 4 kernels where the paper has 5 x 5 (a kernel of twice the stride
puts the same number of taps on every pixel, which avoids checkerboards), and no bias before a normalisation. There is
one stage more or less for each factor of two between the shorter side and 64; channels double with each halving of the
image.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.networks.init import check_norm, check_positive, dcgan_init_, image_scales, norm_layer
from genlab.networks.layers import Layered


def _upward(latent_dim: int, shape: Sequence[int], width: int, norm: str, output_bias: bool = False) -> nn.Sequential:
    """The generator up to its tanh: [N, latent_dim, 1, 1] -> [N, *shape].

    At 64 x 64: latent - 8 width x 4 x 4 - 4 width x 8 x 8 - 2 width x 16 x 16 - width x 32 x 32 - C x 64 x 64.
    """
    check_positive("model.latent_dim", latent_dim)
    check_positive("network.width", width)
    bias = check_norm(norm) == "none"  # a normalisation has a shift of its own
    doublings, base = image_scales(shape, base=4, smallest=8, network="dcgan")
    channels = width * 2 ** (doublings - 1)
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(latent_dim, channels, base, bias=bias),  # 1 x 1 to base: a linear layer
        norm_layer(norm, channels),
        nn.ReLU(),
    ]
    for _ in range(doublings - 1):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=bias),
            norm_layer(norm, channels // 2),
            nn.ReLU(),
        ]
        channels //= 2
    layers.append(nn.ConvTranspose2d(channels, int(shape[0]), 4, stride=2, padding=1, bias=output_bias))
    return nn.Sequential(*layers)


def _downward(shape: Sequence[int], width: int, norm: str) -> tuple[nn.Sequential, int, tuple[int, int]]:
    """The discriminator without its head: [N, *shape] -> [N, channels, *base]; also returns channels and base.

    The first layer is not normalised (section 3 of the paper: normalising it made samples oscillate).
    """
    check_positive("network.width", width)
    bias = check_norm(norm) == "none"
    doublings, base = image_scales(shape, base=4, smallest=8, network="dcgan")
    layers: list[nn.Module] = [nn.Conv2d(int(shape[0]), width, 4, stride=2, padding=1, bias=bias), nn.LeakyReLU(0.2)]
    channels = width
    for _ in range(doublings - 1):
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=bias),
            norm_layer(norm, 2 * channels),
            nn.LeakyReLU(0.2),
        ]
        channels *= 2
    return nn.Sequential(*layers), channels, base


class Generator(nn.Module):
    """Noise to images in [-1, 1]. With Z = 100, 3 channels, 64 x 64 and width 64: 3,576,704 parameters.

    Args:
        latent_dim: Z.
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        width: Channels before the last layer; doubled with each stage towards the noise.
        norm: One of batch (the paper), instance, layer, none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        self.body = _upward(latent_dim, shape, width, norm)
        dcgan_init_(self)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W] in [-1, 1]."""
        return torch.tanh(self.body(z[:, :, None, None]))


class Decoder(nn.Module):
    """The generator's stages without tanh and with a bias in the last layer: means or logits of pixels.

    Args:
        latent_dim: Z.
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        width: Channels before the last layer.
        norm: One of batch, instance, layer, none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        self.body = _upward(latent_dim, shape, width, norm, output_bias=True)
        dcgan_init_(self)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W], unbounded."""
        return self.body(z[:, :, None, None])


class Discriminator(Layered):
    """Images to one logit each. With 3 channels, 64 x 64, width 64 and batch norm: 2,765,568 parameters.

    Args:
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        width: Channels after the first layer; doubled with each stage.
        norm: One of batch (the paper), instance, layer, none; a gradient penalty needs one of the last three.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        self.trunk, channels, base = _downward(shape, width, norm)
        self.end = (channels, *base)
        self.head = nn.Conv2d(channels, 1, base, bias=False)
        dcgan_init_(self)

    def logits(self, features: Tensor) -> Tensor:
        """[N, F] -> logits [N], a linear map."""
        return self.head(features.unflatten(1, self.end)).flatten()


class Encoder(nn.Module):
    """The discriminator's stages with `out_features` linear outputs.

    Args:
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        out_features: 2 Z for a Gaussian posterior (mean and log-variance), Z for a code.
        width: Channels after the first layer; doubled with each stage.
        norm: One of batch, instance, layer, none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], out_features: int, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        check_positive("model.encoder_features", out_features)
        self.trunk, channels, base = _downward(shape, width, norm)
        self.head = nn.Conv2d(channels, out_features, base)
        dcgan_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out_features]."""
        return self.head(self.trunk(x)).flatten(1)


class Autoencoder(nn.Module):
    """Encoder and decoder, both with linear outputs.

    Args:
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        code_dim: Length of the code.
        width: Channels at half the image size.
        norm: One of batch, instance, layer, none, for both halves.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], code_dim: int, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        check_positive("model.code_dim", code_dim)
        self.encoder = Encoder(shape, code_dim, width, norm)
        self.decoder = Decoder(code_dim, shape, width, norm)

    def encode(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, code_dim]."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """[N, code_dim] -> [N, C, H, W], unbounded."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> its reconstruction."""
        return self.decode(self.encode(x))
