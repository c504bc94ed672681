"""`python scripts/benchmark.py`, `make benchmark`: times genlab against hand-written steps and other libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from genlab.benchmarks.speed import Case, measure, print_peak, standard_cases, tables
from genlab.cli import app
from genlab.config.arguments import take_path
from genlab.errors import UserError


def main() -> None:
    """Times the composition that the overrides name, or without overrides the standard set.

    python scripts/benchmark.py [seconds=25] [out=outputs/benchmark] [mnist=FOLDER] [images=FOLDER] [overrides ...]

    `seconds` is the time for each composition's rounds. `mnist` is the folder with the two files of data=mnist10k, for
    the comparison with pythae. `images` is the folder of images for the comparison of data pipelines; by default
    photographs of scikit-learn. Without `speed.` among the overrides, the composition is timed with both presets.
    """
    with app.errors_as_sentences():
        arguments = sys.argv[1:]
        if app.print_if_asked(main.__doc__):
            return
        peak, arguments = take_path(arguments, "peak")
        if peak is not None:
            return print_peak(peak, arguments)
        seconds, arguments = _seconds(arguments)
        out, arguments = take_path(arguments, "out")
        mnist, arguments = take_path(arguments, "mnist")
        images, arguments = take_path(arguments, "images")
        if arguments:
            presets = {"as given": ()} if any(a.startswith("speed.") for a in arguments) else Case("", ()).presets
            results = {"steps": [measure(Case(" ".join(arguments), tuple(arguments), presets), seconds)], "data": []}
        else:
            results = standard_cases(seconds, mnist, None if images is None else Path(images))
        folder = Path(out or "outputs/benchmark")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n")
        (folder / "benchmark.md").write_text(tables(results))
        print(tables(results))
        print(f"Written to {folder}/benchmark.json and benchmark.md")


def _seconds(arguments: list[str]) -> tuple[float, list[str]]:
    text, arguments = take_path(arguments, "seconds")
    try:
        seconds = float(text or 25)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e5:
        raise UserError(f"seconds must be a positive number, got {text!r}. Try seconds=25.")
    return seconds, arguments
