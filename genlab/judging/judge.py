"""The program that takes scores, while training and afterwards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from genlab.errors import NotNumbers, UserError
from genlab.extractors.choice import check_extractor, network_for
from genlab.judging.measure import Measure, Settings, chosen
from genlab.judging.more import from_config
from genlab.judging.records import Findings, rows
from genlab.judging.subject import FEWEST, Subject, extractor_notes
from genlab.metrics.features import Extractor, full_float32
from genlab.sharing import is_first

log = logging.getLogger("genlab")


def take(subject: Subject, measures: Iterable[Measure]) -> Findings:
    """The scores of a subject by all measures that apply to it; of those of one name the last. All processes call this.

    Raises:
        NotNumbers: If samples are NaN or infinite.
    """
    found, settings = Findings(), subject.settings
    with full_float32(subject.device):
        for measure in measures:
            subject.settings = measure.settings or settings
            if subject.brief and not measure.cheap or measure.missing(subject):
                continue
            started = time.monotonic()
            common = {**subject.common, **(subject.drawn if "samples" in measure.needs else {})}
            for scores in measure.take(subject):
                found.add(measure, scores, common)
            found.seconds[measure.name] = round(time.monotonic() - started, 2)
    if any("extractor" in card for card in found.cards.values()):
        subject.notes[:0] = extractor_notes(subject.extractor, subject.split == "train")
    found.notes = list(dict.fromkeys(subject.notes))
    return found


class Judge:
    """Scores a model while training. `validate` is cheap and frequent; `final` gives the reported scores.

    Every process of a group must call them: they share the work, and each gets the scores of a single process.

    Attributes:
        measures: The measures, in the order of tables.
        monitor: Scores that choose the best checkpoint unless `checkpoint.monitor` names another; the first that there
            is.
        every_n_steps: Iterations between two validations.
        found: The reported scores, with their cards.
    """

    def __init__(
        self,
        scores: Sequence[str],
        every_n_steps: int = 500,
        num_samples: int | None = None,
        seed: int = 2020,
        extractor: str = "classifier",
        inception_weights: str | None = None,
        precision: str = "float32",
        splits: int = 10,
        batch_size: int = 100,
        iwae_samples: int = 500,
        ais_steps: int = 0,
        ais_samples: int = 16,
        validation_samples: int = 2000,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Chooses the measures and their settings.

        Args:
            scores: Names of measures in `genlab.judging.measures`.
            every_n_steps: Iterations between scores on validation data.
            num_samples: Most generated and real samples, never more than the split holds; None: each measure's number.
                For the other numbers see `Settings`.
            extractor: "classifier", trained on the data set itself; "inception", the network of the published FID;
                "random", an untrained network, which also replaces "classifier" if there are no labels; or a file of
                `genlab-classifier`.
            inception_weights: File with Inception's weights, for "inception".
            precision: Precision of Inception: "float32", or "bfloat16" for monitoring (faster, gives another FID).
            more: Further measures and torchmetrics' metrics by name; see `genlab.judging.more`.

        Raises:
            UserError: If a score is unknown or a value is not allowed.
        """
        if type(every_n_steps) is not int or every_n_steps < 1:
            raise UserError(f"metrics.every_n_steps must be a whole number from 1 on, got {every_n_steps!r}.")
        self.every_n_steps = every_n_steps
        self.settings = Settings(
            num_samples=num_samples,
            seed=seed,
            splits=splits,
            batch_size=batch_size,
            iwae_samples=iwae_samples,
            ais_steps=ais_steps,
            ais_samples=ais_samples,
            validation_samples=validation_samples,
        )
        self.measures = [*chosen(scores), *from_config(more or {})]
        if not self.measures:
            raise UserError("metrics.scores and metrics.more are empty. For no scores: metrics=none.")
        self.extractor_options = (extractor, inception_weights, precision)
        check_extractor(extractor, precision)
        self.monitor = tuple(name for measure in self.measures for name in measure.monitor)
        self.found = Findings()
        self._extractor: Extractor | None = None
        self._prepared = False
        self._told: set[str] = set()

    def mode(self, score: str) -> str:
        """The better direction of a score, "min" or "max"."""
        directions = (measure.direction(score) for measure in self.measures)
        return "max" if next(filter(None, directions), "lower") == "higher" else "min"

    def prepare(self, model: Any, data: Any, device: torch.device) -> None:
        """Prepares the scoring before training: a classifier, Inception's weights.

        The first process calls it before the others start; these call it at their first scores and use the cache.

        Raises:
            UserError: If a measure cannot be taken on these data.
        """
        self._prepared = True
        subject = self._subject(model, data, "val", brief=False)
        subject.device = device
        if data.spec.images and any({"extractor", "logits", "classes"} & set(m.needs) for m in self.measures):
            extractor, weights, precision = self.extractor_options
            self._extractor = network_for(extractor, data, device, weights, precision)
        for measure in self.measures:
            measure.prepare(subject)
        reasons = [why for measure in self.measures if (why := measure.missing(subject))]
        if len(reasons) == len(self.measures) and is_first():
            log.warning("No scores are taken: %s", reasons[0])

    def validate(self, model: Any, data: Any) -> dict[str, float]:
        """Scores on validation data, named `val/...`."""
        return self._named(model, data, "val", self.measures, brief=True)[0]

    def final(self, model: Any, data: Any) -> dict[str, float]:
        """Scores on test data, named `test/...`; fills `found`."""
        scores, self.found = self._named(model, data, "test", self.measures)
        return scores

    def rescore(self, model: Any, data: Any, score: str) -> dict[str, float]:
        """The measures of one score for other weights on test data, to compare with `final`; `found` stays."""
        return self._named(model, data, "test", self._measures_of(score), brief=True)[0]

    def count(self, data: Any, split: str, score: str) -> int:
        """Number of samples that a score on a split is of."""
        return self._measures_of(score)[0].count(self.settings, len(data.split(split)), split)

    def _measures_of(self, score: str) -> list[Measure]:
        """The measure that gave a score at the end, if it is one for validation data; else all."""
        taken = self.found.taken.get(score)
        return [measure for measure in self.measures if measure.cheap and measure.name == taken] or self.measures

    def record(self) -> dict[str, Any]:
        """The part of `run.json` that says what `final` found, beside the scores."""
        found = self.found
        return {"cards": found.cards, "group": found.group, "about": found.about, "notes": found.notes}

    def lines(self) -> list[tuple[str, str]]:
        """Rows of the closing table: the name of a score, and its value with its conditions."""
        found, shown = self.found, []
        for name, value, beside, samples in rows(self.found.record()):
            shown.append((name, f"{value}  ({', '.join(filter(None, [beside, samples]))})"))
        judges = {card["extractor"]: card.get("test_accuracy") for card in found.cards.values() if "extractor" in card}
        for judge, accuracy in judges.items():
            shown += [] if accuracy is None else [("judge", f"{judge}, right on {accuracy:.1%} of the test images")]
        averaged = {card["ema"] for card in found.cards.values() if "n_fake" in card}
        shown += [("weights", "averaged" if each else "live") for each in averaged]
        return [*shown, *(("note", note) for note in found.notes)]

    def _subject(self, model: Any, data: Any, split: str, brief: bool) -> Subject:
        return Subject(model, data, split, self.settings, lambda: self._extractor, brief=brief)

    def _named(
        self, model: Any, data: Any, split: str, measures: Sequence[Measure], brief: bool = False
    ) -> tuple[dict[str, float], Findings]:
        if not self._prepared:
            self.prepare(model, data, model.device)
        subject = self._subject(model, data, split, brief)
        few, found = len(data.split(split)) < FEWEST, Findings()
        try:
            if not few:
                found = take(subject, measures)
        except NotNumbers as error:
            if is_first():
                log.warning("No %s scores: %s", split, error)
        if few and is_first() and split not in self._told:
            log.warning("No %s scores: they need at least %d samples, got %d.", split, FEWEST, subject.available())
            self._told.add(split)
        return {f"{split}/{name}": value for name, value in found.scores.items()}, found
