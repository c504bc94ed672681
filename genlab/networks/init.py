"""Shared by the network families: checks of arguments, normalisation layers, initial weights."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from genlab.errors import UserError

NORMS = ("batch", "instance", "layer", "none")
LARGEST_MAP = 32  # most pixels of the shorter side of a network's smallest feature map


def check_width(encoder_features: int, wanted: int) -> None:
    """Refuses an encoder whose output has another width than its reader needs.

    Raises:
        UserError: If `encoder_features`, the width of the encoder's output, is not `wanted`.
    """
    if encoder_features != wanted:
        raise UserError(
            f"The encoder must give {wanted} numbers, not {encoder_features}. Set model.encoder_features={wanted}."
        )


def check_positive(key: str, value: int, cure: str = "64") -> None:
    """Checks that a size is a positive whole number; unlike torch's error, the message names the key.

    Args:
        key: The size's config key, for the message.
        value: The size.
        cure: Value that the message proposes.

    Raises:
        UserError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} must be a positive whole number, got {value!r}. Try {key}={cure}.")


def check_norm(norm: str) -> str:
    """Returns `norm` if it is one of `NORMS`.

    Raises:
        UserError: If it is not.
    """
    if norm not in NORMS:
        raise UserError(f"network.norm must be one of {', '.join(NORMS)}, got {norm!r}. Try network.norm=none.")
    return norm


def norm_layer(norm: str, channels: int) -> nn.Module:
    """The normalisation of a feature map [N, channels, H, W], with a learned scale and shift per channel.

    `batch` couples the samples of a batch, so it does not fit a gradient penalty, which is defined per sample. `layer`
    (over channels and positions, as in the code of Gulrajani et al.) and `instance` (over positions) do not.
    """
    check_norm(norm)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


def image_scales(shape: Sequence[int], base: int, smallest: int, network: str) -> tuple[int, tuple[int, int]]:
    """The number of doublings (or halvings) between `shape` and a network's smallest feature map, and that map's size.

    As many as the sides share factors of two, while the shorter side of the map stays at least `base`: with base 4,
    64 x 64 is 4 doublings of 4 x 4, 48 x 64 is 3 of 6 x 8, and 100 x 100 is 2 of 25 x 25.

    Args:
        shape: (C, H, W) of the data.
        base: Least side of the smallest feature map.
        smallest: Smallest image side that is allowed, >= base.
        network: Name of the family, for the messages.

    Returns:
        The number of doublings and (height, width) of the smallest feature map, whose shorter side is at most 32.

    Raises:
        UserError: If the data are not images, or no number of doublings reaches their size; names the nearest that fit.
    """
    if len(shape) != 3:
        raise UserError(f"network={network} needs images [C, H, W], got data of shape {list(shape)}. Try network=mlp.")
    height, width = int(shape[1]), int(shape[2])
    found = _scales(height, width, base, smallest)
    if found is not None:
        return found
    square = height == width
    nearest = _nearest_sizes(height, width, base, smallest)
    tries = [f"data.image_size={h}" if square else f"'data.image_size=[{h},{w}]'" for h, w in nearest]
    raise UserError(
        f"network={network} halves images: the sides must be at least {smallest} and even, and even again after each "
        f"halving until the shorter one has at most {LARGEST_MAP} pixels, got image_size="
        f"{height if square else f'[{height},{width}]'}. Try {' or '.join(tries)}."
    )


def _scales(height: int, width: int, base: int, smallest: int) -> tuple[int, tuple[int, int]] | None:
    """What `image_scales` returns; None for a size that does not fit."""
    shorter = min(height, width)
    if shorter < smallest:
        return None
    doublings = 0
    while math.gcd(height, width) % 2 ** (doublings + 1) == 0 and shorter >= base * 2 ** (doublings + 1):
        doublings += 1
    least = shorter >> doublings
    fits = least <= LARGEST_MAP and (doublings > 0 or least == base)
    return (doublings, (height >> doublings, width >> doublings)) if fits else None


def _nearest_sizes(height: int, width: int, base: int, smallest: int) -> list[tuple[int, int]]:
    """The sizes that fit with the least change of the sides, those with most doublings first.

    Of a square only squares; of others one size.
    """
    for change in itertools.count(1):
        if height == width:
            sizes = [(height + each, width + each) for each in (-change, change)]
        else:
            steps = [(a, b) for a in range(-change, change + 1) for b in {abs(a) - change, change - abs(a)}]
            sizes = [(height + a, width + b) for a, b in steps]
        found = {size: _scales(*size, base, smallest) for size in sizes}
        fits = sorted((-scales[0], size) for size, scales in found.items() if scales is not None)
        if fits:
            return [size for _, size in fits][: None if height == width else 1]
    raise AssertionError("unreachable")


def dcgan_init_(module: nn.Module) -> None:
    """Radford et al. (2015), in place: convolutions N(0, 0.02), normalisation scales N(1, 0.02), shifts and biases 0.

    The scales of the normalisations are those of the torch code; the paper specifies weights only.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def glorot_init_(module: nn.Module, gain: float = 1.0) -> None:
    """Glorot & Bengio (2010), in place: weights uniform with variance 2 gain^2 / (fan_in + fan_out), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def spectrally_normalised(network: nn.Module) -> nn.Module:
    """Divides the weight of every layer by its largest singular value, in place; skips layers that have this already.

    Miyato et al. (2018), "Spectral Normalization for Generative Adversarial Networks", arXiv:1802.05957, section 2.1,
    by torch's parametrization: one power iteration per forward in training mode, none in eval mode.

    Args:
        network: A discriminator of any family.

    Returns:
        The same network.
    """
    for layer in [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        if not is_parametrized(layer, "weight"):
            spectral_norm(layer)
    return network


@torch.no_grad()
def feature_count(discriminator: nn.Module, shape: Sequence[int]) -> int:
    """F of a discriminator's `features`: [N, *shape] -> [N, F]. Its state and torch's random stream do not change.

    Raises:
        UserError: If it has no `features`.
    """
    features = getattr(discriminator, "features", None)
    if features is None:
        raise UserError(f"{type(discriminator).__name__} has no `features` to build on. Try network=mlp.")
    modes = [(module, module.training) for module in discriminator.modules()]
    discriminator.eval()  # no update of statistics, no power iteration
    count = int(features(torch.zeros(1, *shape)).shape[1])
    for module, mode in modes:
        module.training = mode
    return count


def start_output_bias(decoder: nn.Module, bias: Tensor) -> None:
    """Initialises the bias of a decoder's last layer with the output that fits the data best without a latent.

    Does nothing if the last linear layer has no bias of that size: a convolution has only one number per channel.

    Args:
        decoder: Network whose last linear layer gives the output.
        bias: That output, without the batch dimension.
    """
    while isinstance(getattr(decoder, "network", None), nn.Module):  # wrappers, see `genlab.networks.told`
        decoder = decoder.network  # type: ignore[assignment]
    last = [m for m in decoder.modules() if isinstance(m, nn.Linear)][-1:]
    if last and last[0].bias is not None and last[0].out_features == bias.numel():
        with torch.no_grad():
            last[0].bias.copy_(bias.flatten())
