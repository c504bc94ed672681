"""Discriminators as rows of layers that can be stopped at: learned similarities read what one layer says."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from genlab.errors import UserError

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Layered(nn.Module):
    """A discriminator whose `trunk` is a row of layers, with a linear head.

    A layer is what has weights of its own in the trunk: a linear map, a convolution, a residual block. Its output is
    taken raw, before any normalisation and activation that follow.
    """

    trunk: nn.Sequential

    def enter(self, x: Tensor) -> Tensor:
        """Samples [N, ...] as the first layer wants them."""
        return x

    def pooled(self, h: Tensor) -> Tensor:
        """The trunk's output as features [N, F]."""
        return h.flatten(1)

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Features [N, F] -> logits [N], a linear map."""

    def features(self, x: Tensor) -> Tensor:
        """Samples [N, ...] -> features [N, F], what the head reads."""
        return self.pooled(self.trunk(self.enter(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Samples [N, ...] -> logits [N]."""
        return self.logits(self.features(x))

    def check_layer(self, layer: int) -> None:
        """Whether there is such a layer.

        Raises:
            UserError: If not.
        """
        self._end_of(layer)

    def until(self, x: Tensor, layer: int) -> Tensor:
        """The raw output [N, ...] of a layer, 1 the first, -1 the last."""
        return self.trunk[: self._end_of(layer)](self.enter(x))

    def beyond(self, h: Tensor, layer: int) -> Tensor:
        """Logits [N] from what `until` gave of the same layer."""
        return self.logits(self.pooled(self.trunk[self._end_of(layer) :](h)))

    def _end_of(self, layer: int) -> int:
        ends = [
            i + 1
            for i, child in enumerate(self.trunk)
            if not isinstance(child, _NORMS) and next(child.parameters(), None) is not None
        ]
        if layer == 0 or abs(layer) > len(ends):
            raise UserError(
                f"The discriminator has {len(ends)} layers before its head, so model.feature_layer must be in "
                f"1 .. {len(ends)}, or count from the last one, -1; got {layer}."
            )
        return ends[layer - 1 if layer > 0 else layer]
