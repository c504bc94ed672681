"""`python scripts/gallery.py`: trains every method on digits for the same CPU time and draws its pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from genlab.benchmarks.gallery import gallery, parse
from genlab.cli import app
from genlab.cli.sample import sample
from genlab.cli.visualize import visualize


def main() -> None:
    """The gallery of all methods.

    python scripts/gallery.py [rows=all] [data=digits] [seconds=60] [least=500] [seed=0] [n_jobs=1]
                              [out=docs/gallery]

    `rows` are names of models, or loss=NAME for the plain GAN with another objective, between commas. `seconds` is the
    CPU time of each training; a training with fewer than `least` iterations by then continues to that number. The runs
    go to outputs/gallery; the same command runs the missing ones. Writes OUT.md and the pictures in OUT/.
    """
    with app.errors_as_sentences():
        if app.print_if_asked(main.__doc__):
            return
        options = parse(sys.argv[1:])
        print(f"Written to {gallery(options, draw)}")


def draw(run: Path, look: str, place: Path) -> dict[str, Path]:
    """Draws one look at a run into a folder. Returns the paths by title.

    Raises:
        UserError: If the model has no such look.
    """
    if look == "samples":
        return {"64 samples": sample({"run": str(run), "out": str(place / "samples.png")})}
    return visualize({"run": str(run), "what": look, "out": str(place)})
