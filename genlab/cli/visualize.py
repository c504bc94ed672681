"""`genlab-visualize`, `python scripts/visualize.py run=...`: looks into a trained model, each look a PNG."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import genlab
from genlab.cli import app
from genlab.config.arguments import parse, take_path
from genlab.errors import UserError
from genlab.looks.looks import WHAT, Looks

if TYPE_CHECKING:
    from genlab.models.base import GenerativeModel

HELP = """genlab-visualize: look into a trained model; the pictures go to RUN/pictures/.

  genlab-visualize run=outputs/latest                      all that the model can show
  genlab-visualize run=RUN what=interpolations,traversals
  genlab-visualize run=RUN what=mirror n=4 steps=1000

What
  interpolations    from one latent to another: along the arc for normal latents, straight for uniform ones
  mirror            from the latent of a real image to that of its mirror image, both found by a search (BEGAN)
  traversals        one row per latent: it alone moves; the most active latents
  categories        rows in which a one-hot part of the latent goes through its classes (InfoGAN, categorical VAE)
  reconstructions   test images beside what the model makes of them
  neighbours        samples beside the training images nearest to them, in pixels and in features
  latent_map        codes of the test set, coloured by class; their first two principal components beyond two
  factors           how well each latent tells the known factors of the data
  frames            how samples come about, step by step (DRAW's canvas, a Gibbs chain)
  all               each of these that fits the model and the data

Keys: run, what (all), n (8: rows), seed (0), split (test), steps (500: of the search for latents),
train_images (10000: looked through for neighbours, at most), out (folder), data.root (where the data lie on this
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
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(HELP)
            return
        typed = {key: take_path(sys.argv[1:], key)[0] for key in TEXT}
        options = parse([a for a in sys.argv[1:] if a.partition("=")[0] not in TEXT], DEFAULTS)
        options |= {key: value for key, value in typed.items() if value not in (None, "null")}
        for path in visualize(options).values():
            print(path)


def visualize(options: dict[str, Any]) -> dict[str, Path]:
    """Draws what was asked for.

    Args:
        options: See `HELP`; what is missing has its default.

    Returns:
        The picture of each look that was taken.

    Raises:
        UserError: If the run cannot be read, or a look that was asked for by name does not fit it.
    """
    from genlab.looks.images import save_png
    from genlab.runs.folder import find_run
    from genlab.seeding import preserved_random_states

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
    home = Path(options["out"] or folder / "pictures")
    drawn: dict[str, Path] = {}
    left_out: list[str] = []
    with preserved_random_states():
        model = genlab.load(path, device=options["device"], allow_targets=tuple(options["allow_targets"]))
        looks = looks_into(model, options)
        for name in wanted:
            try:
                picture = getattr(looks, name)()
            except UserError as error:
                if options["what"] != "all":
                    raise
                left_out.append(f"{name}: {error}")
                continue
            drawn[name] = save_png(home / f"{name}.png", picture)
    if not drawn:
        raise UserError(f"There is nothing to show. {left_out[0]}")
    for reason in left_out:
        print(f"Left out {reason}", file=sys.stderr)
    return drawn


def looks_into(model: GenerativeModel, options: dict[str, Any]) -> Looks:
    """The looks into a loaded model, with its own data and the network that its run was judged by."""
    from genlab.judging.judge import network_of_run
    from genlab.runs.folder import load_data

    allow = tuple(options["allow_targets"])
    return Looks(
        model,
        options,
        lambda: load_data(model.run_config, options["data.root"], allow),
        lambda data: network_of_run(model.run_config.get("metrics") or {}, data, model.device),
    )


def _wanted(what: str | Sequence[str]) -> tuple[str, ...]:
    """The looks that a user names: one, several between commas, or all."""
    names = tuple(what.strip("[]").replace(" ", "").split(",")) if isinstance(what, str) else tuple(what)
    if names == ("all",):
        return WHAT
    unknown = [name for name in names if name not in WHAT]
    if unknown:
        raise UserError(f"what={unknown[0]} is unknown; choose from {', '.join(WHAT)}, all.")
    return names


if __name__ == "__main__":
    main()
