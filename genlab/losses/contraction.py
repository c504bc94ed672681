"""The contractive penalty: the squared norm of an encoder's Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.losses.numerics import exact


@exact
def squared_jacobian(encode: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """|| d encode / dx ||_F^2 at each sample, exact and differentiable in the encoder's parameters.

    Rifai et al. (2011), "Contractive Auto-Encoders", ICML, Eq. 2. One backward pass per dimension of the code, all Z
    batched.

    Args:
        encode: Maps samples [N, ...] to codes [N, Z], each sample by itself (no batch norm in training mode).
        x: Samples [N, ...].

    Returns:
        [N].
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        code = encode(x)
        unit = torch.eye(code.shape[1], dtype=code.dtype, device=code.device)  # one row per dimension of the code
        (rows,) = torch.autograd.grad(
            code, x, unit[:, None, :].expand(-1, len(x), -1), create_graph=True, is_grads_batched=True
        )
    return rows.square().flatten(2).sum(dim=(0, 2))


@exact
def squared_jacobian_of_sigmoid_layer(code: Tensor, weight: Tensor) -> Tensor:
    """`squared_jacobian` of one layer h = sigmoid(W x + b), in closed form: sum_i (h_i (1 - h_i))^2 sum_j W_ij^2.

    Rifai et al. (2011), Eq. 3.

    Args:
        code: h, [N, Z].
        weight: W, [Z, D].

    Returns:
        [N].
    """
    return (code * (1 - code)).square() @ weight.square().sum(dim=1)
