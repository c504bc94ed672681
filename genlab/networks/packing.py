"""PacGAN: a discriminator that judges several samples at once. Lin et al. (2018), arXiv:1712.04086."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.networks.init import check_positive


def pack(x: Tensor, m: int) -> Tensor:
    """m samples after one another become one: [N, C, ...] -> [N / m, m C, ...].

    Raises:
        UserError: If m does not divide N.
    """
    if len(x) % m:
        raise UserError(
            f"Packs of {m} need a batch that is a multiple of it, got {len(x)}. Try data.batch_size={64 * m}."
        )
    return x.unflatten(0, (-1, m)).flatten(1, 2)


class Packed(nn.Module):
    """D(x_1, ..., x_m), section 3 of the paper: one logit for m independent samples of one kind, all real or all fake.

    Mode collapse shows in a pack, where the samples are too much alike, though each alone may pass.
    """

    def __init__(self, discriminator: nn.Module, m: int = 2) -> None:
        """Wraps a discriminator for packed samples.

        Args:
            discriminator: Built for samples of the shape [m C, ...]; its logits are those of packs.
            m: Samples in a pack; 1 changes nothing.
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
