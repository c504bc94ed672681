"""The base of all measures, and the list of those in `genlab.judging.measures`. Free of torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


@dataclass(frozen=True)
class About:
    """The facts about a score that no value holds.

    Attributes:
        title: Its name in tables.
        better: "lower" or "higher"; None for scores that are never ranked.
        chosen: The direction of a score that is never ranked where it chooses a checkpoint.
    """

    title: str
    better: str | None = None
    chosen: str | None = None


@dataclass(frozen=True)
class Settings:
    """The settings of measures that are the same while training and afterwards.

    Attributes:
        num_samples: Most samples of a measure, generated and real ones each; None: the measure's own number.
        seed: Seed of latents and subsets.
        splits: Parts of the Inception score.
        batch_size: Samples at a time where a model reads samples. Another one draws other latents, as another seed.
        iwae_samples: Draws of the importance-weighted bound.
        likelihood_images: Most samples of the bound; None: `num_samples`.
        ais_steps: Temperatures of annealed importance sampling; 0 for none.
        ais_samples: Its chains for each sample.
        validation_samples: Stacks that are drawn for scores on validation data.
    """

    num_samples: int | None = None
    seed: int = 2020
    splits: int = 10
    batch_size: int = 100
    iwae_samples: int = 500
    likelihood_images: int | None = None
    ais_steps: int = 0
    ais_samples: int = 16
    validation_samples: int = 2000

    def __post_init__(self) -> None:
        least = {"num_samples": 20, "validation_samples": 20, "ais_steps": 0, "seed": 0}
        for each in fields(self):
            value, low = getattr(self, each.name), least.get(each.name, 1)
            empty = value is None and each.default is None
            if not empty and (type(value) is not int or value < low):
                raise UserError(f"metrics.{each.name} must be a whole number from {low} on, got {value!r}.")


class Measure:
    """One family of scores. A subclass in a file of `genlab.judging.measures` takes part in all commands.

    A measure of one's own is named by a run: `metrics.more.NAME={_target_: mypackage.MyMeasure}`.

    Attributes:
        name: What one types in `scores=`.
        place: Position in tables; among equal places by name.
        section: Heading in tables; "" for one that names the extractor.
        needs: What a subject must have; see `Subject.lacks`.
        about: The facts about each score. The key of `fid/inception` is "fid", that of `iwae_500` "iwae"; scores
            without an entry, such as spreads and references, have no row in tables.
        part_of: The measure with which it is chosen, too.
        monitor: Scores that may choose the best checkpoint; the first that a model has does.
        cheap: Whether it is also taken on validation data while training.
        most: Samples at most, unless the settings say another number.
        settings: Its own settings; None for those of the subject.
    """

    name: str = ""
    place: int = 100
    part_of: str = ""
    section: str = ""
    needs: tuple[str, ...] = ()
    about: Mapping[str, About] = {}
    monitor: tuple[str, ...] = ()
    cheap: bool = True
    most: int = 10_000
    settings: Settings | None = None

    def missing(self, subject: Subject) -> str | None:
        """The reason why the measure does not apply to a subject, as a sentence; None if it does."""
        return next((why for need in self.needs if (why := subject.lacks(need))), None)

    def prepare(self, subject: Subject) -> None:
        """Trains or loads what the measure needs, before training starts. Nothing is drawn from the subject.

        Raises:
            UserError: If it cannot be taken on these data.
        """

    def take(self, subject: Subject) -> Iterable[Scores]:
        """The scores, with their cards: one `Scores` for each card. All processes of a group call this."""
        raise NotImplementedError

    def count(self, settings: Settings, available: int, split: str) -> int:
        """The number of samples of a split with so many of them."""
        return min(settings.num_samples or self.most, available)

    def number(self, subject: Subject) -> int:
        """The number of samples that the scores of a subject are of."""
        return self.count(subject.settings, subject.available(), subject.split)

    def heading(self, score: str) -> str:
        """The heading of a score in tables."""
        return self.section or f"extractor {score.partition('/')[2]}"

    def title(self, score: str) -> str:
        """The display name of a score, with its extractor."""
        family, _, extractor = score.partition("/")
        title = self.about[self.kind(score)].title
        return f"{title} ({extractor})" if extractor else title

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """The reference values of a score as texts: "real 9.8"."""
        reference = paired(score, scores, "real")
        return [] if reference is None else [f"real {reference:.4g}"]

    def kind(self, score: str) -> str:
        """The key of a score in `about`: "fid" of `fid/classifier-digits`, "iwae" of `iwae_500`."""
        name = score.partition("/")[0]
        start, _, number = name.rpartition("_")
        return start if number.isdigit() and start in self.about else name

    def direction(self, score: str) -> str | None:
        """The better direction of a score where it chooses a checkpoint; None for those of other measures."""
        known = self.about.get(self.kind(score))
        return known.better or known.chosen if known else None


def paired(score: str, scores: Mapping[str, float], suffix: str) -> float | None:
    """The value that accompanies a score: `is_real/inception` beside `is/inception`; None if there is none."""
    family, slash, extractor = score.partition("/")
    return scores.get(f"{family}_{suffix}{slash}{extractor}")


def known() -> dict[str, type[Measure]]:
    """All measures of `genlab.judging.measures` by name, in the order of tables."""
    from genlab.judging import measures

    for module in pkgutil.iter_modules(measures.__path__):
        importlib.import_module(f"{measures.__name__}.{module.name}")
    found = [each for each in _below(Measure) if each.name and each.__module__.startswith(f"{measures.__name__}.")]
    return {each.name: each for each in sorted(found, key=lambda each: (each.place, each.name))}


def _below(base: type[Measure]) -> list[type[Measure]]:
    return [each for sub in base.__subclasses__() for each in (sub, *_below(sub))]


def chosen(names: Sequence[str] | None, key: str = "metrics.scores") -> list[Measure]:
    """The measures of these names, in the order of tables; all of them for None.

    Raises:
        UserError: If there is no such measure.
    """
    every = known()
    unknown = sorted({str(name) for name in names or ()} - set(every))
    if unknown:
        raise UserError(f"There is no score {unknown[0]!r}; {key} takes {', '.join(every)}.")
    return [make() for name, make in every.items() if names is None or {name, make.part_of} & set(names)]
