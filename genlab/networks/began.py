"""BEGAN: Berthelot, Schumm, Metz (2017), "BEGAN: Boundary Equilibrium Generative Adversarial Networks", Figure 1.

Numbers of layers and activations after carpedm20/BEGAN-tensorflow (models.py): 3 x 3 convolutions with ELU,
nearest-neighbour up-sampling, down-sampling by stride 2, no normalisation, no dropout, no transposed convolution;
outputs are linear, the generator's too. Initial weights are as in that code (Glorot-uniform, biases 0). Like that
code, this leaves out the paper's vanishing residuals and skip connections.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from genlab.networks.init import check_positive, glorot_init_, image_scales

BASE = 8  # side of the smallest feature map


def _two_convs(in_channels: int, channels: int) -> list[nn.Module]:
    """Conv3 - ELU - conv3 - ELU, size kept."""
    return [
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.ELU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ELU(),
    ]


class Generator(nn.Module):
    """Noise to images, and the decoder of the discriminator: linear to width x 8 x 8, two convolutions per scale.

    The output is linear: images lie in about [-1, 1] after training, not by construction.

    Args:
        latent_dim: Z (64 in the paper).
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        width: Channels of all scales (n in the paper: 64, or 128 for images from 128 x 128).
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int = 64) -> None:
        super().__init__()
        check_positive("model.latent_dim", latent_dim)
        check_positive("network.width", width)
        doublings, base = image_scales(shape, base=BASE, smallest=BASE, network="began")
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, width * math.prod(base)),
            nn.Unflatten(1, (width, *base)),
            *_two_convs(width, width),
        ]
        for _ in range(doublings):
            layers += [nn.Upsample(scale_factor=2.0, mode="nearest"), *_two_convs(width, width)]
        layers.append(nn.Conv2d(width, int(shape[0]), 3, padding=1))
        self.body = nn.Sequential(*layers)
        glorot_init_(self)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, C, H, W], unbounded."""
        return self.body(z)


class Encoder(nn.Module):
    """Images to `out_features` numbers: two convolutions per scale, n, 2 n, 3 n, ... channels, then linear.

    Args:
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        out_features: Length of the code (2 Z for a Gaussian posterior).
        width: Channels of the first scale; each scale adds as many.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], out_features: int, width: int = 64) -> None:
        super().__init__()
        check_positive("model.encoder_features", out_features)
        check_positive("network.width", width)
        halvings, base = image_scales(shape, base=BASE, smallest=BASE, network="began")
        layers: list[nn.Module] = [
            nn.Conv2d(int(shape[0]), width, 3, padding=1),
            nn.ELU(),
            *_two_convs(width, width),
        ]
        for scale in range(1, halvings + 1):
            channels = scale * width
            layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ELU()]
            layers += _two_convs(channels, channels + width)
        layers += [nn.Flatten(), nn.Linear((halvings + 1) * width * math.prod(base), out_features)]
        self.body = nn.Sequential(*layers)
        glorot_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out_features]."""
        return self.body(x)


class Autoencoder(nn.Module):
    """BEGAN's discriminator: the energy of an image is its reconstruction error.

    Args:
        shape: (C, H, W); sides from 8 on that `image_scales` allows.
        code_dim: Length of the code (64 in the paper).
        width: Channels of the first scale of the encoder and of all scales of the decoder.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], code_dim: int, width: int = 64) -> None:
        super().__init__()
        check_positive("model.code_dim", code_dim)
        self.encoder = Encoder(shape, code_dim, width)
        self.decoder = Generator(code_dim, shape, width)

    def encode(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, code_dim]."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """[N, code_dim] -> [N, C, H, W], unbounded."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> its reconstruction."""
        return self.decode(self.encode(x))
