"""FID, IS, KID, precision and recall, and the rarest class: scores from the features and logits of one network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from genlab.judging.cards import SEEN
from genlab.judging.measure import About, Measure, Settings

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores

CLASS_SHARE_SAMPLES = 2000  # gives the share of the rarest of ten classes to about half a percent


class FID(Measure):
    """Frechet Inception distance, torchmetrics' class; see `genlab.metrics.images`."""

    name, place = "fid", 10
    needs = ("pictures", "samples", "extractor")
    about: Mapping[str, About] = {"fid": About("FID", "lower")}
    monitor = ("fid",)

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"fid"} of the subject's features."""
        from genlab.metrics.images import fid

        return [of_features(subject, self, fid)]


class InceptionScore(Measure):
    """Inception score, torchmetrics' class, beside that of as many real images."""

    name, place = "is", 11
    needs = ("pictures", "samples", "logits")
    about: Mapping[str, About] = {"is": About("Inception score", "higher")}
    monitor = ("is",)

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"is", "is_std"} and, unless brief, {"is_real", "is_real_std"} if there are as many real images."""
        from genlab.metrics.images import inception_score
        from genlab.metrics.scores import Scores

        n = self.number(subject)
        fake, splits = subject.fake_features(n), subject.settings.splits
        found = inception_score(fake, splits, subject.seed)
        if not subject.brief:
            real = subject.real_features(n)
            if real.n >= fake.n:  # the score grows with the number of images
                own = inception_score(real, splits, subject.seed, fake.n)
                found |= Scores({"is_real": own["is"], "is_real_std": own["is_std"]})
            else:
                subject.note(f"No Inception score of real images: there are {real.n} real, {fake.n} generated images.")
        return [found.named(fake.card["extractor"])]

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """That of real images, and a word where it is smaller."""
        told = super().beside(score, scores, card)
        real = scores.get(score.replace("is/", "is_real/", 1))
        seen = real is not None and scores[score] > real and str(card.get("extractor")).startswith("classifier")
        return [*told, SEEN] if seen else told


class KID(Measure):
    """Kernel Inception distance, torchmetrics' class."""

    name, place = "kid", 12
    needs = ("pictures", "samples", "extractor")
    about: Mapping[str, About] = {"kid": About("KID", "lower")}
    monitor = ("kid",)

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"kid", "kid_std"} of the subject's features."""
        from genlab.metrics.images import kid

        return [of_features(subject, self, lambda real, fake: kid(real, fake, seed=subject.seed))]


class PrecisionRecall(Measure):
    """Precision and recall, density and coverage."""

    name, place = "pr", 13
    needs = ("pictures", "samples", "extractor")
    about: Mapping[str, About] = {
        "precision": About("precision", "higher"),
        "recall": About("recall", "higher"),
        "density": About("density", chosen="higher"),
        "coverage": About("coverage", "higher"),
    }
    monitor = ("coverage",)

    def take(self, subject: Subject) -> Iterable[Scores]:
        """See `genlab.metrics.scores.precision_recall`."""
        from genlab.metrics.scores import precision_recall

        return [of_features(subject, self, precision_recall)]


class RarestClass(Measure):
    """The share of the rarest class among 2,000 samples, by a classifier of the data."""

    name, place, part_of = "classes", 14, "is"
    needs = ("pictures", "samples", "classes")
    about: Mapping[str, About] = {"rarest_class": About("share of the rarest class", chosen="higher")}
    cheap = False
    most = CLASS_SHARE_SAMPLES

    def count(self, settings: Settings, available: int, split: str) -> int:
        """2,000, which has nothing to do with the size of the split."""
        return self.most

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"rarest_class"}."""
        from genlab.metrics.scores import Scores, rarest_class

        fake = subject.fake_features(self.most)
        real = subject.real_features(min(Measure.most, subject.available()))
        card = {**fake.card, "n_fake": fake.n, "num_classes": fake.logits.shape[1]}
        return [Scores({"rarest_class": rarest_class(real, fake)}, card).named(fake.card["extractor"])]

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """The number of classes."""
        return [f"of {card['num_classes']}"]


def of_features(subject: Subject, measure: Measure, score: Any) -> Scores:
    """A score of real and generated features, named with the extractor."""
    n = measure.number(subject)
    found: Scores = score(subject.real_features(n), subject.fake_features(n))
    return found.named(found.card["extractor"])
