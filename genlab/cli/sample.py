"""`genlab-sample`, `python scripts/sample.py run=...`: draws from a run folder alone, without its data or config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from genlab.cli import app
from genlab.config.arguments import parse, take_path
from genlab.errors import UserError

HELP = """genlab-sample: draw from a trained model.

  genlab-sample run=outputs/latest                    64 samples as a grid, samples_n64_seed0.png in the run folder
  genlab-sample run=outputs/latest n=10000 format=npz arrays `x` (uint8 images [N, H, W, C], or points) and `y`
  genlab-sample run=RUN n=500 format=images out=DIR   one PNG each
  genlab-sample run=RUN/checkpoints/best.ckpt y=3     another checkpoint; a class, where the model knows classes
  genlab-sample run=RUN sampler=drs sampler.gamma_percentile=95

Keys: run, n (64), seed (0), y, format (grid | images | npz), out, batch_size (256), device (cpu),
sampler (prior | truncated | drs | ddls | gmm | flow; settings as sampler.KEY=VALUE, see configs/sampler; what was
fitted is kept in samplers/ of the run folder), data.root (where the run's data lie, for samplers that are fitted),
allow_targets ([mypackage.*]: further parts that a stranger's config may build)."""
DEFAULTS: dict[str, Any] = {
    "run": None,
    "n": 64,
    "seed": 0,
    "y": None,
    "format": "grid",
    "out": None,
    "batch_size": 256,
    "device": "cpu",
    "allow_targets": [],
    "sampler": None,
    "sampler_settings": {},
    "data.root": None,
}


def main() -> None:
    """The command line."""
    with app.errors_as_sentences():
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(HELP)
            return
        options = read_options(sys.argv[1:])
        path = sample(options)
        print(f"{options['n']} samples in {path}")


def read_options(arguments: list[str]) -> dict[str, Any]:
    """The options of the command line over `DEFAULTS`.

    Raises:
        UserError: If a key is unknown or a value has the wrong type.
    """
    from genlab.config.samplers import take_sampler

    name, settings, rest = take_sampler(arguments)
    root, rest = take_path(rest, "data.root")
    known = {key: value for key, value in DEFAULTS.items() if key != "sampler_settings"}
    return {**parse(rest, known), "sampler": name, "sampler_settings": settings, "data.root": root}


def sample(options: dict[str, Any]) -> Path:
    """Draws samples and writes them.

    Args:
        options: See `HELP`.

    Returns:
        The file or folder that was written.

    Raises:
        UserError: If the run cannot be sampled from as asked.
    """
    import torch
    from rich.progress import track

    import genlab
    from genlab.runs.folder import find_run
    from genlab.runs.samplers import ready_sampler

    options = {**DEFAULTS, **options}
    n, kind = options["n"], options["format"]
    if options["run"] is None:
        raise UserError("Say what to draw from: run=outputs/latest, another run folder, or a .ckpt file.")
    if n < 1 or options["batch_size"] < 1:
        raise UserError(f"n and batch_size must be at least 1, got {n} and {options['batch_size']}.")
    if kind not in ("grid", "images", "npz"):
        raise UserError(f"format must be grid, images or npz, got {kind!r}.")
    name = options["sampler"] or "prior"
    folder, checkpoint = find_run(options["run"])
    allow = tuple(options["allow_targets"])
    model = genlab.load(options["run"], device=options["device"], allow_targets=allow)
    if not model.can("sample"):
        raise UserError(f"{type(model).__name__} cannot draw samples: it has no `sample`.")
    y = options["y"]
    classes = model.spec.num_classes
    if y is not None and not getattr(model, "conditional", False):
        raise UserError(f"{type(model).__name__} knows no classes, so y={y} means nothing to it. Leave it out.")
    if y is not None and not (isinstance(y, int) and classes and 0 <= y < classes):
        raise UserError(f"y must be a class from 0 to {(classes or 0) - 1}, got {y!r}.")
    settings, root = options["sampler_settings"], options["data.root"]
    sampler = ready_sampler(name, settings, model, checkpoint, root, allow)
    rng = torch.Generator().manual_seed(options["seed"])
    parts = []
    sizes = [min(options["batch_size"], n - i) for i in range(0, n, options["batch_size"])]
    for size in track(sizes, description="drawing", disable=len(sizes) < 4):
        labels = None if y is None else torch.full((size,), y, device=model.device)
        parts.append(sampler.sample(model, size, y=labels, rng=rng).cpu())
    if sampler.report:
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in sampler.report.items()))
    stem = f"samples_n{n}_seed{options['seed']}" + ("" if y is None else f"_y{y}")
    stem += "" if name == "prior" else f"_{name}"
    return write(model.spec, torch.cat(parts), y, kind, options["out"], folder / stem)


def write(spec: Any, x: Any, y: int | None, kind: str, out: str | None, default: Path) -> Path:
    """Writes samples as a grid, as single images or as an npz.

    Args:
        spec: What the samples are.
        x: Samples [N, ...].
        y: Their class, None without.
        kind: "grid", "images" or "npz".
        out: Where, None for the default.
        default: The default place, without a suffix.
    """
    import numpy as np

    from genlab.files import write_atomic
    from genlab.looks.images import save_png
    from genlab.looks.pictures import sample_picture

    if kind == "grid":
        path = Path(out or default.with_suffix(".png"))
        save_png(path, sample_picture(spec, x))
        return path
    images = spec.kind == "image"
    array = spec.render(x).permute(0, 2, 3, 1).numpy() if images else x.numpy()
    if kind == "npz":
        path = Path(out or default.with_suffix(".npz"))
        labels = np.full(len(array), -1 if y is None else y)
        write_atomic(path, lambda file: np.savez_compressed(file, x=array, y=labels))
        return path
    if not images:
        raise UserError(f"Samples of kind {spec.kind!r} are no images. Try format=npz.")
    folder = Path(out or default)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(array):
        save_png(folder / f"{i:06d}.png", image)
    return folder
