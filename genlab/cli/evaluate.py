"""`genlab-evaluate`, `python scripts/evaluate.py`: scores runs or sets of images, with a protocol card per score."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import genlab
from genlab.cli import app
from genlab.commands import program, short
from genlab.config.arguments import parse, take_path, take_paths
from genlab.config.samplers import sampler_config, sampler_stem, sampler_text, take_sampler
from genlab.errors import UserError
from genlab.files import existing_run, run_path, write_json
from genlab.judging.cards import REPEATED, refusal
from genlab.judging.measure import Measure, Settings, chosen, known
from genlab.judging.records import FORMAT, find_runs, joined_records, rows

log = logging.getLogger("genlab")
SEED, LIKELIHOOD_IMAGES = 2020, 1000
OF_SETS = {"pictures", "samples", "extractor", "logits", "classes", "train"}  # needs that image sets can meet
HELP = f"""genlab-evaluate: score a trained model or a set of images, and record the protocol with the scores.

  genlab-evaluate run=outputs/latest                    against the test split of the run's own data
  genlab-evaluate run=RUN_A run=RUN_B/checkpoints/best.ckpt
  genlab-evaluate run=outputs/multirun_2026-01-01       every run in a folder
  genlab-evaluate real=PATH fake=PATH train=PATH        folders, zips or npz (`x`, uint8 [N, H, W, C]) of any origin
  genlab-evaluate run=RUN extractor=inception inception_weights=PATH scores=[fid,kid]
  genlab-evaluate --list                                the scores, and what each needs
  genlab-evaluate --fetch-inception                     fetches the weights of the published FID's network (95 MB)
  genlab-evaluate run=RUN sampler=drs sampler.gamma_percentile=95
  torchrun --standalone --nproc_per_node 2 scripts/evaluate.py run=RUN ...    two processes share the work; same scores

Keys
  run, real, fake, train   runs, or sets of images; `train`: training images for the memorisation ratio of real= fake=
  scores            some of [{", ".join(name for name, each in known().items() if not each.part_of)}];
                    default: all that apply
  n                 most real and most generated samples (images 10,000; points 2,500)
  split (test)      train | val | test of the run's data
  seed (2020)       of latents and subsets; scores with different seeds are comparable
  extractor         classifier (trained on the data set; for real= fake= on train= if it has labels, else on half of
                    real=, and the scores then use the other half), inception, random (untrained, for data without
                    labels), or a file of scripts/train_classifier.py; default: the run's own extractor
  inception_weights (a file; default: the one that --fetch-inception has fetched)
  precision (float32; bfloat16 for monitoring only)
  sampler (prior)   of the samples: truncated | drs | ddls | gmm | flow, and sampler.KEY=VALUE (configs/sampler);
                    the card names it, and scores of different samplers are not ranked against each other
  iwae_samples (500; the paper: 5000), likelihood_images (1000; null: all n)
  ais_steps (0: none; the paper: 10000), ais_samples (16)    annealed importance sampling: temperatures, chains
  splits (10)       parts of the Inception score
  size              for real= fake= of different sizes: crop around the centre and resize (Lanczos) to this
  background (white), bits    for real= fake=: the colour under transparent pixels, white, black or '#rrggbb'; the bits
                    of 16-bit images, 8 to 16 (default: those that their largest value needs)
  data.root         folder of the run's data on this machine
  skip_broken (false), batch_size (100), device (cpu; cuda: under torchrun a GPU per process),
  out (a folder for the score files), allow_targets ([mypackage.*])

A score that the run took itself is taken with the run's own settings; what is typed comes before them. A model that is
told something is told it by real rows of the split.
The scores go to scores/<split>-<extractor>-seed<seed>[-<sampler>].json in the run folder; scripts/report.py compares
them."""
TEXT = ("run", "real", "fake", "train", "out", "data.root", "inception_weights", "extractor", "background")
DEFAULTS: dict[str, Any] = {
    "run": None,
    "real": None,
    "fake": None,
    "train": None,
    "scores": None,
    "n": None,
    "split": "test",
    "seed": None,
    "extractor": None,
    "inception_weights": None,
    "precision": None,
    "iwae_samples": None,
    "ais_steps": None,
    "ais_samples": None,
    "likelihood_images": LIKELIHOOD_IMAGES,
    "splits": None,
    "size": None,
    "background": None,
    "bits": None,
    "data.root": None,
    "skip_broken": False,
    "batch_size": None,
    "device": "cpu",
    "out": None,
    "allow_targets": [],
    "sampler": None,
    "sampler_settings": {},
}


def main() -> None:
    """The command line. If one of several runs cannot be scored, the others are, and the exit code is 2."""
    with app.errors_as_sentences(), app.log_lines():
        if app.print_if_asked(HELP):
            return
        if "--fetch-inception" in sys.argv[1:]:
            if len(sys.argv) > 2:
                raise UserError("--fetch-inception stands alone: it fetches a file and scores nothing.")
            from genlab.extractors.inception import find_inception_weights

            print(f"{find_inception_weights(download=True)}: for extractor=inception, metrics.extractor=inception")
            return
        if "--list" in sys.argv[1:]:
            print(listed())
            return
        named, options = read_options(sys.argv[1:])
        if len(named) == 1:
            existing_run(named[0])
        from genlab.sharing import joined

        with joined() as first:
            if first:
                warnings.showwarning = _one_line
            else:
                warnings.simplefilter("ignore")
                log.setLevel(logging.ERROR)
            _evaluate(named, options, first)


def listed() -> str:
    """The scores of all measures as a Markdown table."""
    lines = ["| scores= | score | better | needs |", "| --- | --- | --- | --- |"]
    for each in known().values():
        typed = f"`{each.part_of or each.name}`"
        titles = [(about.title.replace("|", "\\|"), about.better or "-") for about in each.about.values()]
        lines += [f"| {typed} | {title} | {better} | {', '.join(each.needs) or '-'} |" for title, better in titles]
    return "\n".join(lines)


def _evaluate(named: list[str], options: dict[str, Any], first: bool) -> None:
    """Scores the named runs or image sets; only the first process prints."""
    if options["device"] == "cuda":
        options["device"] = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if options["real"] is not None or options["fake"] is not None:
        if named:
            raise UserError("Give run=..., or real=... and fake=..., not both.")
        record = evaluate_images(options)
        if first:
            show([record])
        return
    records, failed = [], 0
    for run in find_runs(named):
        try:
            records.append(evaluate_run(run, options))
        except UserError as error:
            if len(named) == 1 and not records and run == run_path(named[0]):
                raise
            failed += 1
            if first:
                print(f"{run}: {error}", file=sys.stderr)
    if first:
        show(records)
    if failed:
        raise UserError(f"{failed} of {failed + len(records)} runs could not be scored.")


def read_options(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The named runs, and the values of all other keys.

    Raises:
        UserError: If a key is unknown or a value is out of its range.
    """
    sampler, settings, arguments = take_sampler(arguments)
    sampler_config(sampler or "prior", settings)  # refuses wrong settings before any file is read
    runs = take_paths(arguments, "run")
    typed = {key: take_path(arguments, key)[0] for key in TEXT}
    rest = [a for a in arguments if a.partition("=")[0] not in TEXT]
    known = {key: value for key, value in DEFAULTS.items() if key != "sampler_settings"}
    options = {**parse(rest, known), **{key: value for key, value in typed.items() if value not in (None, "null")}}
    options |= {"sampler": sampler, "sampler_settings": settings}
    if isinstance(options["scores"], str):
        options["scores"] = options["scores"].split(",")
    asked = options["scores"] if isinstance(options["scores"], list | None) else [options["scores"]]
    chosen(asked, "scores")
    if options["precision"] not in (None, "float32", "bfloat16"):
        raise UserError(f"precision must be float32 or bfloat16, got {options['precision']!r}.")
    sides = options["size"] if isinstance(options["size"], list) else [options["size"]]
    if options["size"] is not None and not (0 < len(sides) < 3 and all(type(n) is int and n > 0 for n in sides)):
        raise UserError(f"size must be a number of pixels, or [height,width], got {options['size']!r}. Try size=32.")
    if options["split"] not in ("train", "val", "test"):
        raise UserError(f"split must be train, val or test, got {options['split']!r}.")
    with our_keys():
        settings_of(options)
    return runs, options


# --- One run --------------------------------------------------------------------------------------------------------


def settings_of(options: dict[str, Any], own: dict[str, Any] | None = None) -> Settings:
    """The settings of measures: what is typed, else the run's own (`own`, keys of `metrics`), else the defaults."""
    keys = [each.name for each in fields(Settings)]
    typed = {key: value for key, value in {**options, "num_samples": options["n"]}.items() if value is not None}
    if own is not None and options["likelihood_images"] == LIKELIHOOD_IMAGES:  # the default: not typed
        del typed["likelihood_images"]
    values = {**(own or {}), **typed}
    return Settings(**{key: values[key] for key in keys if key in values})


def measures_of(options: dict[str, Any], metrics: dict[str, Any]) -> tuple[list[Measure], list[str]]:
    """The measures to take, those of the run with its own settings; and notes on those that are left out.

    Args:
        options: See `HELP`.
        metrics: The section `metrics` of the run's config.
    """
    from genlab.config.instantiate import check_allowed
    from genlab.judging.more import from_config

    every, notes = chosen(options["scores"], "scores"), []
    own = {measure.name for measure in chosen(metrics.get("scores", ()))}
    for measure in every:
        measure.settings = settings_of(options, metrics if measure.name in own else None)
    for name, node in (metrics.get("more") or {}).items() if options["scores"] is None else ():
        try:
            check_allowed({name: node}, options["allow_targets"])
        except UserError as error:
            notes.append(f"metrics.more.{name} is left out: {error}")
            continue
        (measure,) = from_config({name: node})
        measure.settings = settings_of(options, metrics)
        every.append(measure)
    return every, notes


def evaluate_run(run: str | Path, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Scores a run against a split of its data and writes the record into the run folder.

    The checkpoint is only read; the random states of the process are restored afterwards.

    Args:
        run: A run folder or a checkpoint.
        options: See `HELP`; missing keys have their defaults.

    Returns:
        The record as written: `scores` by name, `group` and `about` of each score, `cards` by group, `notes`,
        `checkpoint`.

    Raises:
        UserError: If the run cannot be scored with these options.
    """
    from genlab.extractors.checksums import file_checksum
    from genlab.judging.judge import take
    from genlab.runs import folder as runs
    from genlab.seeding import preserved_random_states
    from genlab.sharing import by_first, first_then_others

    options = {**DEFAULTS, **(options or {})}
    for key in ("background", "bits"):
        if options[key] is not None:
            raise UserError(f"{key}={options[key]} is for real= fake=: a run's data are read as data.{key} of the run.")
    allow = tuple(options["allow_targets"])
    folder, path = runs.find_run(run)
    with preserved_random_states(), our_keys():
        checkpoint = runs.read_checkpoint(path)
        model = genlab.load(path, device=options["device"], allow_targets=allow)
        config = model.run_config
        data = first_then_others(lambda: runs.load_data(config, options["data.root"], allow))
        metrics = config.get("metrics") or {}
        options["seed"] = metrics.get("seed", SEED) if options["seed"] is None else options["seed"]
        measures, notes = measures_of(options, metrics)
        subject = _subject(model, data, options, metrics, path)
        found = take(subject, measures)
        if not found.scores:
            raise _nothing(subject, measures, options)
        found.notes = [*map(_ours, found.notes), *notes]
    record = {
        "format": FORMAT,
        "genlab": genlab.__version__,
        "run": str(folder),
        "choices": config.get("choices", {}),
        "trained_seed": config.get("seed"),
        "checkpoint": {
            "file": path.name,
            "iteration": int(checkpoint["global_step"]),
            "sha256": file_checksum(path),
        },
        **found.record(),
    }
    stem = f"{options['split']}-{subject.judge_name}-seed{options['seed']}"
    stem += sampler_stem(options["sampler"] or "prior", options["sampler_settings"])
    stem += "" if path.name == "last.ckpt" else f"-{path.stem}"
    home = folder / "scores" if (folder / "config.yaml").is_file() else Path("outputs") / "scores"
    return by_first(lambda: _keep(record, Path(options["out"] or home) / f"{stem}.json"))


def _subject(model: Any, data: Any, options: dict[str, Any], metrics: dict[str, Any], path: Path) -> Any:
    """The model on the split, with the extractor and the sampler of the options."""
    from genlab.judging.subject import FEWEST, Subject
    from genlab.runs.samplers import ready_sampler

    split, settings, name = options["split"], options["sampler_settings"], options["sampler"] or "prior"
    if len(data.split(split)) < FEWEST:
        raise UserError(
            f"Scores need {FEWEST} samples or more, and the {split} split of {data.name} holds "
            f"{len(data.split(split))}. Try another split=."
        )

    def sampler() -> Any:
        allow = tuple(options["allow_targets"])
        return ready_sampler(name, settings, model, path, options["data.root"], allow)

    subject = Subject(
        model,
        data,
        split,
        settings_of(options),
        lambda: _extractor(subject, options, metrics),
        sampler if name != "prior" else None,
        sampler_text(name, settings),
    )
    return subject


def _extractor(subject: Any, options: dict[str, Any], metrics: dict[str, Any]) -> Any:
    """The feature extractor; None, with a note, if the default one is unavailable."""
    import torch

    from genlab.extractors.choice import check_extractor, shared_network

    asked, own = options["extractor"], metrics.get("extractor") or "classifier"
    weights = options["inception_weights"] or metrics.get("inception_weights")
    precision = options["precision"] or (metrics.get("precision", "float32") if asked in (None, own) else "float32")
    device = torch.device(options["device"])
    try:
        with our_keys():
            check_extractor(asked or own, precision)
            return shared_network(asked or own, subject.data, device, weights, precision)
    except UserError as error:
        if asked is not None or options["precision"] is not None:
            raise
        subject.note(f"Scores from features are left out: {error}")
        return None


def _nothing(subject: Any, measures: list[Measure], options: dict[str, Any]) -> UserError:
    """The mistake of a run for which no score applies."""
    asked = f" among {', '.join(options['scores'])}" if options["scores"] else ""
    able = ", ".join(name for name in ("sample", "reconstruct", "log_joint") if subject.model.can(name)) or "nothing"
    kind, name = subject.data.spec.x.kind, type(subject.model).__name__
    reason = next(iter(subject.notes), None) or next((why for m in measures if (why := m.missing(subject))), "")
    return UserError(f"No score{asked} applies: {name} on {kind} data offers {able}. {reason}".rstrip())


@contextmanager
def our_keys() -> Iterator[None]:
    """Shortens the training keys in error messages (`metrics.num_samples`) to those of `genlab-evaluate` (`n`)."""
    try:
        yield
    except UserError as error:
        raise UserError(_ours(str(error))) from error


def _ours(text: str) -> str:
    """A sentence with the keys of this command in place of a training's."""
    return re.sub(r"metrics\.(?!more\.)", "", text.replace("metrics.num_samples", "n"))


def _keep(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Writes the record; keeps the other groups of an earlier record of the same checkpoint."""
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            if before["format"] == FORMAT and before.get("checkpoint") == record.get("checkpoint"):
                record = joined_records(record, before)
        except (ValueError, KeyError, TypeError, OSError):
            log.warning("%s held no readable scores and is replaced.", path)
    try:
        write_json(path, record)
    except OSError as error:
        raise UserError(f"The scores cannot be written to {path} ({error.strerror}). Try out=FOLDER.") from error
    return {**record, "file": str(path)}


# --- Sets of images -------------------------------------------------------------------------------------------------


def evaluate_images(options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Scores `fake` images against `real` ones: folders, zips or npz.

    Args:
        options: See `HELP`; `real` and `fake` are needed.

    Returns:
        The record as written, see `evaluate_run`.

    Raises:
        UserError: If a set cannot be read, is too small, or there is no extractor.
    """
    from genlab.data.image_sets import load_image_sets
    from genlab.judging.judge import take
    from genlab.judging.sets import MOST, SetSubject
    from genlab.seeding import preserved_random_states
    from genlab.sharing import by_first, first_then_others

    options = {**DEFAULTS, **(options or {})}
    if options["sampler"] is not None:
        raise UserError(f"sampler={options['sampler']} is for run=...: the images of real= fake= exist already.")
    if options["real"] is None or options["fake"] is None:
        raise UserError("Images are scored against others: give both real=PATH and fake=PATH.")
    defaults = {"seed": SEED, "n": MOST, "precision": "float32"}
    options |= {key: value for key, value in defaults.items() if options[key] is None}
    measures = [m for m in chosen(options["scores"], "scores") if set(m.needs) <= OF_SETS and "samples" in m.needs]
    if not measures:
        able = [name for name, each in known().items() if set(each.needs) <= OF_SETS and "samples" in each.needs]
        raise UserError(f"No requested score applies to image sets; choose from {', '.join(able)}.")
    paths = {key: options[key] for key in ("real", "fake", "train") if options[key] is not None}
    reading = {"background": options["background"] or "white", "bits": options["bits"]}
    sets, rule = first_then_others(lambda: load_image_sets(paths, options["size"], options["skip_broken"], **reading))
    with preserved_random_states(), our_keys():
        wanted = {need for measure in measures for need in measure.needs}
        subject = SetSubject(sets, rule, settings_of(options), options, wanted)
        found = take(subject, measures)
    missing = [why for m in measures if "train" in m.needs and (why := m.missing(subject))]
    found.notes = [*map(_ours, found.notes), *missing]
    record = {
        "format": FORMAT,
        "genlab": genlab.__version__,
        "run": str(options["fake"]),
        "fake_fingerprint": sets["fake"].fingerprint,
        **found.record(),
    }
    stem = f"{Path(options['fake']).resolve().stem}-vs-{Path(options['real']).resolve().stem}"
    home = Path(options["out"] or Path("outputs") / "scores")
    return by_first(lambda: _keep(record, home / f"{stem}-{subject.judge_name}-seed{options['seed']}.json"))


# --- Printed tables -------------------------------------------------------------------------------------------------


def show(records: list[dict[str, Any]]) -> None:
    """Prints a table per record, and for several records a ranking by each score whose cards agree."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for record in records:
        place = record["run"] if "checkpoint" not in record else f"{record['run']}/{record['checkpoint']['file']}"
        table = Table(show_header=True, box=None, padding=(0, 2, 0, 0))
        for column in ("score", "value", "reference", "samples"):
            table.add_column(column, overflow="fold")
        for name, *row in rows(record):
            table.add_row(record["about"][name]["title"], *row)
        console.print()
        console.print(short(place), style="italic", highlight=False, markup=False, soft_wrap=True)  # a title would wrap
        console.print(table)
        for note in record["notes"]:
            console.print(f"- {note}", style="yellow", highlight=False, markup=False)
        console.print(f"protocol and scores: {short(record['file'])}", highlight=False, markup=False, soft_wrap=True)
    if len(records) > 1:
        _compare(records, console)


def _compare(records: list[dict[str, Any]], console: Any) -> None:
    console.print()
    shared = [name for name in records[0]["scores"] if all(name in r["scores"] for r in records)]
    for name in (n for n in shared if records[0]["about"].get(n, {}).get("better")):
        facts = records[0]["about"][name]
        sentence = refusal(facts["title"], {r["run"]: r["cards"][r["group"][name]] for r in records})
        if sentence is not None:
            console.print(f"- {sentence}", style="yellow", highlight=False)
            continue
        order = sorted(records, key=lambda r: r["scores"][name], reverse=facts["better"] == "higher")
        ranking = ", ".join(f"{Path(r['run']).name} {r['scores'][name]:.4g}" for r in order)
        console.print(f"- {facts['title']} ({facts['better']} is better): {ranking}", highlight=False)
    fixed = ", ".join(REPEATED)
    console.print(f"Scores with equal cards are ranked ({fixed} may differ). For a page:", highlight=False)
    runs = [f"runs={short(r['run'] if 'checkpoint' in r else r['file'])}" for r in records]
    console.print(f"{program('report')} {shlex.join(runs)}", highlight=False, markup=False, soft_wrap=True)


def _one_line(
    message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """Prints a warning without its place in the code."""
    print(f"Warning: {_ours(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    main()
