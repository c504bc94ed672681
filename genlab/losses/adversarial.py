"""Objectives of two-player games, on logits [N] (never probabilities). Each method returns a scalar to minimise."""

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
        needs_lipschitz: Whether the objective is valid only for a Lipschitz-bounded critic.
    """

    needs_lipschitz: ClassVar[bool] = False

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """The discriminator's loss, a scalar, from logits [N] on real and [M] on fake samples: `real` plus `fake`.

        Methods with several kinds of fakes call the two terms separately.
        """
        return self.real(logits_real) + self.fake(logits_fake)

    @abstractmethod
    def real(self, logits: Tensor) -> Tensor:
        """The term of the discriminator's loss on real samples, a scalar, from logits [N]."""

    @abstractmethod
    def fake(self, logits: Tensor) -> Tensor:
        """The term of the discriminator's loss on fakes, a scalar, from logits [M]."""

    @abstractmethod
    def generator(self, logits_fake: Tensor) -> Tensor:
        """The generator's loss, a scalar, from logits [M] on fake samples."""


class NonSaturating(AdversarialLoss):
    """The GAN whose generator maximises log D(G(z)). Goodfellow et al. (2014), arXiv:1406.2661, section 3.

    The discriminator's labels may be softened. `real_labels=[0.9, 0.9]` is the one-sided smoothing of Salimans et al.
    (2016), arXiv:1606.03498, section 3.4; the optimal D is then 0.9 p / (p + q). A wider range gives uniform random
    labels, and `flip` exchanges some of them with the other side's. The generator's loss always has hard labels.
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
            fake_labels: Smallest and largest label of fakes.
            flip: Share of the labels that are drawn from the other range, in [0, 1].

        Raises:
            UserError: If a range is not [smallest, largest] with a mean in [0, 1], or `flip` is outside [0, 1].
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
        """Labels [n] for one side, drawn from `own` or, with probability `flip`, from `other`; like `like`."""
        labels = like.new_full((n,), own[0])
        if own[0] != own[1]:
            labels = own[0] + (own[1] - own[0]) * self.rand(n).to(like)
        if self.flip:
            drawn = other[0] + (other[1] - other[0]) * self.rand(n).to(like)
            labels = torch.where(self.rand(n).to(like) < self.flip, drawn, labels)
        return labels

    def real(self, logits: Tensor) -> Tensor:
        """-E log D(x) (plus `fake`: log 4 - 2 JSD at the optimum), or the cross-entropy with softened labels."""
        if self.flip == 0 and self.real_labels == (1.0, 1.0):
            return F.softplus(-logits).mean()  # -log sigmoid(l) = softplus(-l)
        labels = self.labels(len(logits), logits, self.real_labels, self.fake_labels)
        return (F.softplus(logits) - labels * logits).mean()

    def fake(self, logits: Tensor) -> Tensor:
        """-E log(1 - D(G(z))), or the cross-entropy with softened labels."""
        if self.flip == 0 and self.fake_labels == (0.0, 0.0):
            return F.softplus(logits).mean()
        labels = self.labels(len(logits), logits, self.fake_labels, self.real_labels)
        return (F.softplus(logits) - labels * logits).mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E log D(G(z)); the gradient in a logit is -(1 - D), which does not vanish if D is sure of a fake."""
        return F.softplus(-logits_fake).mean()


class Minimax(NonSaturating):
    """The zero-sum game, Goodfellow et al. (2014), Eq. 1; included to show how its generator saturates."""

    def generator(self, logits_fake: Tensor) -> Tensor:
        """E log(1 - D(G(z))); the gradient in a logit is -D, which vanishes if D is sure of a fake."""
        return -F.softplus(logits_fake).mean()


class LeastSquares(AdversarialLoss):
    """LSGAN. Mao et al. (2017), arXiv:1611.04076, Eq. 2."""

    def __init__(self, a: float = 0.0, b: float = 1.0, c: float = 1.0) -> None:
        """Sets the targets.

        Args:
            a: D's target for fakes.
            b: D's target for real samples.
            c: G's target for D's output on fakes. (a, b, c) = (-1, 1, 0) minimises a Pearson chi-square.
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

    The critic must be Lipschitz-bounded, as in `model=wgan_gp`. A shift of all logits leaves its loss unchanged.
    """

    needs_lipschitz = True

    def real(self, logits: Tensor) -> Tensor:
        """-E f(x)."""
        return -logits.mean()

    def fake(self, logits: Tensor) -> Tensor:
        """E f(G(z)); with `real`, minus the estimated distance."""
        return logits.mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E f(G(z))."""
        return -logits_fake.mean()
