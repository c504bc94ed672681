"""Error rates of models that classify, and of models that cluster, with a class assigned to each cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genlab.metrics.scores import Scores
from genlab.sharing import shared


def error_rate(logits: Tensor, y: Tensor) -> Scores:
    """The share of samples whose largest logit is not that of their label.

    Args:
        logits: [N, K].
        y: Labels [N]; -1 (no label) is left out.

    Returns:
        {"classifier_error"}, in [0, 1]; the card holds the number of samples.

    Raises:
        ValueError: If no sample has a label.
    """
    known = y >= 0
    if not known.any():
        raise ValueError("An error rate needs labels.")
    wrong = logits[known].argmax(dim=1) != y[known]
    return Scores({"classifier_error": wrong.double().mean().item()}, {"n_real": int(known.sum())})


def cluster_names(logits: Tensor, y: Tensor) -> Tensor:
    """The class [K] of each cluster: the label of the sample with the highest probability of the cluster.

    Makhzani et al. (2016), arXiv:1511.05644, section 6.

    Args:
        logits: Cluster logits [N, K] of samples whose labels may be used.
        y: Their labels [N]; -1 (no label) is left out.
    """
    known = y >= 0
    return y[known][logits[known].log_softmax(dim=1).argmax(dim=0)]


def cluster_error(logits: Tensor, y: Tensor, names: Tensor) -> Scores:
    """The share of samples whose cluster's class (`names`, [K]) is not their label; {"classifier_error/clusters"}."""
    known = y >= 0
    wrong = names[logits[known].argmax(dim=1)] != y[known]
    error = Scores({"classifier_error": wrong.double().mean().item()}).named("clusters")
    return error | Scores(card={"n_real": int(known.sum()), "clusters": len(names)})


def logits_and_labels(model: Any, what: str, batches: Iterable[Any]) -> tuple[Tensor, Tensor] | None:
    """Logits [N, K] from the method `what` ("classify" or "cluster"), and labels [N]; None without labels."""
    parts = list(shared(list(batches), lambda b: (getattr(model, what)(b.x.to(model.device)).cpu(), b.y)))
    labels = [y.cpu() for _, y in parts if y is not None]
    if not labels or not any(bool((y >= 0).any()) for y in labels):
        return None
    return torch.cat([logits for logits, _ in parts]), torch.cat(labels)
