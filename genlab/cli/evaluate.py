"""`genlab-evaluate`, `python scripts/evaluate.py`: scores runs or sets of images, with a protocol card per score."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import genlab
from genlab.cli import app
from genlab.commands import program, short
from genlab.config.arguments import parse, take_path, take_paths
from genlab.config.samplers import sampler_config, sampler_stem, take_sampler
from genlab.errors import UserError
from genlab.files import existing_run, run_path, write_json
from genlab.judging.cards import BETTER, PROTOCOL, REPEATED, kind_of, margin, refusal, title_of
from genlab.judging.records import FORMAT, find_runs
from genlab.judging.subject import (
    FEWEST,
    IMAGES,
    POINTS,
    SCORES,
    Scoring,
    our_keys,
    record_of,
)

log = logging.getLogger("genlab")
HELP = f"""genlab-evaluate: score a trained model or a set of images, and record the protocol with the scores.

  genlab-evaluate run=outputs/latest                    against the test split of the run's own data
  genlab-evaluate run=RUN_A run=RUN_B/checkpoints/best.ckpt
  genlab-evaluate run=outputs/multirun_2026-01-01       every run in a folder
  genlab-evaluate real=PATH fake=PATH train=PATH        folders, zips or npz (`x`, uint8 [N, H, W, C]) of any origin
  genlab-evaluate run=RUN extractor=inception inception_weights=PATH scores=[fid,kid]
  genlab-evaluate --fetch-inception                     fetches the weights of the published FID's network (95 MB)
  genlab-evaluate run=RUN sampler=drs sampler.gamma_percentile=95
  torchrun --standalone --nproc_per_node 2 scripts/evaluate.py run=RUN ...    two processes share the work; same scores

Keys
  run, real, fake, train   runs, or sets of images; `train`: training images for the memorisation ratio of real= fake=
  scores            some of [{", ".join(SCORES)}]; default: all that apply
  n                 most real and most generated samples (images {IMAGES:,}; points {POINTS:,})
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
  size              for real= fake= of different sizes: crop around the centre and resize (Lanczos) to this
  background (white), bits    for real= fake=: the colour under transparent pixels, white, black or '#rrggbb'; the bits
                    of 16-bit images, 8 to 16 (default: those that their largest value needs)
  data.root         folder of the run's data on this machine
  skip_broken (false), batch_size (256), device (cpu; cuda: under torchrun a GPU per process),
  out (a folder for the score files), allow_targets ([mypackage.*])

A class-conditional model draws the classes of the real images, in their frequencies.
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
    "seed": 2020,
    "extractor": None,
    "inception_weights": None,
    "precision": "float32",
    "iwae_samples": 500,
    "ais_steps": 0,
    "ais_samples": 16,
    "likelihood_images": 1000,
    "size": None,
    "background": None,
    "bits": None,
    "data.root": None,
    "skip_broken": False,
    "batch_size": 256,
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
            from genlab.metrics.inception import find_inception_weights

            print(f"{find_inception_weights(download=True)}: for extractor=inception, metrics.extractor=inception")
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
    unknown = sorted({str(s) for s in asked or []} - set(SCORES))
    if unknown:
        raise UserError(f"There is no score {unknown[0]!r}; scores takes {', '.join(SCORES)}.")
    if options["precision"] not in ("float32", "bfloat16"):
        raise UserError(f"precision must be float32 or bfloat16, got {options['precision']!r}.")
    sides = options["size"] if isinstance(options["size"], list) else [options["size"]]
    if options["size"] is not None and not (0 < len(sides) < 3 and all(type(n) is int and n > 0 for n in sides)):
        raise UserError(f"size must be a number of pixels, or [height,width], got {options['size']!r}. Try size=32.")
    if options["split"] not in ("train", "val", "test"):
        raise UserError(f"split must be train, val or test, got {options['split']!r}.")
    for key in ("n", "likelihood_images", "iwae_samples", "ais_steps", "ais_samples", "batch_size"):
        value, least = options[key], {"n": FEWEST, "ais_steps": 0}.get(key, 1)
        empty = value is None and key in ("n", "likelihood_images")
        if not empty and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(f"{key} must be a whole number from {least} on, got {value!r}.")
    return runs, options


# --- One run --------------------------------------------------------------------------------------------------------


def evaluate_run(run: str | Path, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Scores a run against a split of its data and writes the record into the run folder.

    The checkpoint is only read; the random states of the process are restored afterwards.

    Args:
        run: A run folder or a checkpoint.
        options: See `HELP`; missing keys have their defaults.

    Returns:
        The record as written: `scores` by name, `group` of each score, `cards` by group, `notes`, `checkpoint`.

    Raises:
        UserError: If the run cannot be scored with these options.
    """
    from genlab.metrics.files import file_checksum
    from genlab.runs import folder as runs
    from genlab.runs.samplers import ready_sampler
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
        name, settings, root = options["sampler"] or "prior", options["sampler_settings"], options["data.root"]
        job = Scoring(model, data, options, lambda: ready_sampler(name, settings, model, path, root, allow))
        job.work()
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
        **job.record(),
    }
    stem = f"{options['split']}-{job.extractor_name}-seed{options['seed']}"
    stem += sampler_stem(job.sampler, options["sampler_settings"])
    stem += "" if path.name == "last.ckpt" else f"-{path.stem}"
    home = folder / "scores" if (folder / "config.yaml").is_file() else Path("outputs") / "scores"
    return by_first(lambda: _keep(record, Path(options["out"] or home) / f"{stem}.json"))


def _keep(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Writes the record; keeps the other groups of an earlier record of the same checkpoint."""
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            same = before["format"] == FORMAT and before.get("checkpoint") == record.get("checkpoint")
            kept = {name: g for name, g in before["group"].items() if g not in record["cards"]} if same else {}
            record["scores"] = {**{name: before["scores"][name] for name in kept}, **record["scores"]}
            record["cards"] = {**{g: before["cards"][g] for g in kept.values()}, **record["cards"]}
            record["group"] = {**kept, **record["group"]}
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
    from genlab.judging.image_sets import load_image_sets
    from genlab.judging.sets import SetScoring
    from genlab.seeding import preserved_random_states
    from genlab.sharing import by_first, first_then_others

    options = {**DEFAULTS, **(options or {})}
    if options["sampler"] is not None:
        raise UserError(f"sampler={options['sampler']} is for run=...: the images of real= fake= exist already.")
    if options["real"] is None or options["fake"] is None:
        raise UserError("Images are scored against others: give both real=PATH and fake=PATH.")
    paths = {key: options[key] for key in ("real", "fake", "train") if options[key] is not None}
    reading = {"background": options["background"] or "white", "bits": options["bits"]}
    sets, rule = first_then_others(lambda: load_image_sets(paths, options["size"], options["skip_broken"], **reading))
    job = SetScoring(sets, options)
    with preserved_random_states(), our_keys():
        groups = job.groups()
    common = {
        "protocol": PROTOCOL,
        "genlab": genlab.__version__,
        "seed": options["seed"],
        "split": "real",
        "data": Path(options["real"]).name,
        "fingerprint": sets["real"].fingerprint,
        "shape": list(job.shape),
        "sizes": rule,
    }
    record = {
        "format": FORMAT,
        "genlab": genlab.__version__,
        "run": str(options["fake"]),
        "fake_fingerprint": sets["fake"].fingerprint,
        **record_of(groups, common, job.notes, job.seconds),
    }
    name = job.extractor.name if job.extractor is not None else "none"
    stem = f"{Path(options['fake']).resolve().stem}-vs-{Path(options['real']).resolve().stem}"
    home = Path(options["out"] or Path("outputs") / "scores")
    return by_first(lambda: _keep(record, home / f"{stem}-{name}-seed{options['seed']}.json"))


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
        for row in score_rows(record):
            table.add_row(*row)
        console.print()
        console.print(short(place), style="italic", highlight=False, markup=False, soft_wrap=True)  # a title would wrap
        console.print(table)
        for note in record["notes"]:
            console.print(f"- {note}", style="yellow", highlight=False)
        console.print(f"protocol and scores: {short(record['file'])}", highlight=False, markup=False, soft_wrap=True)
    if len(records) > 1:
        _compare(records, console)


def score_rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Title, value with spread, reference values, and number and split of the samples of each score."""
    scores, rows = record["scores"], []
    for name, value in scores.items():
        family, _, extractor = name.partition("/")
        if family.endswith(("_std", "_se", "_real", "_noised")) or family in ("nn_samples", "nn_test"):
            continue
        tail = f"/{extractor}" if extractor else ""
        spread = scores.get(f"{family}_std{tail}", scores.get(f"{family}_se{tail}"))
        text = f"{value:.4g}" if spread is None else f"{value:.4g} ± {margin(value, spread)}"
        beside = []
        if (real := scores.get(f"{family}_real{tail}")) is not None:
            beside.append(f"real {real:.4g}" if record["group"][name] != "points" else f"perfect {real:.4g}")
        if (noisy := scores.get(f"{family}_noised{tail}")) is not None:
            beside.append(f"noised {noisy:.4g}")
        card = record["cards"][record["group"][name]]
        if family == "active_units":
            beside.append(f"of {card['latent_dim']}")
        if family == "ess":
            beside.append(f"of {card['iwae_samples']}")
        if family == "ais_ess":
            beside.append(f"of {card['ais_samples']}")
        if family == "modes":
            beside.append(f"of {card['num_modes']}")
        if family == "nn_ratio":
            beside.append("unseen images 1")
        if family == "nn_copies":
            beside[:] = [f"unseen images {scores['nn_copies_real']:.4g}"]
        sizes = [f"{card[key]} {word}" for key, word in (("n_fake", "generated"), ("n_real", "real")) if key in card]
        rows.append((title_of(name), text, ", ".join(beside), ", ".join([*sizes, str(card["split"])])))
    return rows


def _compare(records: list[dict[str, Any]], console: Any) -> None:
    console.print()
    shared = [name for name in records[0]["scores"] if all(name in r["scores"] for r in records)]
    for name in (n for n in shared if kind_of(n) in BETTER):
        cards = {r["run"]: r["cards"][r["group"][name]] for r in records}
        sentence = refusal(name, cards)
        if sentence is not None:
            console.print(f"- {sentence}", style="yellow", highlight=False)
            continue
        order = sorted(records, key=lambda r: r["scores"][name], reverse=BETTER[kind_of(name)] == "higher")
        ranking = ", ".join(f"{Path(r['run']).name} {r['scores'][name]:.4g}" for r in order)
        console.print(f"- {title_of(name)} ({BETTER[kind_of(name)]} is better): {ranking}", highlight=False)
    fixed = ", ".join(REPEATED)
    console.print(f"Scores with equal cards are ranked ({fixed} may differ). For a page:", highlight=False)
    runs = [f"runs={short(r['run'] if 'checkpoint' in r else r['file'])}" for r in records]
    console.print(f"{program('report')} {shlex.join(runs)}", highlight=False, markup=False, soft_wrap=True)


def _one_line(
    message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """Prints a warning without its place in the code."""
    text = str(message).replace("metrics.num_samples", "n")
    print(f"Warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
