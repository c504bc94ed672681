"""Discriminators of classes: several logits for each sample."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genlab.networks.init import check_positive, feature_count
from genlab.networks.layers import Layered


class ClassLogits(nn.Module):
    """Samples to a logit for each class: a linear map of a discriminator's features, in place of its own head.

    Args:
        body: A discriminator; its own head is removed.
        shape: Of a sample, used to find F.
        classes: Number of logits: K, or K + 1 with a class for fakes, the last.

    Raises:
        UserError: If the number of classes is unknown.
    """

    def __init__(self, body: Layered, shape: Sequence[int], classes: int | None) -> None:
        super().__init__()
        check_positive("data.num_classes", classes or 0, cure="10")
        width = feature_count(body, shape)
        body.head = nn.Identity()  # its parameters would belong to the player, but never get a gradient
        self.body, self.head = body, nn.Linear(width, classes or 0)

    def features(self, x: Tensor) -> Tensor:
        """Samples [N, ...] -> features [N, F]."""
        return self.body.features(x)

    def check_layer(self, layer: int) -> None:
        """See `Layered.check_layer`."""
        self.body.check_layer(layer)

    def outputs(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `Layered.outputs`."""
        return self.body.outputs(x, layers)

    def forward(self, x: Tensor) -> Tensor:
        """Samples [N, ...] -> logits [N, classes]."""
        return self.head(self.features(x))
