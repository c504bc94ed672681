"""Outputs of a model that is told pictures, beside the samples that these pictures belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


class Pairs(Measure):
    """L1, PSNR, SSIM and lost features of completions, translations and enlargements.

    One sample is drawn for each row of the split. Where pixels are given, L1 and PSNR are of the hidden ones.
    """

    name, place, section = "pairs", 52, "outputs and targets"
    needs = ("pictures", "pairs")
    about: Mapping[str, About] = {
        "pair_l1": About("L1 to the target", "lower"),
        "pair_psnr": About("PSNR to the target, dB", "higher"),
        "pair_ssim": About("SSIM with the target", "higher"),
        "pair_features": About("share of features lost", "lower"),
    }
    monitor = ("pair_l1",)

    def missing(self, subject: Subject) -> str | None:
        """Needs a model that is told pictures; for others there is `reconstruction`."""
        told = subject.told_pictures
        return super().missing(subject) if told else f"{type(subject.model).__name__} is told no pictures."

    def take(self, subject: Subject) -> Iterator[Scores]:
        """See `genlab.metrics.reconstruction.pair_scores`."""
        from genlab.metrics.features import features_of
        from genlab.metrics.reconstruction import feature_error, pair_scores
        from genlab.metrics.scores import Scores

        n = self.number(subject)
        found = pair_scores(subject.pairs(n))
        found.card |= {"given": subject.drawn["given"]}
        yield found
        if subject.brief or subject.lacks("extractor"):
            return
        extractor, render = subject.extractor, subject.data.spec.render
        assert extractor is not None
        made = features_of(extractor, (render(x) for x, *_ in subject.pairs(n)))
        lost = Scores({"pair_features": feature_error(subject.real_features(n), made)}, {**made.card, "n_real": made.n})
        yield lost.named(extractor.name)
