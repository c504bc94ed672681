"""Density ratios read off a classifier's logits, and the divergences that they estimate, in nats.

A classifier that tells draws of p (label 1) from as many draws of q (label 0) by the logistic loss has, at its best,
the logit log p - log q. Means of it estimate divergences. They are no bounds: the classifier is only near its best.
Mohamed & Lakshminarayanan (2016), arXiv:1610.03483; Rosca et al. (2017), arXiv:1706.04987.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genlab.losses.adversarial import NonSaturating


def ratio_loss(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """-E_p log sigmoid(l) - E_q log(1 - sigmoid(l)), a scalar, from logits [N] and [M]; least at log p / q."""
    return F.softplus(-logits_p).mean() + F.softplus(logits_q).mean()


def forward_kl(logits_p: Tensor) -> Tensor:
    """KL(p || q) = E_p log p / q, a scalar, from logits [N] on draws of p."""
    return logits_p.mean()


def synthetic_likelihood(logits_q: Tensor) -> Tensor:
    """R = -log D + log(1 - D), [M]: minus the logit; its mean is KL(q || p). Rosca et al. (2017)."""
    return -logits_q


def reverse_kl(logits_q: Tensor) -> Tensor:
    """KL(q || p) = -E_q log p / q, a scalar, from logits [M] on draws of q."""
    return synthetic_likelihood(logits_q).mean()


class DensityRatio(NonSaturating):
    """The logistic discriminator, and a generator that lowers the KL(q || p) which its logits estimate.

    Sønderby et al. (2017), arXiv:1610.04490. The generator's gradient in a logit is -1, wherever D stands.
    """

    def generator(self, logits_fake: Tensor) -> Tensor:
        """E[-log D + log(1 - D)] = -E logit, on fakes."""
        return reverse_kl(logits_fake)
