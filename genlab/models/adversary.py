"""An adversary for models with an objective of their own: a discriminator that they also deceive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.classes import nats_of_class, nats_of_fake, real_logits
from genlab.models.base import GenerativeModel, inference
from genlab.models.labels import labels_of


class Verdict(NamedTuple):
    """The discriminator's loss, a scalar, and its logits [N] that real samples, and fakes, are real."""

    loss: Tensor
    logits_real: Tensor
    logits_fake: Tensor


class Opponent(nn.Module):
    """A discriminator with its game, and the weight of the model's adversarial term.

    Args:
        weight: Of the model's adversarial term, at least 0; the objective in nats per sample has weight 1.

    Raises:
        UserError: If the weight is negative.
    """

    def __init__(self, discriminator: nn.Module, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise UserError(f"adversary.weight must be at least 0, got {weight}.")
        self.discriminator, self.weight = discriminator, weight

    classifies = False  # whether its logits are over classes, with one for fakes, the last

    @abstractmethod
    def judge(self, x_real: Tensor, x_fake: Tensor, real: Sequence[Batch], fake: Sequence[Batch]) -> Verdict:
        """The discriminator's view of samples [N, ...] and fakes [N, ...], told `real` and `fake` (or nothing)."""

    @abstractmethod
    def deceived(self, x_fake: Tensor, *told: Batch) -> Tensor:
        """The model's adversarial loss, a scalar, on fakes [N, ...]."""


class Adversary(Opponent):
    """A discriminator of real samples and fakes, told nothing. Set by `adversary=gan`.

    Args:
        loss: The discriminator's loss; its generator side is the model's.
        weight: See `Opponent`.
    """

    def __init__(self, discriminator: nn.Module, loss: AdversarialLoss, weight: float) -> None:
        super().__init__(discriminator, weight)
        self.loss = loss

    def judge(self, x_real: Tensor, x_fake: Tensor, real: Sequence[Batch], fake: Sequence[Batch]) -> Verdict:
        """See `AdversarialLoss.discriminator`."""
        logits_real, logits_fake = self.discriminator(x_real), self.discriminator(x_fake)
        return Verdict(self.loss.discriminator(logits_real, logits_fake), logits_real, logits_fake)

    def deceived(self, x_fake: Tensor, *told: Batch) -> Tensor:
        """See `AdversarialLoss.generator`."""
        return self.loss.generator(self.discriminator(x_fake))


class ClassAdversary(Opponent):
    """A discriminator with K + 1 classes: those of real samples, and the last one of fakes. Set by `adversary=classes`.

    Odena (2016), arXiv:1606.01583. It minimises -log p_y of real samples, -log(1 - p_fake) of those without a label,
    and -log p_fake of fakes; the model minimises -log p_y of the fakes' own classes.
    """

    classifies = True

    def judge(self, x_real: Tensor, x_fake: Tensor, real: Sequence[Batch], fake: Sequence[Batch]) -> Verdict:
        """See the class."""
        logits_real, logits_fake = self.discriminator(x_real), self.discriminator(x_fake)
        loss = nats_of_class(logits_real, _labels(real)).mean() + nats_of_fake(logits_fake).mean()
        return Verdict(loss, real_logits(logits_real), real_logits(logits_fake))

    def deceived(self, x_fake: Tensor, *told: Batch) -> Tensor:
        """-log p_y of the classes that the fakes were told."""
        return nats_of_class(self.discriminator(x_fake), _labels(told)).mean()


def _labels(told: Sequence[Batch]) -> Tensor:
    """The classes [N] that samples were told.

    Raises:
        UserError: If they were told none.
    """
    if not told or told[0].y is None:
        raise UserError(
            "adversary=classes needs a model that is given the classes y. Try model=cvae, or adversary=gan."
        )
    return labels_of(told[0])


class Opposable(GenerativeModel):
    """A model that may also play against a discriminator of real samples and its imitations.

    The adversarial term is not part of `objective`, nor of the bounds and scores computed from it.
    """

    adversary: Opponent | None

    def oppose(self, adversary: Opponent | None) -> None:
        """Sets the adversary, or None; called last in a constructor."""
        self.adversary = adversary
        if adversary is None or not adversary.classifies:
            self.discern = None  # type: ignore[assignment]
        if adversary is not None:
            self.add_player("discriminator", adversary.discriminator, "adversary.optimizer")

    @inference
    def discern(self, x: Tensor) -> Tensor:
        """Logits [N, K] of the classes of samples [N, ...], by the discriminator."""
        assert self.adversary is not None
        return self.adversary.discriminator(x)[:, :-1]

    @abstractmethod
    def imitate(self, x: Tensor, *told: Batch) -> Tensor:
        """N fakes for the adversary, with their graph, for real samples x [N, ...]."""

    def play_adversary(self, x: Tensor, *told: Batch, fakes: Sequence[Batch] | None = None) -> None:
        """The discriminator's update on samples [N, ...]; without an adversary does nothing.

        Args:
            x: Real samples.
            *told: Their conditions.
            fakes: Those of the fakes; None: the same.
        """
        if self.adversary is None:
            return
        fakes = told if fakes is None else fakes
        with torch.no_grad():
            x_fake = self.imitate(x, *fakes)
        with self.turn("discriminator") as player:
            verdict = self.adversary.judge(x, x_fake, told, fakes)
            player.minimise(verdict.loss)
        self.record(d_loss=verdict.loss)
        self.record_logits(verdict.logits_real, verdict.logits_fake)

    def deception(self, x: Tensor, *told: Batch) -> Tensor | float:
        """The adversarial term of the model's loss, for use inside its turn; 0 without an adversary.

        Args:
            x: Real samples.
            *told: Conditions of the fakes.
        """
        if self.adversary is None:
            return 0.0
        g_loss = self.adversary.deceived(self.imitate(x, *told), *told)
        self.record(g_loss=g_loss)
        return self.adversary.weight * g_loss
