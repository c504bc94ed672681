"""Comparison of runs: their scores, which of these are comparable, and the Markdown report. Free of torch."""

from __future__ import annotations

import json
import logging
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.commands import command
from genlab.config.composition import PARTS
from genlab.errors import UserError
from genlab.files import run_path
from genlab.judging.cards import SEEN, differences, disagreement, margin
from genlab.judging.records import FORMAT, find_runs

log = logging.getLogger("genlab")
# Config keys that do not define a composition: seed, resources, logging and callbacks.
NOT_COMPOSITION = (
    *("seed", "threads", "max_time", "max_cpu_time", "dry_run"),
    *("logger", "callbacks", "checkpoint", "choices", "health"),
)
NOT_OF_DATA = ("seed", "label_seed", "root", "download", "num_workers")
TOLD = ("model", *PARTS, "data", "experiment")  # config groups named in a label
LABEL_KEYS = 3  # differing keys in a label at most


@dataclass
class Scoring:
    """One scoring of one run: a score file of `genlab-evaluate`, or the run's own test scores."""

    scores: dict[str, float]
    cards: dict[str, dict[str, Any]]  # by score
    about: dict[str, dict[str, Any]]  # of scores that have a row: title, better, section, beside
    checkpoint: str = "last.ckpt"
    notes: list[str] = field(default_factory=list)


@dataclass
class Entry:
    """One run (or one image set) with its config, record and scorings."""

    name: str
    folder: Path | None
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    scorings: list[Scoring] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        """The training seed."""
        return self.config.get("seed", self.record.get("seed"))

    @property
    def wall_seconds(self) -> float | None:
        """Total seconds of all sessions."""
        times = [s.get("wall_seconds") for s in self.record.get("sessions", [])]
        return sum(t for t in times if isinstance(t, (int, float))) if times else None

    def values(self, score: str) -> list[float]:
        """The score in each scoring that has it."""
        return [s.scores[score] for s in self.scorings if score in s.scores]


@dataclass
class Composition:
    """Runs that differ by their seed alone."""

    label: str
    entries: list[Entry]

    @property
    def short(self) -> str:
        """The label without group names, for the heads of tables."""
        parts = [p.partition("=")[2] if p.partition("=")[0] in TOLD else p for p in self.label.split("  ")]
        return ", ".join(parts)

    def means(self, score: str) -> list[float]:
        """One value per run: the mean over its scorings."""
        return [statistics.fmean(v) for v in (entry.values(score) for entry in self.entries) if v]

    def spread_of_scorings(self, score: str) -> float | None:
        """Standard deviation between scorings of one run, pooled over runs; None if no run was scored twice."""
        several = [v for v in (entry.values(score) for entry in self.entries) if len(v) > 1]
        if not several:
            return None
        freedom = sum(len(v) - 1 for v in several)
        return math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in several) / freedom)


@dataclass
class Row:
    """One score over all compositions.

    Attributes:
        score: Name of the score.
        title: Its name in tables.
        better: "lower" or "higher"; None for scores that are never ranked.
        section: Heading in tables.
        values: Values of the runs of each composition, in the report's order; empty if it has none.
        reference: Reference value as text; "" if there is none.
        differs: Differences of the cards as text, which prevent a ranking; None if the cards agree.
        mixed: Whether the cards differ within each composition, which makes its mean meaningless.
        best: Positions of the compositions to mark: the best mean first, then those within one standard deviation.
    """

    score: str
    title: str
    better: str | None
    section: str
    values: list[list[float]]
    reference: str
    differs: str | None
    mixed: list[bool]
    best: list[int]

    def cell(self, i: int) -> str:
        """The value of composition i as text: the mean, or the range if the cards of its runs differ."""
        values = self.values[i]
        if self.mixed[i] and values:
            return f"{number(min(values))} to {number(max(values))}, mixed"
        return cell(values)


@dataclass
class Report:
    """The content of the HTML page and of the Markdown report."""

    compositions: list[Composition]
    rows: list[Row]
    shared: dict[str, Any]  # group choices that all runs share
    notes: list[str]

    @property
    def ranked(self) -> list[Row]:
        """Scores whose cards agree."""
        return [row for row in self.rows if row.differs is None]

    @property
    def refused(self) -> list[Row]:
        """Scores whose cards differ or are missing."""
        return [row for row in self.rows if row.differs is not None]

    @property
    def refusals(self) -> list[str]:
        """Reasons why scores are not ranked, one sentence per reason."""
        titles: dict[str, list[str]] = {}
        for row in self.refused:
            titles.setdefault(row.differs or "", []).append(row.title)
        verbs = {words: "is" if len(names) == 1 else "are" for words, names in titles.items()}
        return [f"{', '.join(names)} {verbs[words]} not ranked: {words}." for words, names in titles.items()]

    @property
    def entries(self) -> list[Entry]:
        """All runs, in order."""
        return [entry for composition in self.compositions for entry in composition.entries]


def draw_boxes(report: Report, path: Path) -> Path:
    """Saves box plots: a panel per score whose cards agree, a box per composition, runs as dots.

    Raises:
        UserError: If there is no such score.
    """
    from genlab.fields.drawing import save_png
    from genlab.looks.pictures import box_plots

    panels = {}
    for row in report.ranked:
        title = row.title + (f" ({row.better} is better)" if row.better else "")
        panels[title] = {c.short: v for c, v in zip(report.compositions, row.values, strict=True) if v}
    if not panels:
        raise UserError("Box plots need a score whose cards agree; there is none.")
    return save_png(path, box_plots(panels))


def home_of(named: list[str]) -> Path:
    """The folder of the page: the named folder if it is the only path, else `outputs/` or the working directory."""
    path = run_path(named[0])
    return path if len(named) == 1 and path.is_dir() else Path("outputs") if Path("outputs").is_dir() else Path()


# --- Reading --------------------------------------------------------------------------------------------------------


def collect(named: list[str], by: str | None = None) -> Report:
    """Reads runs, folders of runs and score files, and groups them by composition.

    Args:
        named: Paths of runs, folders or score files.
        by: Config group, such as `model`, whose choice alone defines a composition; None for the whole config.

    Raises:
        UserError: If no path is named, a path holds no run, or a run has no choice of `by`.
    """
    if not named:
        raise UserError("Say what to report on: runs=outputs/latest, or a folder of runs.")
    entries: list[Entry] = []
    for name in named:
        path = run_path(name)
        files = [path] if path.suffix == ".json" else []
        if path.is_dir() and not any(path.rglob("run.json")):
            files = sorted(path.glob("*.json"))
        if files:
            entries += [entry for file in files if (entry := _read_scores_alone(file)) is not None]
        else:
            entries += [_read_run(run) for run in find_runs([path])]
    unique = list({(entry.folder or entry.name): entry for entry in entries}.values())
    if not unique:
        raise UserError(f"No runs or score files in {', '.join(named)}.")
    compositions, shared = _compose(unique) if by is None else _compose_by(unique, by)
    rows = [_row(score, facts, compositions) for score, facts in _scores(unique).items()]
    notes = [note for entry in unique for scoring in entry.scorings for note in scoring.notes]
    return Report(compositions, rows, shared, list(dict.fromkeys(notes)))


def _read_run(run: Path) -> Entry:
    import yaml

    folder = (run.parent.parent if run.is_file() else run).resolve()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it holds no config.yaml.")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text()) or {}
        path = folder / "run.json"
        record = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder} cannot be read: {' '.join(str(error).split())[:200]}") from error
    entry = Entry(folder.name, folder, config, record)
    wanted = run.name if run.is_file() else None
    for file in sorted((folder / "scores").glob("*.json")):
        scoring = _read_scoring(file)
        if scoring is not None and wanted in (None, scoring.checkpoint):
            entry.scorings.append(scoring)
    if wanted is None and any(s.checkpoint == "last.ckpt" for s in entry.scorings):
        entry.scorings = [s for s in entry.scorings if s.checkpoint == "last.ckpt"]  # not mixed with best.ckpt
    if not entry.scorings and record.get("scores"):
        try:
            entry.scorings.append(_own_scores(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"Take them again: {command('evaluate', run=folder)}"
            log.warning("The scores in %s are not of this version and are left out (%s). %s", path, error, told)
    return entry


def _own_scores(record: dict[str, Any]) -> Scoring:
    """The run's own scores, computed on its test split at its end."""
    scores = {name.removeprefix("test/"): value for name, value in record["scores"].items() if _is_number(value)}
    return Scoring(scores, _cards(record, scores), _facts(record))


def _cards(record: dict[str, Any], scores: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The card of each score of a record; empty if there is none."""
    group, cards = record.get("group", {}), record.get("cards", {})
    return {name: cards.get(group.get(name), {}) for name in scores}


def _facts(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The facts about the scores of a record that have a row.

    Raises:
        ValueError: If they are damaged.
        KeyError: If a fact or all of them are missing.
    """
    for name, facts in record["about"].items():
        texts = [facts[key] for key in ("title", "section", "beside")]
        if not all(isinstance(text, str) for text in texts) or facts["better"] not in (None, "lower", "higher"):
            raise ValueError(f"the facts about {name} are damaged")
    return dict(record["about"])


def _read_scoring(file: Path) -> Scoring | None:
    """Reads a score file of genlab-evaluate; None, with a warning, for any other file."""
    try:
        record = json.loads(file.read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}")
        scores = {name: value for name, value in record["scores"].items() if _is_number(value)}
        where, notes = record.get("checkpoint", {}).get("file", ""), list(record.get("notes", []))
        return Scoring(scores, _cards(record, scores), _facts(record), where, notes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is no score file of this version and is left out (%s).", file, error)
        return None


def _read_scores_alone(file: Path) -> Entry | None:
    scoring = _read_scoring(file)
    if scoring is None:
        return None
    name = Path(str(json.loads(file.read_text()).get("run", file.stem))).name
    return Entry(name, None, scorings=[scoring])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- Compositions ---------------------------------------------------------------------------------------------------


def _compose(entries: list[Entry]) -> tuple[list[Composition], dict[str, Any]]:
    """Compositions, each labelled by its distinguishing choices and keys; and the group choices that all share."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        key = json.dumps(_composition(entry), sort_keys=True, default=str) if entry.config else entry.name
        groups.setdefault(key, []).append(entry)
    members = list(groups.values())
    choices = [m[0].config.get("choices", {}) for m in members]
    named = [k for k in TOLD if any(k in c for c in choices)]
    same = {k: choices[0].get(k) for k in named if all(c.get(k) == choices[0].get(k) for c in choices)}
    leaves = [_leaves(_composition(m[0])) for m in members]
    labels = []
    for group, choice, leaf in zip(members, choices, leaves, strict=True):
        differing = {k: choice[k] for k in named if k not in same and k in choice}
        label = "  ".join(f"{k}={v}" for k, v in differing.items())
        twins = [other for c, other in zip(choices, leaves, strict=True) if c == choice]
        keys = [k for k in leaf if any(other.get(k) != leaf[k] for other in twins)]
        label = "  ".join(filter(None, [label, *(f"{k}={leaf[k]}" for k in keys[:LABEL_KEYS])]))
        labels.append(label or "  ".join(f"{k}={choice[k]}" for k in ("model", "data") if k in choice) or group[0].name)
    for i, label in enumerate(labels):
        if labels.count(label) > 1:
            labels[i] = f"{label}  ({members[i][0].name})"
    shared = same if len(members) > 1 else choices[0]
    members = [sorted(m, key=lambda e: (str(type(e.seed)), e.seed or 0, e.name)) for m in members]
    return [Composition(label, m) for label, m in zip(labels, members, strict=True)], {
        k: v for k, v in shared.items() if k in TOLD
    }


def _compose_by(entries: list[Entry], by: str) -> tuple[list[Composition], dict[str, Any]]:
    """Compositions by the choice of one group; and the group choices that all share."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        choice = entry.config.get("choices", {}).get(by)
        if not choice:
            known = sorted(k for k, v in entry.config.get("choices", {}).items() if v and k in TOLD)
            raise UserError(f"{entry.name} has no choice of {by!r}. Try by={known[0] if known else 'model'}.")
        groups.setdefault(choice, []).append(entry)
    choices = [entry.config["choices"] for entry in entries]
    shared = {k: v for k, v in choices[0].items() if k in TOLD and all(c.get(k) == v for c in choices)}
    return [Composition(f"{by}={choice}", members) for choice, members in groups.items()], shared


def _composition(entry: Entry) -> dict[str, Any]:
    """The part of a config that defines the training, without seed and resources."""
    config = {k: v for k, v in entry.config.items() if k not in NOT_COMPOSITION}
    data = config.get("data")
    if isinstance(data, dict):
        config["data"] = {k: v for k, v in data.items() if k not in NOT_OF_DATA}
    return config


def _leaves(node: Any, path: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    if isinstance(node, dict):
        return {
            k: v for key, child in node.items() for k, v in _leaves(child, f"{path}.{key}" if path else key).items()
        }
    return {path: node}


# --- Scores ---------------------------------------------------------------------------------------------------------


def _scores(entries: list[Entry]) -> dict[str, dict[str, Any]]:
    """The scores that get a row with the facts about them, by section; spreads and references get none."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for scoring in entry.scorings:
            found = {**scoring.about, **found} if len(scoring.about) > len(found) else {**found, **scoring.about}
    sections = list(dict.fromkeys(facts["section"] for facts in found.values()))
    return dict(sorted(found.items(), key=lambda item: sections.index(item[1]["section"])))


def _row(score: str, facts: dict[str, Any], compositions: list[Composition]) -> Row:
    cards: dict[str, dict[str, Any]] = {}
    references: list[str] = []
    mixed = []
    for composition in compositions:
        own = []
        for entry in composition.entries:
            for scoring in (s for s in entry.scorings if score in s.scores):
                own.append(scoring.cards.get(score, {}))
                who = entry.name if entry.name not in cards else f"{entry.name} ({len(cards) + 1})"
                cards[who] = own[-1]
                references.append(scoring.about.get(score, {}).get("beside", ""))
        mixed.append(bool(differences(own)) or (len(own) > 1 and not all(own)))
    words = disagreement(cards)
    values = [composition.means(score) for composition in compositions]
    best = _best(facts["better"], values) if words is None else []
    reference = next((r for r in references if SEEN in r), (references or [""])[0]) if words is None else ""
    return Row(score, facts["title"], facts["better"], facts["section"], values, reference, words, mixed, best)


def _best(better: str | None, values: list[list[float]]) -> list[int]:
    """Positions of the best mean, and of means within its or their own standard deviation of it."""
    if better is None or sum(bool(v) for v in values) < 2:
        return []
    sign = 1 if better == "higher" else -1
    means = {i: sign * statistics.fmean(v) for i, v in enumerate(values) if v and not any(map(math.isnan, v))}
    if not means:
        return []
    first = max(means, key=lambda i: means[i])
    near = {i: max(spread(values[i]) or 0.0, spread(values[first]) or 0.0) for i in means}
    tied = [i for i in means if i != first and means[first] - means[i] <= near[i]]
    return [first, *tied]


def spread(values: list[float]) -> float | None:
    """Standard deviation over runs (n - 1); None for one."""
    return statistics.stdev(values) if len(values) > 1 else None


def number(value: float) -> str:
    """Four digits; with an exponent only if small or large."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:.{min(digits, 6)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3g}"


def short(n: float) -> str:
    """Three digits and a unit: 950, 12.3k, 1.23M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


def cell(values: list[float]) -> str:
    """`mean ± std`, a single value, or a dash."""
    if not values:
        return "–"
    around = spread(values)
    mean = statistics.fmean(values)
    return number(mean) if around is None else f"{number(mean)} ± {margin(mean, around)}"


def duration(seconds: float | None) -> str:
    """Readable seconds, minutes or hours."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The report as Markdown: ranked scores, unranked scores with reasons, and runs."""
    labels = [c.label.replace("|", "\\|") for c in report.compositions]
    runs = [f"{len(c.entries)} run{'s' if len(c.entries) > 1 else ''}" for c in report.compositions]
    lines = []
    if report.shared:
        lines += ["All runs: " + " ".join(f"`{k}={v}`" for k, v in report.shared.items()), ""]
    for title, rows in (
        ("Scores", report.ranked),
        ("Not ranked", report.refused),
    ):
        if not rows:
            continue
        heads = [f"{c.short} ({n})".replace("|", "\\|") for c, n in zip(report.compositions, runs, strict=True)]
        lines += [f"## {title}", "", _line(["score", "reference", *heads]), _line(["---"] * (2 + len(heads)))]
        for row in rows:
            arrow = {"lower": " ↓", "higher": " ↑"}.get(row.better or "", "")
            cells = [row.cell(i) for i in range(len(row.values))]
            for place, i in enumerate(row.best):
                cells[i] = f"**{cells[i]}**" if place == 0 else f"{cells[i]} ≈"
            lines.append(_line([row.title + (arrow if row.differs is None else ""), row.reference, *cells]))
        lines.append("")
    lines += [f"- {sentence}" for sentence in (*report.refusals, *report.notes)]
    lines += ["", "## Runs", "", _line(["run", "composition", "seed", "iterations", "wall time", "images/s"])]
    lines.append(_line(["---"] * 6))
    for composition, label in zip(report.compositions, labels, strict=True):
        for entry in composition.entries:
            speed = entry.record.get("images_per_second")
            facts = [
                entry.record.get("iterations", "–"),
                duration(entry.wall_seconds),
                f"{speed:,.0f}" if speed else "–",
            ]
            lines.append(_line([entry.name, label, entry.seed if entry.seed is not None else "–", *facts]))
    return "\n".join(lines)


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"
