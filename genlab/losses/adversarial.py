"""Objectives of two-player games. They take logits [N] (never probabilities), and each returns a scalar to minimise."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn


class AdversarialLoss(nn.Module):
    """What the discriminator and the generator of a GAN minimise. `loss=...` chooses one of its subclasses."""

    @abstractmethod
    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """The discriminator's loss, a scalar, from logits [N] on real and [M] on fake samples."""

    @abstractmethod
    def generator(self, logits_fake: Tensor) -> Tensor:
        """The generator's loss, a scalar, from logits [M] on fake samples."""


class NonSaturating(AdversarialLoss):
    """The GAN with the generator that maximises log D(G(z)). Goodfellow et al. (2014), arXiv:1406.2661, section 3."""

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z))): log 4 - 2 JSD at the optimum."""
        return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()  # -log sigmoid(l) = softplus(-l)

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

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """E (D(x) - b)^2 / 2 + E (D(G(z)) - a)^2 / 2."""
        return 0.5 * (logits_real - self.b).square().mean() + 0.5 * (logits_fake - self.a).square().mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """E (D(G(z)) - c)^2 / 2."""
        return 0.5 * (logits_fake - self.c).square().mean()


class Hinge(AdversarialLoss):
    """The margin loss of Lim & Ye (2017), arXiv:1705.02894, and Miyato et al. (2018), arXiv:1802.05957, Eq. 16-17."""

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))."""
        return F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E D(G(z))."""
        return -logits_fake.mean()


class Wasserstein(AdversarialLoss):
    """The dual of the Wasserstein-1 distance. Arjovsky et al. (2017), arXiv:1701.07875, Eq. 2.

    It needs a critic that is kept Lipschitz: `model=wgan_gp`. A shift of all logits leaves it unchanged.
    """

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """E f(G(z)) - E f(x): minus the estimated distance."""
        return logits_fake.mean() - logits_real.mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E f(G(z))."""
        return -logits_fake.mean()
