"""How often a model that classifies is wrong, and one that clusters once its clusters have names."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genlab.metrics.judge import Data, Judge
from genlab.metrics.scores import Scores
from genlab.metrics.sharing import shared


def error_rate(logits: Tensor, y: Tensor) -> Scores:
    """The share of samples whose greatest logit is not that of their label.

    Args:
        logits: [N, K].
        y: Labels [N]; those of -1 are left out.

    Returns:
        {"classifier_error"}, in [0, 1], with the number of samples on its card.

    Raises:
        ValueError: If no sample has a label.
    """
    known = y >= 0
    if not known.any():
        raise ValueError("An error rate needs labels.")
    wrong = logits[known].argmax(dim=1) != y[known]
    return Scores({"classifier_error": wrong.double().mean().item()}, {"n_real": int(known.sum())})


def cluster_names(logits: Tensor, y: Tensor) -> Tensor:
    """The class [K] of each cluster: the label of the sample that is surest to be in it.

    Makhzani et al. (2016), arXiv:1511.05644, section 6.

    Args:
        logits: Of clusters, [N, K], on samples that may be looked at.
        y: Their labels [N]; those of -1 are left out.
    """
    known = y >= 0
    return y[known][logits[known].log_softmax(dim=1).argmax(dim=0)]


def cluster_error(logits: Tensor, y: Tensor, names: Tensor) -> Scores:
    """The share of samples whose cluster's class [K] is not their label; {"classifier_error/clusters"}."""
    known = y >= 0
    wrong = names[logits[known].argmax(dim=1)] != y[known]
    error = Scores({"classifier_error": wrong.double().mean().item()}).named("clusters")
    return error | Scores(card={"n_real": int(known.sum()), "clusters": len(names)})


def logits_and_labels(model: Any, what: str, batches: Iterable[Any]) -> tuple[Tensor, Tensor] | None:
    """Logits [N, K] that `what`, "classify" or "cluster", gives on batches, and their labels; None without labels."""
    parts = list(shared(list(batches), lambda b: (getattr(model, what)(b.x.to(model.device)).cpu(), b.y)))
    labels = [y.cpu() for _, y in parts if y is not None]
    if not labels or not any(bool((y >= 0).any()) for y in labels):
        return None
    return torch.cat([logits for logits, _ in parts]), torch.cat(labels)


def classification_scores(model: Any, data: Data, split: str, num_samples: int, batch_size: int = 256) -> Scores:
    """`classifier_error`, or `classifier_error/clusters` of clusters that are named by validation data.

    Args:
        model: Offers `classify` or `cluster`, or nothing, and then there is no score.
        data: With labels; without, there is no score.
        split: "val" or "test".
        num_samples: At most.
        batch_size: Samples at a time.
    """

    def of(what: str, which: str) -> tuple[Tensor, Tensor] | None:
        return logits_and_labels(model, what, data.batches(which, batch_size=batch_size, limit=num_samples))

    if callable(getattr(model, "classify", None)):
        found = of("classify", split)
        return Scores() if found is None else error_rate(*found)
    if callable(getattr(model, "cluster", None)):
        seen, found = of("cluster", "val"), of("cluster", split)
        return Scores() if seen is None or found is None else cluster_error(*found, cluster_names(*seen))
    return Scores()


class ClassificationJudge(Judge):
    """The error of models that classify, or cluster; all others go without a score."""

    monitor = "classifier_error"

    def __init__(
        self, every_n_steps: int = 500, num_samples: int = 10_000, batch_size: int = 256, seed: int = 2020
    ) -> None:
        """Sets the protocol.

        Args:
            every_n_steps: Iterations between scores on validation data.
            num_samples: Real samples, at most.
            batch_size: Samples at a time.
            seed: For the card; nothing is drawn.
        """
        super().__init__(every_n_steps, num_samples, seed)
        self.batch_size = batch_size

    def _timed(self, model: Any, data: Data, split: str) -> dict[str, float]:
        """As in the base, of models that draw no samples too."""
        started = time.monotonic()
        scores = self.score(model, data, split)
        self.seconds += time.monotonic() - started
        return {f"{split}/{name}": value for name, value in scores.items()}

    def score(self, model: Any, data: Data, split: str) -> dict[str, float]:
        """See `classification_scores`."""
        scores = classification_scores(model, data, split, self.num_samples, self.batch_size)
        if split == "test" and scores:
            self.cards["classification"] = {**self.common(model, data, split), **scores.card}
        return scores

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """The error with the number of samples."""
        card = self.cards.get("classification", {})
        return [
            (name.partition("/")[2], f"{value:.2%}  ({card.get('n_real', '?')} test samples)")
            for name, value in scores.items()
        ]
