"""An adversary for models that have an objective of their own: a discriminator that they must deceive beside it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.models.base import GenerativeModel


class Adversary(nn.Module):
    """A discriminator, what it plays for, and how much that counts. `adversary=gan` gives it to a model.

    Args:
        discriminator: Maps samples [N, ...] to logits [N].
        loss: What the discriminator minimises, and the model on its imitations.
        weight: Of the model's side, beside an objective in nats of a whole sample.

    Raises:
        UserError: If the weight is negative.
    """

    def __init__(self, discriminator: nn.Module, loss: AdversarialLoss, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise UserError(f"adversary.weight must be at least 0, got {weight}.")
        self.discriminator, self.loss, self.weight = discriminator, loss, weight


class Opposable(GenerativeModel):
    """A model whose objective may be joined by a game against a discriminator of real samples and its imitations.

    Nothing else changes: `objective`, and all bounds and scores made of it, are the model's own.
    """

    adversary: Adversary | None

    def oppose(self, adversary: Adversary | None) -> None:
        """Takes an adversary, or none; called last in a constructor."""
        self.adversary = adversary
        if adversary is not None:
            self.add_player("discriminator", adversary.discriminator, "adversary.optimizer")

    @abstractmethod
    def imitate(self, x: Tensor) -> Tensor:
        """The fakes for the adversary beside real samples x [N, ...]: as many, with their graph."""

    def play_adversary(self, x: Tensor) -> None:
        """The discriminator's turn, on samples [N, ...]; nothing without an adversary."""
        if self.adversary is None:
            return
        with torch.no_grad():
            x_fake = self.imitate(x)
        with self.turn("discriminator") as player:
            logits_real, logits_fake = self.adversary.discriminator(x), self.adversary.discriminator(x_fake)
            d_loss = self.adversary.loss.discriminator(logits_real, logits_fake)
            player.minimise(d_loss)
        self.record(d_loss=d_loss)
        self.record_logits(logits_real, logits_fake)

    def deception(self, x: Tensor) -> Tensor | float:
        """The game's term of the model's own loss, inside its turn; 0 without an adversary."""
        if self.adversary is None:
            return 0.0
        g_loss = self.adversary.loss.generator(self.adversary.discriminator(self.imitate(x)))
        self.record(g_loss=g_loss)
        return self.adversary.weight * g_loss
