"""Small networks of the swapping autoencoder: encoder (structure and texture), generator, texture discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.losses.numerics import exact
from genlab.networks.init import check_positive

SLOPE = 0.2  # of the leaky ReLUs


def _activated(x: Tensor) -> Tensor:
    """Leaky ReLU times sqrt 2, which preserves the scale of normal inputs, as in StyleGAN2."""
    return F.leaky_relu(x, SLOPE) * 2**0.5


class Down(nn.Module):
    """conv3 - leaky ReLU - conv3 - leaky ReLU (- halve), plus the shortcut, times 1 / sqrt 2.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        halve: Whether height and width are halved, by means over 2 x 2.
    """

    def __init__(self, in_channels: int, out_channels: int, halve: bool = True) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], with half of H and W if `halve`."""
        residual = _activated(self.conv2(_activated(self.conv1(x))))
        if self.halve:
            residual, x = F.avg_pool2d(residual, 2), F.avg_pool2d(x, 2)
        return (residual + self.shortcut(x)) / 2**0.5


class ModulatedConv(nn.Module):
    """A 3 x 3 convolution with input channels scaled by a style; it preserves unit variance.

    Karras et al. (2020), "Analyzing and Improving the Image Quality of StyleGAN", arXiv:1912.04958, section 2.2.
    Scaling input and output equals scaling the weights per sample, without a copy of the weights for each sample.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        style_dim: Length of the style.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3) / (9 * in_channels) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.style = nn.Linear(style_dim, in_channels)
        nn.init.ones_(self.style.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """[N, C_in, H, W] and [N, style_dim] -> [N, C_out, H, W]."""
        scale = self.style(style)
        energy = scale.square() @ self.weight.square().sum(dim=(2, 3)).T  # of each sample's scaled weights, [N, C_out]
        y = F.conv2d(x * scale[:, :, None, None], self.weight, padding=1)
        return y * (energy + 1e-8).rsqrt()[:, :, None, None] + self.bias[:, None, None]


class Styled(nn.Module):
    """(Double -) two modulated convolutions with leaky ReLUs, plus the shortcut, times 1 / sqrt 2.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        style_dim: Length of the style.
        twice: Whether height and width are doubled first.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, twice: bool = True) -> None:
        super().__init__()
        self.twice = twice
        self.conv1 = ModulatedConv(in_channels, out_channels, style_dim)
        self.conv2 = ModulatedConv(out_channels, out_channels, style_dim)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """[N, C_in, H, W] and [N, style_dim] -> [N, C_out, H, W], with twice H and W if `twice`."""
        if self.twice:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        residual = _activated(self.conv2(_activated(self.conv1(x, style)), style))
        return (residual + self.shortcut(x)) / 2**0.5


def _check_sizes(shape: Sequence[int], halvings: int, **sizes: int) -> None:
    """Checks that the data can be halved `halvings` times and that the sizes, named by their keys, are positive.

    Raises:
        UserError: If the data are not images, a side is not a multiple of 2^halvings, or a size is not positive.
    """
    for key, size in sizes.items():
        check_positive(f"model.{key}", size)
    if len(shape) != 3:
        raise UserError(f"model=swapping_autoencoder is for images, got data of shape {list(shape)}. Try data=digits.")
    check_positive("model.halvings", halvings, cure="2")
    if any(side % 2**halvings for side in shape[1:]):
        raise UserError(
            f"Images for model.halvings={halvings} need sides that are multiples of {2**halvings}, got "
            f"{shape[1]}x{shape[2]}. Try model.halvings=1."
        )


class Encoder(nn.Module):
    """Images to a structure map and a texture vector, of unit length (the structure: at each position).

    A small version of the authors' network. Residual blocks halve the image to the structure's resolution, where 1 x 1
    convolutions give the structure. One more halving and the mean over positions precede the texture.

    Args:
        shape: (C, H, W).
        structure_dim: Channels of the structure; few, or the structure alone describes the image.
        texture_dim: Length of the texture.
        width: Channels after the first layer, doubled with each halving up to 8 `width`.
        halvings: Number of halvings from the image to the structure.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self, shape: Sequence[int], structure_dim: int, texture_dim: int, width: int = 16, halvings: int = 2
    ) -> None:
        super().__init__()
        _check_sizes(shape, halvings, structure_dim=structure_dim, texture_dim=texture_dim, width=width)
        self.structure_shape = (structure_dim, int(shape[1]) >> halvings, int(shape[2]) >> halvings)
        self.texture_dim = texture_dim
        channels = [width * min(2**i, 8) for i in range(halvings + 2)]
        self.input = nn.Conv2d(int(shape[0]), width, 1)
        self.trunk = nn.Sequential(*(Down(channels[i], channels[i + 1]) for i in range(halvings)))
        self.structure = nn.Sequential(
            nn.Conv2d(channels[-2], channels[-2], 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels[-2], structure_dim, 1),
        )
        smallest = min(self.structure_shape[1:])
        self.deeper = Down(channels[-2], channels[-1], halve=smallest > 1)
        self.texture = nn.Linear(channels[-1], texture_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] -> structure [N, S, h, w] and texture [N, T]."""
        h = self.trunk(self.input(x))
        texture = self.texture(self.deeper(h).mean(dim=(2, 3)))
        return F.normalize(self.structure(h), dim=1), F.normalize(texture, dim=1)


class Generator(nn.Module):
    """Structure and texture to images: the structure is the input, the texture modulates every convolution.

    Simpler than the paper's StyleGAN2: no noise, no blur, no equalised learning rate. The modulation is the same, and
    so is the linear output, which cannot saturate under the discriminators' gradients.

    Args:
        shape: (C, H, W).
        structure_dim: Channels of the structure.
        texture_dim: Length of the texture.
        width: Channels at the image's resolution, doubled with each halving up to 8 `width`.
        halvings: Number of halvings from the image to the structure.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self, shape: Sequence[int], structure_dim: int, texture_dim: int, width: int = 16, halvings: int = 2
    ) -> None:
        super().__init__()
        _check_sizes(shape, halvings, structure_dim=structure_dim, texture_dim=texture_dim, width=width)
        channels = [width * min(2**i, 8) for i in reversed(range(halvings + 1))]
        self.input = Styled(structure_dim, channels[0], texture_dim, twice=False)
        self.blocks = nn.ModuleList(Styled(channels[i], channels[i + 1], texture_dim) for i in range(halvings))
        self.output = nn.Conv2d(channels[-1], int(shape[0]), 1)

    def forward(self, structure: Tensor, texture: Tensor) -> Tensor:
        """[N, S, h, w] and [N, T] -> [N, C, H, W], unbounded."""
        texture = texture * texture.shape[1] ** 0.5  # has unit length; its entries get unit variance
        h = self.input(structure * structure.shape[1] ** 0.5, texture)
        for block in self.blocks:
            h = block(h, texture)
        return self.output(h)


class PatchDiscriminator(nn.Module):
    """One logit per crop: does it have the texture of the reference crops? arXiv:2007.00653, section 3.2.

    Args:
        shape: (C, H, W) of the uncropped images.
        patch_size: Side of the crops, a multiple of 4.
        width: Channels of the first layer, doubled with each of the two halvings.
        hidden: Width of the layers on reference and crop features.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: Sequence[int], patch_size: int, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        check_positive("model.patch_size", patch_size, cure="8")
        check_positive("model.patch_discriminator.width", width, cure="16")
        check_positive("model.patch_discriminator.hidden", hidden)
        if patch_size % 4:
            raise UserError(f"model.patch_size must be a multiple of 4, got {patch_size}. Try model.patch_size=8.")
        self.trunk = nn.Sequential(
            nn.Conv2d(int(shape[0]), width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            Down(width, 2 * width),
            Down(2 * width, 4 * width),
            nn.Flatten(),
        )
        features = 4 * width * (patch_size // 4) ** 2
        self.compare = nn.Sequential(
            nn.Linear(2 * features, hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, 1),
        )

    def features(self, crops: Tensor) -> Tensor:
        """Crops [N, K, C, p, p] -> [N, K, F]."""
        return self.trunk(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])

    def reference(self, crops: Tensor) -> Tensor:
        """The mean features [N, F] of reference crops [N, R, C, p, p]."""
        return self.features(crops).mean(dim=1)

    def logits(self, reference: Tensor, crops: Tensor) -> Tensor:
        """Mean features [N, F] and crops [N, K, C, p, p] -> logits [N, K]."""
        features = self.features(crops)
        return self.compare(torch.cat([reference.unsqueeze(1).expand_as(features), features], dim=2)).squeeze(2)

    def forward(self, reference: Tensor, crops: Tensor) -> Tensor:
        """Reference crops [N, R, C, p, p] and crops [N, K, C, p, p] -> logits [N, K]."""
        return self.logits(self.reference(reference), crops)


@exact
def random_crops(x: Tensor, count: int, size: int, scale: tuple[float, float], rand: Callable[..., Tensor]) -> Tensor:
    """Square crops of random position and size, resampled bilinearly to one size; differentiable by x.

    Args:
        x: Images [N, C, H, W].
        count: K, crops of each image.
        size: p, side of the resampled crops.
        scale: Smallest and largest side of a crop, as shares of the image's shorter one.
        rand: `rand(n, *shape)` gives uniform draws in [0, 1), [n, *shape], from the model's stream.

    Returns:
        Crops [N, K, C, p, p].
    """
    n, _, height, width = x.shape
    draws = rand(n, count, 3)
    side = (scale[0] + (scale[1] - scale[0]) * draws[..., 0]) * min(height, width)  # in pixels, [N, K]
    steps = (torch.arange(size, device=x.device, dtype=draws.dtype) + 0.5) / size
    across = ((width - side) * draws[..., 1]).unsqueeze(2) + side.unsqueeze(2) * steps
    down = ((height - side) * draws[..., 2]).unsqueeze(2) + side.unsqueeze(2) * steps
    # A crop is row weights @ image @ column weights. `grid_sample` gives the same result, but on a GPU its
    # gradient has no deterministic implementation.
    rows, columns = _weights(down.to(x.dtype), height), _weights(across.to(x.dtype), width)
    return rows.unsqueeze(2) @ x.unsqueeze(1) @ columns.unsqueeze(2).transpose(-2, -1)


def _weights(places: Tensor, length: int) -> Tensor:
    """Pixel weights [..., p, length] of linear interpolation at places [..., p], in pixels from the edge.

    A place beyond the centre of the first or last pixel gets that pixel's value.
    """
    pixels = torch.arange(length, device=places.device, dtype=places.dtype)
    return F.relu(1 - ((places - 0.5).clamp(0, length - 1).unsqueeze(-1) - pixels).abs())
