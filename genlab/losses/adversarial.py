"""Objectives of two-player games. They take logits [N] (never probabilities), and each returns a scalar to minimise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.randomness import Drawing


class AdversarialLoss(Drawing):
    """The losses of a GAN's discriminator and generator. `loss=...` chooses one of the subclasses.

    Attributes:
        needs_lipschitz: Whether it means something only for a critic whose slope is bounded.
    """

    needs_lipschitz: ClassVar[bool] = False

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """The discriminator's loss, a scalar, from logits [N] on real and [M] on fake samples: the sum of both parts.

        The parts have names of their own for games with more than one kind of fakes.
        """
        return self.real(logits_real) + self.fake(logits_fake)

    @abstractmethod
    def real(self, logits: Tensor) -> Tensor:
        """The real samples' term of the discriminator's loss, a scalar, from logits [N]."""

    @abstractmethod
    def fake(self, logits: Tensor) -> Tensor:
        """The fakes' term of it, a scalar, from logits [M]."""

    @abstractmethod
    def generator(self, logits_fake: Tensor) -> Tensor:
        """The generator's loss, a scalar, from logits [M] on fake samples."""


class NonSaturating(AdversarialLoss):
    """The GAN with the generator that maximises log D(G(z)). Goodfellow et al. (2014), arXiv:1406.2661, section 3.

    The discriminator's labels may be softened: one-sided smoothing is `real_labels=[0.9, 0.9]`, of Salimans et al.
    (2016), arXiv:1606.03498, section 3.4 (then D is 0.9 p / (p + q) at its best); soft and noisy ones are uniform in a
    range, and now and then the other side's. The generator's side is never softened.
    """

    def __init__(
        self,
        real_labels: Sequence[float] = (1.0, 1.0),
        fake_labels: Sequence[float] = (0.0, 0.0),
        flip: float = 0.0,
    ) -> None:
        """Sets the discriminator's labels.

        Args:
            real_labels: Smallest and largest label of real samples.
            fake_labels: Of fakes.
            flip: Share of the labels that are drawn from the other side's range.

        Raises:
            UserError: If a range is none, its mean is not in [0, 1], or flip is not.
        """
        super().__init__()
        for name, ends in (("real_labels", real_labels), ("fake_labels", fake_labels)):
            if len(ends) != 2 or not ends[0] <= ends[1] or not 0 <= sum(ends) / 2 <= 1:
                raise UserError(
                    f"loss.{name} must be [smallest, largest] with a mean in [0, 1], got {list(ends)}. "
                    f"Try loss.{name}={'[0.9,0.9]' if name == 'real_labels' else '[0.0,0.3]'}."
                )
        if not 0 <= flip <= 1:
            raise UserError(f"loss.flip must be in [0, 1], got {flip}. Try loss.flip=0.05.")
        self.real_labels, self.fake_labels, self.flip = tuple(real_labels), tuple(fake_labels), flip

    def labels(self, n: int, like: Tensor, own: Sequence[float], other: Sequence[float]) -> Tensor:
        """Labels [n] of one side, of the type and at the place of `like`."""
        labels = like.new_full((n,), own[0])
        if own[0] != own[1]:
            labels = own[0] + (own[1] - own[0]) * self.rand(n).to(like)
        if self.flip:
            drawn = other[0] + (other[1] - other[0]) * self.rand(n).to(like)
            labels = torch.where(self.rand(n).to(like) < self.flip, drawn, labels)
        return labels

    def real(self, logits: Tensor) -> Tensor:
        """-E log D(x), and with fakes log 4 - 2 JSD at the optimum; a cross-entropy with softened labels."""
        if self.flip == 0 and self.real_labels == (1.0, 1.0):
            return F.softplus(-logits).mean()  # -log sigmoid(l) = softplus(-l)
        labels = self.labels(len(logits), logits, self.real_labels, self.fake_labels)
        return (F.softplus(logits) - labels * logits).mean()

    def fake(self, logits: Tensor) -> Tensor:
        """-E log(1 - D(G(z))); a cross-entropy with softened labels."""
        if self.flip == 0 and self.fake_labels == (0.0, 0.0):
            return F.softplus(logits).mean()
        labels = self.labels(len(logits), logits, self.fake_labels, self.real_labels)
        return (F.softplus(logits) - labels * logits).mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E log D(G(z)); its gradient in a logit is -(1 - D), alive where D is sure of a fake."""
        return F.softplus(-logits_fake).mean()


class Minimax(NonSaturating):
    """The zero-sum game itself, Goodfellow et al. (2014), Eq. 1; kept to show how its generator saturates."""

    def generator(self, logits_fake: Tensor) -> Tensor:
        """E log(1 - D(G(z))); its gradient in a logit is -D, which vanishes where D is sure of a fake."""
        return -F.softplus(logits_fake).mean()


class LeastSquares(AdversarialLoss):
    """LSGAN. Mao et al. (2017), arXiv:1611.04076, Eq. 2."""

    def __init__(self, a: float = 0.0, b: float = 1.0, c: float = 1.0) -> None:
        """Sets the targets.

        Args:
            a: What D should say of fakes.
            b: What D should say of real samples.
            c: What G wants D to say of fakes. (a, b, c) = (-1, 1, 0) minimises a Pearson chi-square.
        """
        super().__init__()
        self.a, self.b, self.c = a, b, c

    def real(self, logits: Tensor) -> Tensor:
        """E (D(x) - b)^2 / 2."""
        return 0.5 * (logits - self.b).square().mean()

    def fake(self, logits: Tensor) -> Tensor:
        """E (D(G(z)) - a)^2 / 2."""
        return 0.5 * (logits - self.a).square().mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """E (D(G(z)) - c)^2 / 2."""
        return 0.5 * (logits_fake - self.c).square().mean()


class Hinge(AdversarialLoss):
    """The margin loss of Lim & Ye (2017), arXiv:1705.02894, and Miyato et al. (2018), arXiv:1802.05957, Eq. 16-17."""

    def real(self, logits: Tensor) -> Tensor:
        """E max(0, 1 - D(x))."""
        return F.relu(1 - logits).mean()

    def fake(self, logits: Tensor) -> Tensor:
        """E max(0, 1 + D(G(z)))."""
        return F.relu(1 + logits).mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E D(G(z))."""
        return -logits_fake.mean()


class Wasserstein(AdversarialLoss):
    """The dual of the Wasserstein-1 distance. Arjovsky et al. (2017), arXiv:1701.07875, Eq. 2.

    It needs a critic that is kept Lipschitz: `model=wgan_gp`. A shift of all logits leaves it unchanged.
    """

    needs_lipschitz = True

    def real(self, logits: Tensor) -> Tensor:
        """-E f(x)."""
        return -logits.mean()

    def fake(self, logits: Tensor) -> Tensor:
        """E f(G(z)); with the other part, minus the estimated distance."""
        return logits.mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E f(G(z))."""
        return -logits_fake.mean()
