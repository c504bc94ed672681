"""Shared by the network families: checks of arguments, normalisation layers, initial weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from genlab.errors import UserError

NORMS = ("batch", "instance", "layer", "none")


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

    The shorter side is `base` times a power of two, the longer side any multiple of that power: 32 x 64 is 3
    doublings of 4 x 8 with base 4.

    Args:
        shape: (C, H, W) of the data.
        base: Side of the smallest feature map, a power of two.
        smallest: Smallest image side that is allowed, a power of two, >= base.
        network: Name of the family, for the messages.

    Returns:
        The number of doublings and (height, width) of the smallest feature map.

    Raises:
        UserError: If the data are not images, or no number of doublings reaches their size.
    """
    if len(shape) != 3:
        raise UserError(f"network={network} needs images [C, H, W], got data of shape {list(shape)}. Try network=mlp.")
    height, width = int(shape[1]), int(shape[2])
    shorter = min(height, width)
    power = shorter > 0 and shorter & (shorter - 1) == 0
    doublings = int(math.log2(shorter / base)) if power and shorter >= smallest else 0
    factor = 2**doublings
    if power and shorter >= smallest and height % factor == 0 and width % factor == 0:
        return doublings, (height // factor, width // factor)
    if height == width:
        allowed = f"image_size must be a power of two from {smallest} for network={network}, got {height}."
        sizes = " or ".join(f"data.image_size={size}" for size in _nearest_powers(height, smallest))
        raise UserError(f"{allowed} Try {sizes}.")
    side = _nearest_powers(shorter, smallest)[0]
    step = side // base
    longer = max(side, step * round(max(height, width) / step))
    nearest = f"[{side},{longer}]" if height < width else f"[{longer},{side}]"
    raise UserError(
        f"The shorter side of image_size must be a power of two from {smallest} and the longer one then a multiple of "
        f"{step} for network={network}, got {height}x{width}. Try 'data.image_size={nearest}'."
    )


def _nearest_powers(size: int, smallest: int) -> list[int]:
    """The power of two from `smallest` nearest to `size`; both if it lies midway between two."""
    if size <= smallest:
        return [smallest]
    below = 2 ** (size.bit_length() - 1)
    distances = {power: abs(size - power) for power in (below, 2 * below)}
    return [power for power, distance in distances.items() if distance == min(distances.values())]


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
