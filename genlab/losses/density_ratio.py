"""Density ratios from a classifier's logits, and the divergences that they estimate, in nats.

A classifier is trained with the logistic loss on draws of p (label 1) and as many draws of q (label 0). Its optimal
logit is log p - log q, and means of the logit estimate divergences. The estimates are not bounds: a trained classifier
is only near the optimum.

Mohamed & Lakshminarayanan (2016), arXiv:1610.03483; Rosca et al. (2017), arXiv:1706.04987.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genlab.losses.adversarial import NonSaturating


def ratio_loss(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """-E_p log sigmoid(l) - E_q log(1 - sigmoid(l)), a scalar, from logits l, [N] and [M]; minimal at l = log p / q."""
    return F.softplus(-logits_p).mean() + F.softplus(logits_q).mean()


def forward_kl(logits_p: Tensor) -> Tensor:
    """KL(p || q) = E_p log p / q, a scalar, from logits [N] on draws of p."""
    return logits_p.mean()


def synthetic_likelihood(logits_q: Tensor) -> Tensor:
    """R = -log D + log(1 - D) = -logit, [M]; its mean estimates KL(q || p). Rosca et al. (2017)."""
    return -logits_q


def reverse_kl(logits_q: Tensor) -> Tensor:
    """KL(q || p) = -E_q log p / q, a scalar, from logits [M] on draws of q."""
    return synthetic_likelihood(logits_q).mean()


class DensityRatio(NonSaturating):
    """The logistic discriminator, with a generator that minimises KL(q || p) as estimated by the logits.

    Sønderby et al. (2017), arXiv:1610.04490. The gradient of the generator's loss in a logit is -1 for every D.
    """

    def generator(self, logits_fake: Tensor) -> Tensor:
        """E[-log D + log(1 - D)] = -E logit, on fakes."""
        return reverse_kl(logits_fake)
