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
    """The error rate of the model's own classes, and of its discriminator's.

    Of a model that clusters, each cluster has the class of its surest validation sample.
    """

    name, place, section = "classification", 70, "classification"
    needs = ("labels",)
    about: Mapping[str, About] = {"classifier_error": About("classification error", "lower")}
    monitor = ("classifier_error",)

    def missing(self, subject: Subject) -> str | None:
        """Needs labels, and a model that classifies, or whose discriminator does, or that clusters."""
        able = any(not subject.lacks(way) for way in ("classify", "discern", "cluster"))
        return super().missing(subject) if able else subject.lacks("classify")

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"classifier_error"}, {"classifier_error/discriminator"}; without both {"classifier_error/clusters"}."""
        from genlab.metrics.classification import cluster_error, cluster_names, error_rate, logits_and_labels

        n, model = self.number(subject), subject.model
        size = subject.settings.batch_size

        def of(what: str, split: str) -> tuple[Tensor, Tensor] | None:
            return logits_and_labels(model, what, subject.data.batches(split, batch_size=size, limit=n))

        able = [way for way in ("classify", "discern") if not subject.lacks(way)]
        if able:
            pairs = {way: of(way, subject.split) for way in able}
            errors = {way: error_rate(*found) for way, found in pairs.items() if found is not None}
            return [error.named("discriminator") if way == "discern" else error for way, error in errors.items()]
        seen, found = of("cluster", "val"), of("cluster", subject.split)
        return [] if seen is None or found is None else [cluster_error(*found, cluster_names(*seen))]
