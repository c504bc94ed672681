"""PacGAN: a discriminator of packs of several samples. Lin et al. (2018), arXiv:1712.04086."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.init import check_positive


def pack(x: Tensor, m: int) -> Tensor:
    """Joins each m consecutive samples along the channels: [N, C, ...] -> [N / m, m C, ...].

    Raises:
        UserError: If m does not divide N.
    """
    if len(x) % m:
        raise UserError(
            f"The batch size must be a multiple of {m}, the samples per pack, got {len(x)}. "
            f"Try data.batch_size={64 * m}."
        )
    return x.unflatten(0, (-1, m)).flatten(1, 2)


class Packed(nn.Module):
    """D(x_1, ..., x_m), section 3 of the paper: one logit for m independent samples of one kind, all real or all fake.

    Mode collapse shows in a pack as samples that are too similar, even if each of them looks real.
    """

    def __init__(self, discriminator: nn.Module, m: int = 2) -> None:
        """Wraps a discriminator for packed samples.

        Args:
            discriminator: Network for samples of the shape [m C, ...]; gives one logit per pack.
            m: Samples in a pack; 1: no packing.
        """
        super().__init__()
        check_positive("m", m, cure="2")
        self.discriminator: Any = discriminator
        self.couples_samples = m > 1
        self.m = self.samples_per_value = m

    def features(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [N / m, F]."""
        return self.discriminator.features(pack(x, self.m))

    def logits(self, features: Tensor) -> Tensor:
        """[N / m, F] -> logits [N / m]."""
        return self.discriminator.logits(features)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> logits [N / m]."""
        return self.discriminator(pack(x, self.m))
