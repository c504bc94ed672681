"""Contrastive objectives: identify one instance among others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.losses.numerics import exact


@exact
def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE: the cross-entropy of finding each query's own key among K others. He et al. (2020), arXiv:1911.05722.

    Eq. 1: -log exp(q k+ / tau) / (exp(q k+ / tau) + sum_i exp(q k_i / tau)). All vectors must have length 1.

    Args:
        query: [N, D].
        positive: The key of each query, [N, D].
        negatives: Keys of other instances, [K, D].
        temperature: tau.

    Returns:
        The mean over the queries, a scalar in nats, log(K + 1) if all keys are equal; and the share of queries whose
        own key is nearest.
    """
    own = (query * positive).sum(dim=1, keepdim=True)
    logits = torch.cat([own, query @ negatives.T], dim=1) / temperature
    target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return F.cross_entropy(logits, target), (logits.argmax(dim=1) == 0).float().mean()
