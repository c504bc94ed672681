"""Correlations of single latents with the data's known factors of variation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


class Factors(Measure):
    """How well single latents represent the known factors; see `genlab.metrics.factors`."""

    name, place, section = "factors", 60, "factors"
    needs = ("encode", "factor")
    about: Mapping[str, About] = {
        "factor_corr": About("|corr| of factors and their best latents", "higher"),
        "factor_gap": About("its lead over other factors", "higher"),
        "factor_r2": About("R² of factors on all latents", "higher"),
        "factor_unit": About("|corr| of factors and their own latents", "higher"),
        "factor_leak": About("largest |corr| of these with other factors", "lower"),
    }

    def take(self, subject: Subject) -> Iterable[Scores]:
        """See `factor_scores`."""
        from genlab.metrics.factors import coded, factor_scores

        n = self.number(subject)
        codes, factor = coded(subject.model, subject.batches(n, ("factor",)))
        names = subject.data.spec.factor_names or ()
        return [factor_scores(codes, factor, names, getattr(subject.model, "factor_units", None))]

    def direction(self, score: str) -> str | None:
        """That of the mean for single factors, `factor_corr_NAME`."""
        return super().direction("factor_corr" if score.startswith("factor_corr_") else score)

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """Of the first, each factor's own value."""
        if score != "factor_corr":
            return []
        return [f"{name} {scores[f'factor_corr_{name}']:.2f}" for name in card["factors"]]
