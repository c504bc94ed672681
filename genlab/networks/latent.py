"""Discriminators of latents, and of pairs of sample and latent for adversarial inference."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.networks.init import check_positive


def _layers(in_features: int, hidden: Sequence[int], key: str) -> nn.Sequential:
    """Linear layers with leaky ReLUs and one linear output: [N, in_features] -> [N, 1]. No layer couples samples.

    Raises:
        UserError: If a width is not positive.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        check_positive(key, width, cure="[128,128]")
        layers += [nn.Linear(in_features, width), nn.LeakyReLU(0.2)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, 1))


class LatentDiscriminator(nn.Module):
    """Latents to one logit each. No batch norm: batch statistics could hide how q(z) differs from the prior.

    Args:
        latent_dim: Z.
        hidden: Widths of the hidden layers.
        classes: Number of classes; if positive, a one-hot label (with an entry for a missing label) joins the input.
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int] = (256, 256), classes: int = 0) -> None:
        super().__init__()
        check_positive("model.latent_dim", latent_dim)
        self.classes = classes
        self.body = _layers(latent_dim + (classes + 1 if classes else 0), hidden, "model.latent_discriminator.hidden")

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Latents [N, Z], and labels [N] (-1: missing) if there are `classes` -> logits [N]."""
        if self.classes:
            assert y is not None, "a discriminator with classes needs labels"
            told = torch.where(y < 0, self.classes, y)
            z = torch.cat([z, nn.functional.one_hot(told, self.classes + 1).to(z.dtype)], dim=1)
        return self.body(z).squeeze(1)


class JointDiscriminator(nn.Module):
    """Pairs of sample and latent to one logit each: layers on a discriminator's features concatenated with z.

    Args:
        body: A discriminator with `features(x) -> [N, F]`; its head is removed.
        shape: Shape of a sample, used to find F.
        latent_dim: Z.
        hidden: Widths of the hidden layers on features and latent.
    """

    def __init__(self, body: Any, shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        check_positive("model.latent_dim", latent_dim)
        body.head = nn.Identity()  # its parameters would belong to the player, but never get a gradient
        self.body = body
        mode = body.training
        with torch.no_grad():
            width = int(body.eval().features(torch.zeros(1, *shape)).shape[1])
        body.train(mode)
        self.top = _layers(width + latent_dim, hidden, "model.discriminator.hidden")

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Samples [N, *shape] and latents [N, Z] -> logits [N]."""
        return self.top(torch.cat([self.body.features(x), z], dim=1)).squeeze(1)
