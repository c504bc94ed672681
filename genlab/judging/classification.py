"""The judge of models that classify or cluster."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from genlab.judging.judge import Data, Judge
from genlab.metrics.classification import cluster_error, cluster_names, error_rate, logits_and_labels
from genlab.metrics.scores import Scores


def classification_scores(model: Any, data: Data, split: str, num_samples: int, batch_size: int = 256) -> Scores:
    """`classifier_error` of classes, or `classifier_error/clusters` of clusters labelled on validation data.

    Args:
        model: Model with `classify` or `cluster`; any other model gets no score.
        data: Labelled data; without labels there is no score.
        split: "val" or "test".
        num_samples: Maximum number of samples.
        batch_size: Samples per batch.
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
    """The error of models that classify or cluster; other models get no score."""

    monitor = "classifier_error"

    def __init__(
        self, every_n_steps: int = 500, num_samples: int = 10_000, batch_size: int = 256, seed: int = 2020
    ) -> None:
        """Sets the protocol.

        Args:
            every_n_steps: Iterations between scores on validation data.
            num_samples: Maximum number of real samples.
            batch_size: Samples per batch.
            seed: Recorded in the card; nothing is drawn.
        """
        super().__init__(every_n_steps, num_samples, seed)
        self.batch_size = batch_size

    def _timed(self, model: Any, data: Data, split: str) -> dict[str, float]:
        """As in the base class, but also for models without `sample`."""
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
