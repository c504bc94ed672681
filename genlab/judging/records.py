"""What scoring finds, its form in files and tables, and the search for runs to score. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.files import run_path
from genlab.judging.cards import margin
from genlab.judging.measure import paired

if TYPE_CHECKING:
    from genlab.judging.measure import Measure
    from genlab.metrics.scores import Scores

FORMAT = 2  # of the files in scores/


@dataclass
class Findings:
    """The scores of one subject.

    Attributes:
        scores: By name.
        group: Key of each score's card.
        cards: The protocol cards.
        about: Title, better direction, section and reference of each score that has a row in tables.
        taken: The name of each score's measure.
        notes: Caveats for the reader.
        seconds: Duration of each measure.
    """

    scores: dict[str, float] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, measure: Measure, found: Scores, common: Mapping[str, Any]) -> None:
        """Adds the scores of one card of a measure; those of the same name are replaced."""
        if not found:
            return
        card = {**common, **found.card}
        key = next(iter(found)).partition("/")[0]
        self.cards[key] = card
        for name, value in found.items():
            self.scores[name], self.group[name], self.taken[name] = value, key, measure.name
        for name in (name for name in found if measure.kind(name) in measure.about):
            self.about[name] = {
                "measure": measure.name,
                "title": measure.title(name),
                "better": measure.about[measure.kind(name)].better,
                "section": measure.heading(name),
                "beside": ", ".join(measure.beside(name, found, card)),
            }
        self.cards = {key: card for key, card in self.cards.items() if key in self.group.values()}

    def record(self) -> dict[str, Any]:
        """The part of a score file that holds them."""
        return {
            "scored": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "scores": self.scores,
            "group": self.group,
            "cards": self.cards,
            "about": self.about,
            "notes": self.notes,
            "seconds": self.seconds,
        }


def joined_records(record: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the scores of an earlier one whose measures it does not hold."""
    taken = {facts["measure"] for facts in record["about"].values()}
    kept = {before["group"][name] for name, facts in before["about"].items() if facts["measure"] not in taken}
    for part in ("scores", "group", "about"):
        old = {name: value for name, value in before[part].items() if before["group"][name] in kept}
        record[part] = {**old, **record[part]}
    record["cards"] = {**{key: before["cards"][key] for key in kept}, **record["cards"]}
    return record


def rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, value with spread, reference, and number of samples of each score of a record that has a row in tables."""
    scores = record["scores"]
    for name, facts in record["about"].items():
        spread = paired(name, scores, "std")
        spread = paired(name, scores, "se") if spread is None else spread
        text = f"{scores[name]:.4g}" if spread is None else f"{scores[name]:.4g} ± {margin(scores[name], spread)}"
        card = record["cards"][record["group"][name]]
        sizes = [f"{card[key]} {word}" for key, word in (("n_fake", "generated"), ("n_real", "real")) if key in card]
        yield name, text, facts["beside"], ", ".join([*sizes, str(card["split"])])


def find_runs(named: Sequence[str | Path]) -> list[Path]:
    """Runs and checkpoints at the given paths; a folder of runs (a multirun) gives all runs in it.

    Raises:
        UserError: If nothing is named, or a folder holds no run.
    """
    if not named:
        raise UserError("Say what to score: run=outputs/latest, several run=..., or real=PATH fake=PATH.")
    found: dict[Path, Path] = {}
    for path in map(run_path, named):
        alone = path.is_file() or not path.exists() or (path / "checkpoints").is_dir()
        runs = [path] if alone else runs_in(path)  # `find_run` reports an invalid path
        if not runs:
            raise UserError(f"{path} is neither a run folder nor a folder of runs: nothing in it holds a run.json.")
        found |= {run.resolve(): run for run in runs if run.resolve() not in found}
    return list(found.values())


def runs_in(folder: Path, depth: int = 2) -> list[Path]:
    """The run folders below a folder (multiruns and stages included), without links and hidden folders."""
    if (folder / "run.json").is_file():
        return [folder]
    below = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]
    return [run for p in sorted(below, key=_natural) for run in runs_in(p, depth - 1)] if depth >= 0 else []


def _natural(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else 10**9, path.name)  # multirun folders are called 0, 1, ..., 10
