"""An autoencoder with one sigmoid layer and tied weights."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.losses.contraction import squared_jacobian_of_sigmoid_layer
from genlab.networks.init import check_positive


class TiedAutoencoder(nn.Module):
    """h = sigmoid(W x + b), x_hat = W' h + c with W' the transpose of W. Rifai et al. (2011), ICML, section 2.

    Args:
        shape: (C, H, W) or (D,).
        code_dim: Length of h.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __init__(self, shape: Sequence[int], code_dim: int) -> None:
        super().__init__()
        check_positive("model.code_dim", code_dim)
        self.shape = tuple(int(side) for side in shape)
        self.encoder = nn.Linear(math.prod(self.shape), code_dim)
        self.output_bias = nn.Parameter(torch.zeros(math.prod(self.shape)))

    def encode(self, x: Tensor) -> Tensor:
        """[N, *shape] -> codes [N, code_dim] in (0, 1)."""
        return torch.sigmoid(self.encoder(x.flatten(1)))

    def decode(self, code: Tensor) -> Tensor:
        """[N, code_dim] -> [N, *shape], unbounded."""
        return (code @ self.encoder.weight + self.output_bias).unflatten(1, self.shape)

    def squared_jacobian(self, x: Tensor) -> Tensor:
        """|| dh / dx ||_F^2 of each sample, [N], in closed form."""
        return squared_jacobian_of_sigmoid_layer(self.encode(x), self.encoder.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, *shape] -> its reconstruction."""
        return self.decode(self.encode(x))
