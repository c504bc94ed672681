"""An adversary for models with an objective of their own: a discriminator that they also deceive."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.models.base import GenerativeModel


class Adversary(nn.Module):
    """A discriminator with its loss, and the weight of the model's adversarial term. Set by `adversary=gan`.

    Args:
        loss: The discriminator's loss; its generator side is the model's.
        weight: Of the model's adversarial term, at least 0; the objective in nats per sample has weight 1.

    Raises:
        UserError: If the weight is negative.
    """

    def __init__(self, discriminator: nn.Module, loss: AdversarialLoss, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise UserError(f"adversary.weight must be at least 0, got {weight}.")
        self.discriminator, self.loss, self.weight = discriminator, loss, weight


class Opposable(GenerativeModel):
    """A model that may also play against a discriminator of real samples and its imitations.

    The adversarial term is not part of `objective`, nor of the bounds and scores computed from it.
    """

    adversary: Adversary | None

    def oppose(self, adversary: Adversary | None) -> None:
        """Sets the adversary, or None; called last in a constructor."""
        self.adversary = adversary
        if adversary is not None:
            self.add_player("discriminator", adversary.discriminator, "adversary.optimizer")

    @abstractmethod
    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """N fakes for the adversary, with their graph, for real samples x [N, ...]."""

    def play_adversary(self, x: Tensor, *told: Batch) -> None:
        """The discriminator's update on samples [N, ...]; without an adversary does nothing."""
        if self.adversary is None:
            return
        with torch.no_grad():
            x_fake = self.imitate(x, *told)
        with self.turn("discriminator") as player:
            logits_real, logits_fake = self.adversary.discriminator(x), self.adversary.discriminator(x_fake)
            d_loss = self.adversary.loss.discriminator(logits_real, logits_fake)
            player.minimise(d_loss)
        self.record(d_loss=d_loss)
        self.record_logits(logits_real, logits_fake)

    def deception(self, x: Tensor, *told: Batch) -> Tensor | float:
        """The adversarial term of the model's loss, for use inside its turn; 0 without an adversary."""
        if self.adversary is None:
            return 0.0
        g_loss = self.adversary.loss.generator(self.adversary.discriminator(self.imitate(x, *told)))
        self.record(g_loss=g_loss)
        return self.adversary.weight * g_loss
