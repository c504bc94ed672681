"""The error of models that classify or cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from torch import Tensor

    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


class Classification(Measure):
    """The error rate of the model's own classes; of clusters with the class of their surest validation sample."""

    name, place, section = "classification", 70, "classification"
    needs = ("labels",)
    about: Mapping[str, About] = {"classifier_error": About("classification error", "lower")}
    monitor = ("classifier_error",)

    def missing(self, subject: Subject) -> str | None:
        """Needs labels, and a model that classifies or clusters."""
        able = not subject.lacks("classify") or not subject.lacks("cluster")
        return super().missing(subject) if able else subject.lacks("classify")

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"classifier_error"}, or {"classifier_error/clusters"}."""
        from genlab.metrics.classification import cluster_error, cluster_names, error_rate, logits_and_labels

        n, model = self.number(subject), subject.model
        size = subject.settings.batch_size

        def of(what: str, split: str) -> tuple[Tensor, Tensor] | None:
            return logits_and_labels(model, what, subject.data.batches(split, batch_size=size, limit=n))

        if not subject.lacks("classify"):
            found = of("classify", subject.split)
            return [] if found is None else [error_rate(*found)]
        seen, found = of("cluster", "val"), of("cluster", subject.split)
        return [] if seen is None or found is None else [cluster_error(*found, cluster_names(*seen))]
