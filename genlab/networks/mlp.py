"""Fully connected networks, for points and for small images."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.init import check_positive
from genlab.networks.layers import Layered

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
MAXOUT_PIECES = 5
HIDDEN = (128, 128)  # the two layers of the toy experiments


class Maxout(nn.Module):
    """The largest of each five neighbouring features: [N, 5 F] -> [N, F]. Goodfellow et al. (2013), arXiv:1302.4389."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 5 F] -> [N, F]."""
        return x.unflatten(1, (-1, MAXOUT_PIECES)).amax(dim=2)


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns (D,) of points or (C, H, W) of images as a tuple.

    Raises:
        UserError: If the shape is neither.
    """
    if len(shape) not in (1, 3):
        raise UserError(f"network=mlp needs points [D] or images [C, H, W], got data of shape {list(shape)}.")
    return tuple(int(size) for size in shape)


def _hidden_layers(in_features: int, hidden: Sequence[int], activation: str, norm: str = "none") -> nn.Sequential:
    """Linear layers with optional batch norm and activation: [N, in_features] -> [N, hidden[-1]]; none: the input.

    Raises:
        UserError: If activation or norm is unknown, or the widths are not a list of positive whole numbers.
    """
    if activation not in (*ACTIVATIONS, "maxout"):
        raise UserError(
            f"network.activation must be one of {', '.join(ACTIVATIONS)}, maxout, got {activation!r}. "
            "Try network.activation=relu."
        )
    if isinstance(hidden, int):
        raise UserError(f"network.hidden must be a list of widths, got {hidden}. Try 'network.hidden=[{hidden}]'.")
    if norm not in ("none", "batch"):
        raise UserError(f"network.generator_norm of fully connected networks must be none or batch, got {norm!r}.")
    layers: list[nn.Module] = []
    for width in hidden:
        check_positive("network.hidden", width, cure="[128,128]")
        # No bias before batch norm, which subtracts it: its gradient would be zero.
        wide = width * MAXOUT_PIECES if activation == "maxout" else width
        layers.append(nn.Linear(in_features, wide, bias=norm == "none"))
        layers += [nn.BatchNorm1d(wide)] if norm == "batch" else []
        layers.append(Maxout() if activation == "maxout" else ACTIVATIONS[activation]())
        in_features = width
    return nn.Sequential(*layers)


def _mlp(
    in_features: int, hidden: Sequence[int], out_features: int, activation: str, norm: str = "none"
) -> nn.Sequential:
    """[N, in_features] -> [N, out_features], linear at the end."""
    body = _hidden_layers(in_features, hidden, activation, norm)
    return body.append(nn.Linear(hidden[-1] if len(hidden) else in_features, out_features))


@torch.no_grad()
def _start(network: nn.Module, std: float | None) -> None:
    """Initialises weights as N(0, std^2) and biases as 0, in place; None leaves torch's initialisation.

    Raises:
        UserError: If std is not positive.
    """
    if std is None:
        return
    if not std > 0:
        raise UserError(f"network.weight_std must be positive or null, got {std}. Try network.weight_std=0.02.")
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(0, std)
            if layer.bias is not None:
                layer.bias.zero_()


class Decoder(nn.Module):
    """Latent to data, without an activation at the end: [N, latent_dim] -> [N, *shape].

    Args:
        latent_dim: Z.
        shape: (C, H, W) or (D,).
        hidden: Widths of the hidden layers, from the latent on.
        activation: One of `ACTIVATIONS`, or "maxout" of five pieces.
        norm: "none" or "batch", before each activation.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        hidden: Sequence[int] = HIDDEN,
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        check_positive("model.latent_dim", latent_dim)
        self.shape = _check_shape(shape)
        self.body = _mlp(latent_dim, hidden, math.prod(self.shape), activation, norm)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, *shape], unbounded."""
        return self.body(z).unflatten(1, self.shape)


class Generator(nn.Module):
    """Noise to data: images end in tanh and lie in [-1, 1], points are unbounded.

    Args:
        latent_dim: Z.
        shape: (C, H, W) or (D,).
        hidden: Widths of the hidden layers, from the noise on.
        activation: One of `ACTIVATIONS`, or "maxout" of five pieces.
        norm: "none" or "batch", before each activation.
        weight_std: Standard deviation of the normal initial weights (biases 0); None: torch's initialisation.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        hidden: Sequence[int] = HIDDEN,
        activation: str = "relu",
        norm: str = "none",
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        self.decoder = Decoder(latent_dim, shape, hidden, activation, norm)
        self.output = nn.Tanh() if len(shape) == 3 else nn.Identity()
        _start(self, weight_std)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z] -> [N, *shape]."""
        return self.output(self.decoder(z))


class Discriminator(Layered):
    """Data to one logit each. No layer couples the samples of a batch, so it can serve as a critic.

    Args:
        shape: (C, H, W) or (D,).
        hidden: Widths of the hidden layers, from the data on.
        activation: One of `ACTIVATIONS`, or "maxout" of five pieces.
        spectral_norm: Whether every layer is divided by its largest singular value (Miyato et al., 2018).
        weight_std: Standard deviation of the normal initial weights (biases 0); None: torch's initialisation.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = HIDDEN,
        activation: str = "leaky_relu",
        spectral_norm: bool = False,
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        in_features = math.prod(_check_shape(shape))
        self.trunk = _hidden_layers(in_features, hidden, activation)
        self.head = nn.Linear(hidden[-1] if len(hidden) else in_features, 1)
        _start(self, weight_std)
        if spectral_norm:
            for layer in (*self.trunk, self.head):
                if isinstance(layer, nn.Linear):
                    nn.utils.parametrizations.spectral_norm(layer)

    def enter(self, x: Tensor) -> Tensor:
        """[N, *shape] -> [N, D]."""
        return x.flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        """[N, hidden[-1]] -> logits [N], a linear map."""
        return self.head(features).squeeze(1)


class Encoder(nn.Module):
    """Data to `out_features` numbers, linear at the end: [N, *shape] -> [N, out_features].

    Args:
        shape: (C, H, W) or (D,).
        out_features: 2 Z for a Gaussian posterior (mean and log-variance), Z for a code.
        hidden: Widths of the hidden layers, from the data on.
        activation: One of `ACTIVATIONS`, or "maxout" of five pieces.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(
        self, shape: Sequence[int], out_features: int, hidden: Sequence[int] = HIDDEN, activation: str = "relu"
    ) -> None:
        super().__init__()
        check_positive("model.encoder_features", out_features)
        self.body = _mlp(math.prod(_check_shape(shape)), hidden, out_features, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, *shape] -> [N, out_features]."""
        return self.body(x.flatten(1))


class Autoencoder(nn.Module):
    """An encoder and its mirror image, both with linear outputs.

    Args:
        shape: (C, H, W) or (D,).
        code_dim: Length of the code.
        hidden: Widths of the hidden layers from the data to the code; the decoder has them in reverse.
        activation: One of `ACTIVATIONS`, or "maxout" of five pieces.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(
        self, shape: Sequence[int], code_dim: int, hidden: Sequence[int] = HIDDEN, activation: str = "relu"
    ) -> None:
        super().__init__()
        check_positive("model.code_dim", code_dim)
        self.encoder = Encoder(shape, code_dim, hidden, activation)
        self.decoder = Decoder(code_dim, shape, list(hidden)[::-1], activation)

    def encode(self, x: Tensor) -> Tensor:
        """[N, *shape] -> [N, code_dim]."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """[N, code_dim] -> [N, *shape], unbounded."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        """[N, *shape] -> its reconstruction."""
        return self.decode(self.encode(x))
