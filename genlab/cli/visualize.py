"""`genlab-visualize`, `python scripts/visualize.py run=...`: draws pictures of a trained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import genlab
from genlab.cli import app
from genlab.commands import short
from genlab.config.arguments import parse, take_path
from genlab.errors import UserError
from genlab.looks.looks import WHAT, Looks, Unfit

if TYPE_CHECKING:
    from genlab.models.base import GenerativeModel

HELP = """genlab-visualize: draw pictures of a trained model; they go to RUN/pictures/.

  genlab-visualize run=outputs/latest                      every picture that fits the model
  genlab-visualize run=RUN what=interpolations,traversals
  genlab-visualize run=RUN what=mirror n=4 steps=1000

What
  interpolations    from one latent to another: along the arc for normal latents, straight for uniform ones
  mirror            from the latent of a real image to that of its mirror image, both found by a search (BEGAN)
  traversals        one row for each of the most active latents, which alone varies
  categories        rows in which a one-hot part of the latent takes each class (InfoGAN, categorical VAE)
  classes           samples of each class that the model can be told, in a row
  swaps             one latent in a row, decoded under every class; the codes of test images if the model encodes
  sweep             rows in which one given attribute goes from end to end, with latent and rest fixed
  draws             several samples of each condition, beside it and the real sample (completions, ...)
  reconstructions   test images beside their reconstructions
  neighbours        samples beside the training images nearest to them, in pixels and in features
  latent_map        codes of the test set, coloured by class; above two dimensions the first two principal components
  factors           |correlation| of each latent with the known factors of the data
  frames            samples at the steps of their generation (DRAW's canvas, a Gibbs chain)
  all               each of these that fits the model and the data

Keys: run, what (all), n (8: rows), seed (0), split (test), steps (500: of the search for latents),
train_images (10000: most images searched for neighbours), out (folder), data.root (folder of the data on this
machine), device (cpu), allow_targets ([mypackage.*])"""
TEXT = ("run", "what", "out", "data.root")
DEFAULTS: dict[str, Any] = {
    "run": None,
    "what": "all",
    "n": 8,
    "seed": 0,
    "split": "test",
    "steps": 500,
    "train_images": 10_000,
    "out": None,
    "data.root": None,
    "device": "cpu",
    "allow_targets": [],
}


def main() -> None:
    """The command line."""
    with app.errors_as_sentences():
        if app.print_if_asked(HELP):
            return
        typed = {key: take_path(sys.argv[1:], key)[0] for key in TEXT}
        options = parse([a for a in sys.argv[1:] if a.partition("=")[0] not in TEXT], DEFAULTS)
        options |= {key: value for key, value in typed.items() if value not in (None, "null")}
        for path in visualize(options).values():
            print(short(path))


def visualize(options: dict[str, Any]) -> dict[str, Path]:
    """Draws the wanted pictures.

    Args:
        options: See `HELP`; missing keys have their defaults.

    Returns:
        The path of each picture, by its name.

    Raises:
        UserError: If the run cannot be read, or a picture that was asked for by name does not fit the model or data.
    """
    from genlab.runs.folder import find_run

    options = {**DEFAULTS, **options}
    wanted = _wanted(options["what"])
    if options["run"] is None:
        raise UserError("Say what to look into: run=outputs/latest, another run folder, or a .ckpt file.")
    for key, least in (("n", 1), ("steps", 1), ("train_images", 1)):
        if options[key] < least:
            raise UserError(f"{key} must be at least {least}, got {options[key]}.")
    if options["split"] not in ("train", "val", "test"):
        raise UserError(f"split must be train, val or test, got {options['split']!r}.")
    folder, path = find_run(options["run"])
    from genlab.fields.drawing import save_png  # imports torch, as does all below: only for a run that is there
    from genlab.seeding import preserved_random_states

    home = Path(options["out"] or folder / "pictures")
    drawn: dict[str, Path] = {}
    left_out: dict[str, UserError] = {}
    with preserved_random_states():
        model = genlab.load(path, device=options["device"], allow_targets=tuple(options["allow_targets"]))
        looks = looks_into(model, options)
        for name in wanted:
            try:
                picture = getattr(looks, name)()
            except UserError as error:
                if options["what"] != "all":
                    raise
                left_out[name] = error
                continue
            drawn[name] = save_png(home / f"{name}.png", picture)
    if not drawn:
        raise UserError(f"There is nothing to show. {next(iter(left_out.values()))}")
    for line in _reasons(left_out):
        print(line, file=sys.stderr)
    return drawn


def _reasons(left_out: dict[str, UserError]) -> list[str]:
    """The pictures that were not drawn: those that do not fit on one line, and a line for each other reason."""
    unfit = [name for name, error in left_out.items() if isinstance(error, Unfit)]
    named = f"Left out, since they do not fit: {', '.join(unfit)} (what={unfit[0]} tells why)" if unfit else None
    others: dict[str, list[str]] = {}
    for name, error in left_out.items():
        if name not in unfit:
            others.setdefault(str(error), []).append(name)
    lines = [f"Left out: {', '.join(names)}. {reason}" for reason, names in others.items()]
    return [*([named] if named else []), *lines]


def looks_into(model: GenerativeModel, options: dict[str, Any]) -> Looks:
    """The pictures of a loaded model, with its run's data and feature extractor."""
    from genlab.extractors.choice import network_of_run
    from genlab.runs.folder import load_data

    allow = tuple(options["allow_targets"])
    return Looks(
        model,
        options,
        lambda: load_data(model.run_config, options["data.root"], allow),
        lambda data: network_of_run(model.run_config.get("metrics") or {}, data, model.device),
    )


def _wanted(what: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the wanted pictures: one, several between commas, or all."""
    names = tuple(what.strip("[]").replace(" ", "").split(",")) if isinstance(what, str) else tuple(what)
    if names == ("all",):
        return WHAT
    unknown = [name for name in names if name not in WHAT]
    if unknown:
        raise UserError(f"what={unknown[0]} is unknown; choose from {', '.join(WHAT)}, all.")
    return names


if __name__ == "__main__":
    main()
