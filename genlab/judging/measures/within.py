"""FID and diversity within the classes that samples were told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


class Within(Measure):
    """FID of each class, and the distance of two samples of one class beside that of two real images; means.

    A sample is of the class that it was told, whatever it shows: read both beside the agreement of `readback`.
    """

    name, place, section = "within", 17, "within told classes"
    needs = ("pictures", "samples", "extractor")
    about: Mapping[str, About] = {
        "fid_within": About("FID within classes", "lower"),
        "spread_within": About("spread within classes, of the real one", chosen="higher"),
    }
    cheap = False

    def missing(self, subject: Subject) -> str | None:
        """Needs a model that is told classes."""
        if subject.model is None:
            return "There is no model."
        if "y" not in subject.model.given:
            return f"{type(subject.model).__name__} is told no classes."
        return super().missing(subject)

    def take(self, subject: Subject) -> Iterator[Scores]:
        """{"fid_within"} and {"spread_within", "spread_within_least"}; nothing where a class has too few images."""
        from genlab.metrics.images import MIN_IMAGES
        from genlab.metrics.within import class_sizes, fid_within, spread_within
        from genlab.sharing import by_first

        n = self.number(subject)
        real, fake = subject.real_features(n), subject.fake_features(n)
        given = subject.given(n)
        assert given is not None
        of_real = subject.data.rows(subject.split, ["y"], subject.rows(n)).tensor("y")
        of_fake = given.tensor("y").cpu()
        _, fewest = class_sizes(of_real, of_fake)
        if fewest < MIN_IMAGES:
            subject.note(f"No scores within classes: the rarest has {fewest} images, and {MIN_IMAGES} are needed.")
            return
        if fewest < real.num_features:
            subject.note(
                f"FID within classes has a large upward bias: the rarest class has {fewest} images, and there are "
                f"{real.num_features} features. Compare equal numbers of images only."
            )
        yield by_first(lambda: fid_within(real, fake, of_real, of_fake)).named(fake.card["extractor"])
        yield by_first(lambda: spread_within(subject.real(n), subject.fake(n), of_real, of_fake))

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """The number of classes; of the spread the least of a class."""
        least = scores.get(f"{score}_least")
        return [f"of {card['classes']} classes", *([] if least is None else [f"the least {least:.4g}"])]
