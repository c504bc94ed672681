"""Autoregressive networks and the flows made of them; spline and affine flows from zuko (the extra `flows`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError, install
from genlab.networks.init import check_positive

ZUKO = {"maf": "MAF", "nsf": "NSF"}


class MaskedLinear(nn.Linear):
    """A linear layer in which some weights are held at zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """Takes the mask [out, in], True where a weight may differ from zero."""
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Masked autoencoder: its outputs for dimension i read only the dimensions before i (and the context).

    Germain et al. (2015), arXiv:1502.03509, with degrees assigned in turn. Hidden units of degree -1 read only the
    context, so that the outputs for the first dimension depend on it too.

    Args:
        dim: Number of dimensions.
        context: Length of the context, 0 for none.
        hidden: Widths of the hidden layers.
        outputs: Number of outputs per dimension.
        reverse: Whether the last dimension comes first.
    """

    def __init__(
        self, dim: int, context: int = 0, hidden: Sequence[int] = (64, 64), outputs: int = 2, reverse: bool = False
    ) -> None:
        super().__init__()
        for width in hidden:
            check_positive("hidden", width)
        self.outputs = outputs
        degrees = torch.arange(dim).flip(0) if reverse else torch.arange(dim)
        layers: list[nn.Module] = []
        before = degrees
        for width in hidden:
            after = torch.arange(width) % dim - 1  # -1 .. dim - 2
            layers += [MaskedLinear(after[:, None] >= before[None, :]), nn.ELU()]
            before = after
        self.first, self.rest = layers[0], nn.Sequential(*layers[1:])
        self.context = nn.Linear(context, hidden[0], bias=False) if context else None
        self.last = MaskedLinear((degrees[:, None] > before[None, :]).repeat(outputs, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """x [..., dim] and a context [..., context] that may be broadcast -> `outputs` tensors [..., dim]."""
        hidden = self.first(x)
        if self.context is not None:
            assert context is not None
            hidden = hidden + self.context(context)
        return self.last(self.rest(hidden)).chunk(self.outputs, dim=-1)


class InverseAutoregressiveFlow(nn.Module):
    """Steps z <- sigma z + (1 - sigma) m with [m, s] = MADE(z, h), sigma = sigmoid(s + bias), in alternating order.

    Kingma et al. (2016), arXiv:1606.04934, Eq. 10, 13 and 14. The bias ("forget gate") starts every step near the
    identity.

    Args:
        dim: Number of dimensions.
        context: Length of h.
        steps: T.
        hidden: Widths of each MADE's hidden layers.
        bias: Bias of the gate, 1 to 2 in the paper.
    """

    def __init__(
        self, dim: int, context: int, steps: int = 2, hidden: Sequence[int] = (320, 320), bias: float = 1.5
    ) -> None:
        super().__init__()
        if steps < 1:
            raise UserError(f"posterior.steps must be at least 1, got {steps}.")
        self.bias = bias
        networks = [MADE(dim, context, hidden, reverse=bool(t % 2)) for t in range(steps)]
        for made in networks:
            nn.init.normal_(made.last.weight, std=1e-3)  # sigma near sigmoid(bias) for all z
        self.steps = nn.ModuleList(networks)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., dim] and h [..., context] to the last z and the log-determinant sum_t sum_i log sigma_ti [...]."""
        log_det = z.new_zeros(z.shape[:-1])
        for made in self.steps:
            m, s = made(z, context)
            sigma = torch.sigmoid(s + self.bias)
            z = sigma * z + (1 - sigma) * m
            log_det = log_det + F.logsigmoid(s + self.bias).sum(dim=-1)
        return z, log_det


def zuko_flow(kind: str, dim: int, context: int, transforms: int, hidden: Sequence[int], asked: str) -> nn.Module:
    """A zuko flow, initialised near the identity: `flow(context).transform` maps data to noise in one pass.

    Args:
        kind: "maf", Papamakarios et al. (2017), arXiv:1705.07057, or "nsf" (splines on [-5, 5]), Durkan et al. (2019),
            arXiv:1906.04032.
        dim: Number of dimensions.
        context: Length of the context, 0 for none.
        transforms: Number of layers; the order of the dimensions alternates.
        hidden: Widths of the hidden layers of each layer's network.
        asked: The user's override, for the messages: "prior=maf".

    Raises:
        UserError: If zuko is missing or a value is out of its range.
    """
    group = asked.partition("=")[0]
    if kind not in ZUKO:
        raise UserError(f"{group}.kind must be one of {', '.join(ZUKO)}, got {kind!r}.")
    if transforms < 1:
        raise UserError(f"{group}.transforms must be at least 1, got {transforms}.")
    try:
        import zuko
    except ImportError as error:
        raise UserError(f"{asked} needs the package zuko: {install('flows')}") from error
    make: Any = getattr(zuko.flows, ZUKO[kind])
    flow = make(dim, context=context, transforms=transforms, hidden_features=tuple(hidden))
    for part in flow.modules():
        if hasattr(part, "hyper"):  # any other initial map would act as noise on the rest of the model
            nn.init.normal_(part.hyper[-1].weight, std=1e-3)
            nn.init.zeros_(part.hyper[-1].bias)
    return flow
