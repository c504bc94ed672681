"""Readback: the agreement of samples with what the model was told, by readers that are trained on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from genlab.fields.readout import Readout
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores

TAUGHT = "The readers were trained on these images. Try split=test, whose images they have not seen."


class Readback(Measure):
    """A reader reads each told column from the samples; beside it the same of real samples.

    It reads what fields have a `readout` for: labels (by a classifier of the data), attributes, boxes, keypoints,
    layouts, captions. Scores go from 0 to 1, the best; each one's card names its reader and the reader's own score.
    """

    name, place, section = "readback", 16, "agreement with what is told"
    needs = ("pictures", "samples")
    about: Mapping[str, About] = {"read": About("agreement of samples with a told column", "higher")}

    def __init__(self) -> None:
        self._readers: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()  # of each data module

    def missing(self, subject: Subject) -> str | None:
        """Needs a model that is told columns which can be read from pictures."""
        if subject.model is None:
            return "There is no model."
        told = f"{type(subject.model).__name__} is told nothing that can be read from a picture."
        return super().missing(subject) or (None if self._columns(subject) else told)

    def prepare(self, subject: Subject) -> None:
        """Trains or loads the readers, in each process alone: the first one prepares before the others start."""
        for name in () if self.missing(subject) else self._columns(subject):
            self._reader(subject, name, lambda make: make())

    def _columns(self, subject: Subject) -> dict[str, Readout]:
        from genlab.extractors.classifier import SMALLEST
        from genlab.extractors.reader import readout_of

        spec, given = subject.data.spec, subject.model.given
        readable = given if min(spec.shape[1:]) >= SMALLEST else ()
        found = {name: readout_of(spec.fields[name], spec.shape) for name in readable if name in spec.fields}
        return {name: readout for name, readout in found.items() if readout is not None}

    def take(self, subject: Subject) -> Iterator[Scores]:
        """{"read_COLUMN"} of each told column that can be read and, unless brief, {"read_COLUMN_real"}."""
        import torch

        from genlab.batch import Batch
        from genlab.extractors.reader import agreement, compared, parts
        from genlab.metrics.scores import Scores
        from genlab.sharing import first_then_others, shared

        n = self.number(subject)
        given, fake = subject.given(n), subject.fake(n)
        assert given is not None
        for name, readout in self._columns(subject).items():
            reader, card = self._reader(subject, name, first_then_others)
            sets = {"": Batch({"images": fake, "told": given.to("cpu")[name]})}
            if not subject.brief:
                own = subject.data.rows(subject.split, [name], subject.rows(n))[name]
                sets["_real"] = Batch({"images": subject.real(n), "told": own})
            sums, weights = compared(reader, readout), getattr(reader, "weights", torch.ones(1))
            found = {f"read_{name}{end}": agreement(shared(parts(x), sums), weights) for end, x in sets.items()}
            yield Scores(found, {**card, "agreement": readout.agreement, "n_fake": n, "n_real": n})
        if subject.split == "train":
            subject.note(TAUGHT)

    def _reader(self, subject: Subject, name: str, call: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
        """The reader of a column, and its card; of labels a classifier of the data, which other scores use, too.

        A reader that is not yet there is made within `call`.
        """
        from genlab.extractors.choice import column_reader, dataset_classifier

        labels = name == "y"
        found: Any = subject.extractor if labels and not subject.lacks("classes") else None
        if found is None:
            where = subject.data, subject.device
            make = (lambda: dataset_classifier(*where)) if labels else (lambda: column_reader(where[0], name, where[1]))
            readers = self._readers.setdefault(subject.data, {})
            found = readers[name] = readers.get(name) or call(make)
        own = found.accuracy if labels else found.agreement
        return found, {"reader": found.name, "checksum": found.checksum, "reader_agreement": own}

    def kind(self, score: str) -> str:
        """The key "read" for the score of any column."""
        return "read" if score.startswith("read_") and not score.endswith("_real") else score

    def title(self, score: str) -> str:
        """With the column."""
        return f"{score.removeprefix('read_')} as told"

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """The kind of agreement, and that of real samples."""
        return [card["agreement"], *super().beside(score, scores, card)]
