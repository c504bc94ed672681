"""Lower bounds of the mutual information between a code c and a sample x, from a prediction Q(c | x). Scalars in nats.

I(c; x) >= H(c) + E log Q(c | x), Barber & Agakov (2003); Chen et al. (2016), arXiv:1606.03657, Eq. 4.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def categorical_information(logits: Tensor, category: Tensor) -> Tensor:
    """The bound for a category that is uniform among K.

    Args:
        logits: Logits of Q, [N, K].
        category: True categories, [N], whole numbers below K.

    Returns:
        log K minus the cross-entropy: at most log K, 0 for a uniform prediction, negative for worse ones.
    """
    return math.log(logits.shape[1]) - F.cross_entropy(logits, category)


def gaussian_information(mu: Tensor, code: Tensor) -> Tensor:
    """The bound for C codes that are uniform on [-1, 1], with a Gaussian Q of variance 1.

    Args:
        mu: Means of Q, [N, C].
        code: True codes, [N, C].

    Returns:
        C log 2 + E log N(code; mu, 1), at most C (log 2 - log(2 pi) / 2) = -0.226 C. Because the variance is fixed, the
        bound is always negative and only its differences are meaningful.
    """
    dims = mu.shape[1]
    log_q = -0.5 * (code - mu).square().sum(dim=1).mean() - 0.5 * dims * math.log(2 * math.pi)
    return dims * math.log(2) + log_q
