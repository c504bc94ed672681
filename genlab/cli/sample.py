"""`genlab-sample`, `python scripts/sample.py run=...`: draws samples of a trained model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli import app
from genlab.commands import short
from genlab.config.arguments import near_key, parse, take_path
from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.batch import Batch
    from genlab.data.derive import Derivation
    from genlab.data.spec import DataSpec
    from genlab.fields.base import Field
    from genlab.models.base import GenerativeModel
    from genlab.sampling.base import Sampler

log = logging.getLogger("genlab")
HELP = """genlab-sample: draw from a trained model.

  genlab-sample run=outputs/latest                    64 samples as a grid, samples_n64_seed0.png in the run folder
  genlab-sample run=outputs/latest n=10000 format=npz arrays: `x` (uint8 images [N, H, W, C], or points), conditions
  genlab-sample run=RUN n=500 format=images out=DIR   one PNG each
  genlab-sample run=RUN n=500 format=files            files of the samples' kind: png, gif, wav, svg, txt
  genlab-sample run=RUN/checkpoints/best.ckpt y=3     another checkpoint; a class, for a model that is given classes
  genlab-sample run=RUN n=80 y=each                   all classes, one row each; also y=3,5
  genlab-sample run=RUN x=PHOTO_OR_FOLDER             pictures from which the given column is made (derive=half, ...)
  genlab-sample run=RUN sampler=drs sampler.gamma_percentile=95

Keys: run, n (64), seed (0), each column that the model is given (rows of the test split if left out),
format (grid | images | files | npz), out, batch_size (256), device (cpu),
sampler (prior | truncated | drs | ddls | gmm | flow; settings as sampler.KEY=VALUE, see configs/sampler; fitted
samplers are kept in samplers/ of the run folder), data.root (folder of the run's data, for samplers that are fitted),
allow_targets ([mypackage.*]: further targets that a stranger's config may build)."""
FORMATS = ("grid", "images", "files", "npz")
DEFAULTS: dict[str, Any] = {
    "run": None,
    "n": 64,
    "seed": 0,
    "format": "grid",
    "out": None,
    "batch_size": 256,
    "device": "cpu",
    "allow_targets": [],
    "sampler": None,
    "sampler_settings": {},
    "data.root": None,
    "columns": {},
}
OPTIONS = tuple(key for key in DEFAULTS if key not in ("sampler_settings", "columns"))  # those that are typed


def main() -> None:
    """The command line."""
    with app.errors_as_sentences(), app.log_lines():
        if app.print_if_asked(HELP):
            return
        options = read_options(sys.argv[1:])
        path = sample(options)
        print(f"{options['n']} samples in {short(path)}")


def read_options(arguments: list[str]) -> dict[str, Any]:
    """The options of the command line over `DEFAULTS`.

    Raises:
        UserError: If a key is unknown or a value has the wrong type.
    """
    from genlab.config.samplers import take_sampler

    name, settings, rest = take_sampler(arguments)
    root, rest = take_path(rest, "data.root")
    known = {key: DEFAULTS[key] for key in OPTIONS}
    columns: dict[str, str] = {}
    options = parse(rest, known, columns)
    return {**options, "columns": columns, "sampler": name, "sampler_settings": settings, "data.root": root}


def sample(options: dict[str, Any]) -> Path:
    """Draws samples and writes them.

    Args:
        options: See `HELP`.

    Returns:
        The file or folder that was written.

    Raises:
        UserError: If no samples can be drawn with these options.
    """
    from genlab.runs.folder import find_run

    options = {**DEFAULTS, **options}
    n, form = options["n"], options["format"]
    if options["run"] is None:
        raise UserError("Say what to draw from: run=outputs/latest, another run folder, or a .ckpt file.")
    if n < 1 or options["batch_size"] < 1:
        raise UserError(f"n and batch_size must be at least 1, got {n} and {options['batch_size']}.")
    if form not in FORMATS:
        raise UserError(f"format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {form!r}.")
    name = options["sampler"] or "prior"
    folder, checkpoint = find_run(options["run"])
    import torch

    import genlab
    from genlab.runs.samplers import ready_sampler

    allow = tuple(options["allow_targets"])
    model = genlab.load(options["run"], device=options["device"], allow_targets=allow)
    if not model.can("sample"):
        raise UserError(f"{type(model).__name__} cannot draw samples: it has no `sample`.")
    settings, root = options["sampler_settings"], options["data.root"]
    given = conditions(model, options["columns"], n, options["seed"], root, allow)
    rng = torch.Generator().manual_seed(options["seed"])
    with app.bars() as show:
        sampler = ready_sampler(name, settings, model, checkpoint, root, allow, show)
        x = draw(sampler, model, n, options["batch_size"], given, rng, show)
    if sampler.report:
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in sampler.report.items()))
    typed = "".join(f"_{column}{_for_files(text)}" for column, text in options["columns"].items())
    stem = f"samples_n{n}_seed{options['seed']}{typed}"
    stem += "" if name == "prior" else f"_{name}"
    return write(model.spec, x, given, form, options["out"], folder / stem)


def draw(
    sampler: Sampler,
    model: GenerativeModel,
    n: int,
    batch_size: int,
    given: Batch | None,
    rng: Any,
    show: Callable[[str, float], None],
) -> Any:
    """n samples on the CPU, drawn in batches.

    Args:
        sampler: Fitted to the model.
        model: The loaded model.
        n: Number of samples.
        batch_size: Samples of a batch.
        given: Conditions [n], None without.
        rng: Random stream.
        show: Function of a name and the share of all samples that are drawn, in [0, 1].
    """
    from genlab.batch import joined

    parts = []
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        sampler.progress = partial(_of_all, show, start / n, size / n)
        told = None if given is None else given.rows(slice(start, start + size)).to(model.device)
        parts.append(sampler.sample(model, size, given=told, rng=rng).to("cpu"))
        show("drawing", (start + size) / n)
    return joined(parts)


def _of_all(show: Callable[[str, float], None], before: float, part: float, what: str, share: float) -> None:
    """Shows the share of a batch, which is a part of all samples, as a share of all."""
    show(what, before + share * part)


def conditions(
    model: GenerativeModel, typed: dict[str, str], n: int, seed: int, root: str | None, allow: tuple[str, ...]
) -> Batch | None:
    """The columns [n] that samples are given: as they were typed, the others from rows of the run's test split.

    Those that the model draws itself are left out where they are not typed.

    Args:
        model: The loaded model.
        typed: Texts by column. `x` stands for a picture from which the derived columns are made.
        n: Number of samples.
        seed: Seed of the choice of rows.
        root: Where the run's data lie on this machine; None where the run found them.
        allow: As for `genlab.load`.

    Raises:
        UserError: If a column is not one of the model's, a text is no value of it, or the data are needed and missing.
    """
    import torch

    from genlab.batch import Batch
    from genlab.config.instantiate import derivations
    from genlab.data.derive import derived
    from genlab.runs.folder import load_data

    derive = derivations(model.run_config)
    made = {key: one for key, one in derive.items() if key in model.given and one.of in typed}
    for key, text in typed.items():
        if key not in (*model.given, *model.fills) and not any(one.of == key for one in made.values()):
            near = near_key(key, OPTIONS)
            if near is not None and key not in model.spec.fields:
                raise UserError(f"'{key}={text}' is not understood. Did you mean {near}=?")
            told = f"is given {', '.join(model.given)}" if model.given else "is given nothing"
            raise UserError(f"{key}={text}: {type(model).__name__} {told}, so {key} means nothing to it. Leave it out.")
    if not model.given:
        return None
    found: dict[str, Any] = {}
    for key, text in typed.items():
        found[key] = _parsed(model.spec.fields[key], key, text, n, derive)
        if key in made:
            raise UserError(f"{key} is made of {made[key].of}, and both are typed. Leave one of them out.")
    batch = derived(Batch(found), made, (f"{seed}.{i}" for i in range(n))) if made else Batch(found)
    missing = [name for name in model.given if name not in batch and name not in model.fills]
    if missing:
        rng = torch.Generator().manual_seed(seed)
        try:
            rows = load_data(model.run_config, root, allow).given_rows("test", missing, n, rng)
        except UserError as error:
            raise UserError(f"Say {missing[0]}=..., or let rows of the run's data be taken. {error}") from error
        batch = Batch({**batch.columns, **rows.columns})
    return batch.only([name for name in dict.fromkeys((*model.given, *model.fills)) if name in batch])


def _parsed(field: Field, key: str, text: str, n: int, derive: Mapping[str, Derivation]) -> Any:
    """n values of a column that was typed; says how pictures of another size were made to fit.

    Raises:
        UserError: Names the column, and of a derived one the other that it is made of.
    """
    try:
        values, fitting = field.parse(text, n), field.fitting(text, n)
    except UserError as error:
        of = derive[key].of if key in derive else None
        raise UserError(f"{key}={text}: {error}.{f' It is made of {of}: try {of}=FILE.' if of else ''}") from error
    if fitting:
        log.info("%s=%s: %s.", key, text, fitting)
    return values


def _for_files(text: str) -> str:
    """A typed value as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-," else "-" for c in Path(text).name)[:40]


def write(spec: DataSpec, x: Any, given: Batch | None, form: str, out: str | None, default: Path) -> Path:
    """Writes samples as a grid, as files of their kind or as an npz.

    Args:
        spec: Description of the samples.
        x: Samples [N, ...].
        given: Their conditions, None without.
        form: "grid", "files" (pictures: "images"), or "npz": sequences joined, with where each starts as `x_offsets`.
        out: File or folder; None for the default.
        default: Path of the default, without a suffix.
    """
    import numpy as np

    from genlab.batch import Seq
    from genlab.fields.drawing import save_png
    from genlab.fields.sequences import flattened
    from genlab.files import write_atomic
    from genlab.looks.sheets import told_sheet

    if form == "grid":
        path = Path(out or default.with_suffix(".png"))
        save_png(path, told_sheet(spec, x, given))
        return path
    if form == "npz":
        columns = {"x": spec.render(x).permute(0, 2, 3, 1) if spec.images else x, **(given.columns if given else {})}
        arrays: dict[str, np.ndarray] = {}
        for name, column in columns.items():
            if isinstance(column, Seq):
                flat, offsets = flattened(column)
                arrays |= {name: flat.numpy(), f"{name}_offsets": offsets.numpy()}
            else:
                arrays[name] = column.numpy()
        path = Path(out or default.with_suffix(".npz"))
        write_atomic(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
        return path
    if form == "images" and not spec.x.pictured:
        raise UserError(f"Samples of kind {spec.x.kind!r} are no images. Try format=files or format=npz.")
    return spec.x.write(x, Path(out or default))
