"""Discriminators as sequences of layers; learned similarities read the output of one layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from genlab.errors import UserError

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Layered(nn.Module):
    """A discriminator with a `trunk`, a sequence of modules, and a linear head.

    A layer is a linear map, a convolution or a residual block of the trunk. Its raw output comes before the
    normalisation and activation that follow it.
    """

    trunk: nn.Sequential

    def enter(self, x: Tensor) -> Tensor:
        """Samples [N, ...] in the shape that the first layer takes."""
        return x

    def pooled(self, h: Tensor) -> Tensor:
        """The trunk's output as features [N, F]."""
        return h.flatten(1)

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Features [N, F] -> logits [N], a linear map."""

    def features(self, x: Tensor) -> Tensor:
        """Samples [N, ...] -> features [N, F], the input of the head."""
        return self.pooled(self.trunk(self.enter(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Samples [N, ...] -> logits [N]."""
        return self.logits(self.features(x))

    def check_layer(self, layer: int) -> None:
        """Checks that a layer exists.

        Raises:
            UserError: If it does not.
        """
        self.end_of(layer)

    def until(self, x: Tensor, layer: int) -> Tensor:
        """The raw output [N, ...] of a layer; 1 is the first layer, -1 the last."""
        return self.trunk[: self.end_of(layer)](self.enter(x))

    def outputs(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The raw outputs [N, ...] of several layers, in one pass; see `until`."""
        h, done, found = self.enter(x), 0, {}
        for end in sorted({self.end_of(layer) for layer in layers}):
            h = self.trunk[done:end](h)
            found[end], done = h, end
        return [found[self.end_of(layer)] for layer in layers]

    def beyond(self, h: Tensor, layer: int) -> Tensor:
        """Logits [N] from the output of `until` at the same layer."""
        return self.logits(self.pooled(self.trunk[self.end_of(layer) :](h)))

    def end_of(self, layer: int) -> int:
        """Position in `trunk` behind a layer's linear map: 1 is the first layer, -1 the last before the head.

        Raises:
            UserError: If there is no such layer.
        """
        ends = [
            i + 1
            for i, child in enumerate(self.trunk)
            if not isinstance(child, _NORMS) and next(child.parameters(), None) is not None
        ]
        if layer == 0 or abs(layer) > len(ends):
            raise UserError(
                f"The discriminator has {len(ends)} layers before its head, so model.feature_layer must be in "
                f"1 .. {len(ends)}, or negative to count from the last layer, -1; got {layer}."
            )
        return ends[layer - 1 if layer > 0 else layer]
