"""The gallery: every method on real digits for the same CPU time, with 64 samples and further pictures of each.

`python scripts/gallery.py` trains missing runs, one or several at a time, and writes a page and a folder of pictures.
A row is a model, or an objective of the plain GAN; all rows follow from the files of `configs`.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from genlab.config import composition, shipped
from genlab.config.arguments import expanded
from genlab.config.instantiate import locate
from genlab.errors import UserError
from genlab.runs import folder as runs

Draw = Callable[[Path, str, Path], dict[str, Path]]
RUNS = Path("outputs") / "gallery"
QUALITY = 75  # of the WebP files
WIDTH = 16  # of networks for large images, whose default width would allow few iterations
LOOKS = ("reconstructions", "traversals", "categories")  # drawn besides samples if the model supports them
DEFAULTS: dict[str, Any] = {
    "rows": "all",
    "data": "digits",
    "seconds": 60,
    "least": 500,
    "seed": 0,
    "n_jobs": 1,
    "out": "docs/gallery",
}


@dataclass(frozen=True)
class Row:
    """One training of the gallery: its name, title and overrides."""

    name: str
    title: str
    overrides: tuple[str, ...]
    looks: bool = True  # whether `LOOKS` are drawn besides samples
    own_data: bool = False  # whether its config fixes the data


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parses options over `DEFAULTS`.

    Raises:
        UserError: If a key or row is unknown, or a number is invalid.
    """
    options = dict(DEFAULTS)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options:
            raise UserError(f"{argument!r} is no option; there are {', '.join(options)}.")
        if isinstance(DEFAULTS[key], int):
            if not value.isdigit() or (int(value) < 1 and key != "seed"):
                raise UserError(f"{key} must be a whole number of at least 1, got {value!r}.")
            options[key] = int(value)
        else:
            options[key] = expanded(value) if key == "out" else value
    known = {row.name: row for row in rows()}
    names = list(known) if options["rows"] == "all" else options["rows"].split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"There is no row {unknown[0]!r}; there are {', '.join(known)}.")
    options["rows"] = [known[name] for name in names]
    return options


def rows() -> list[Row]:
    """A row for each model that trains by itself, and for each objective of the plain GAN."""
    from genlab.losses.adversarial import AdversarialLoss

    found = []
    for name in shipped.options("model"):
        network = composition.insisted(name, "network")
        small = (f"network.width={WIDTH}",) if network and "width" in shipped.read_option("network", network) else ()
        own = composition.insisted(name, "data") is not None
        found.append(Row(name, composition.first_line("model", name), (f"model={name}", *small), own_data=own))
    for loss in shipped.options("loss"):
        kind = locate(str(shipped.read_option("loss", loss)["_target_"]), "loss")
        if issubclass(kind, AdversarialLoss):
            found.append(
                Row(f"loss={loss}", composition.first_line("loss", loss), ("model=gan", f"loss={loss}"), looks=False)
            )
    return found


def command(row: Row, options: dict[str, Any], steps: int | None = None) -> list[str]:
    """The arguments that train a row for its CPU seconds or, if `steps` is given, for so many iterations."""
    timed = [f"max_cpu_time={options['seconds']}", "trainer.max_steps=10000000"]
    budget = timed if steps is None else [f"trainer.max_steps={steps}"]
    data = [] if row.own_data else [f"data={options['data']}"]
    return [*row.overrides, *data, *budget, f"seed={options['seed']}", "trainer=cpu", "threads=1", "metrics=none"]


def gallery(options: dict[str, Any], draw: Draw) -> Path:
    """Trains missing runs, draws all pictures, and writes the page; returns its path.

    Args:
        options: Options from `parse`.
        draw: Draws one kind of picture ("samples", or one of `LOOKS`) of a run into a folder; returns paths by title.
    """
    with ThreadPoolExecutor(options["n_jobs"]) as pool:
        folders = list(pool.map(lambda row: trained(row, options), options["rows"]))
    home = Path(options["out"])
    home.mkdir(parents=True, exist_ok=True)
    parts = [entry(row, folder, home, options, draw) for row, folder in zip(options["rows"], folders, strict=True)]
    page = home.with_suffix(".md")
    page.write_text("\n".join([HEAD.format(**options), *parts]))
    return page


def trained(row: Row, options: dict[str, Any]) -> Path | None:
    """The folder of a row's finished run, trained if it is missing; None if training fails."""
    folder = RUNS / f"{row.name.replace('=', '_')}_{options['data']}_{options['seconds']}s_seed{options['seed']}"
    if not done(folder) and not timed_out(folder, options):
        print(f"{row.name}: {shlex.join(command(row, options))}", flush=True)
        rest = ["logger=csv", "callbacks=none", f"hydra.run.dir={folder}", "resume=auto"]
        if not goes(row.name, [*command(row, options), *rest]):
            return None
    least = options["least"]
    if timed_out(folder, options) and int(runs.record_of(folder)["iterations"]) < least:
        print(f"{row.name} goes on to {least:,} iterations", flush=True)
        if not goes(row.name, [f"resume={folder}", "max_cpu_time=null", f"trainer.max_steps={least}"]):
            return None
    return folder


def done(folder: Path) -> bool:
    """Whether a run is finished."""
    return bool((runs.record_of(folder).get("sessions") or [{}])[-1].get("status") == "done")


def timed_out(folder: Path, options: dict[str, Any]) -> bool:
    """Whether a run has used up its CPU seconds; PCA is done before."""
    return float(runs.record_of(folder).get("cpu_seconds") or 0) >= options["seconds"]


def steps_of(folder: Path | None) -> int | None:
    """The iterations to which a run continued after its CPU seconds, from its config; None if it did not."""
    config = {} if folder is None else runs.read_config(folder)
    return int(config["trainer"]["max_steps"]) if config and config["max_cpu_time"] is None else None


def goes(name: str, arguments: list[str]) -> bool:
    """Trains in a subprocess; on failure prints its last line of output and returns False."""
    ended = subprocess.run(
        [sys.executable, "-m", "genlab.cli.train", *arguments], check=False, capture_output=True, text=True
    )
    if ended.returncode:
        print(f"{name} failed: {(ended.stderr or ended.stdout).strip().splitlines()[-1:]}", file=sys.stderr)
    return ended.returncode == 0


def entry(row: Row, folder: Path | None, home: Path, options: dict[str, Any], draw: Draw) -> str:
    """Draws the pictures of one row, and returns its part of the page."""
    arguments = command(row, options, steps_of(folder))
    told = f"\n## `{row.name}`\n\n{row.title}\n\n    python train.py {shlex.join(arguments)}\n"
    if folder is None:
        return f"{told}\nThis training failed.\n"
    pictures: dict[str, Path] = {}
    name = row.name.replace("=", "_")
    with TemporaryDirectory() as place:
        try:
            drawn = draw(folder, "samples", Path(place))
        except UserError as error:
            drawn = {}
            told += f"\nNo samples: {error}\n"
        for look in LOOKS if row.looks else ():
            with contextlib.suppress(UserError):  # the model does not support it
                drawn |= draw(folder, look, Path(place))
        for look, path in drawn.items():
            pictures[look] = smaller(path, home / f"{name}_{look.removeprefix('64 ')}.webp")
    length = int(runs.record_of(folder)["iterations"])
    images = "\n".join(f"![{look} of {row.name}]({home.name}/{path.name})" for look, path in pictures.items())
    return f"{told}\n{length:,} iterations.\n\n{images}\n"


def smaller(path: Path, to: Path) -> Path:
    """Saves a picture at half its size as WebP, which takes a tenth of the space; returns its path."""
    from PIL import Image

    with Image.open(path) as picture:
        half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
        half.save(to, quality=QUALITY, method=6)
    return to


HEAD = """# Gallery

Every method of genlab on `data={data}` (or on data of its own, if it needs them), with seed {seed}. Each run has
{seconds} s of CPU time of one thread, or {least:,} iterations if these take longer. Other work on the machine slows the
iterations per second, not the number of seconds. Settings are the defaults, except for a smaller width of networks for
large images; nothing is tuned for the pictures, and failures are shown. Each method has 64 samples of the seed's noise;
methods with an encoder also have test images beside their reconstructions, and rows that vary one latent each. Written
by `python scripts/gallery.py`.
"""
