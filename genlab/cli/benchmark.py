"""`python scripts/benchmark.py`, `make benchmark`: times genlab against the same step by hand and others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from genlab.benchmarks.speed import Case, measure, print_peak, standard_cases, tables
from genlab.cli import app
from genlab.config.arguments import take_path
from genlab.errors import UserError


def main() -> None:
    """Benchmark of compositions, or of the standard set without any.

    python scripts/benchmark.py [seconds=25] [out=outputs/benchmark] [mnist=FOLDER] [images=FOLDER] [overrides ...]

    `seconds` go to each composition's rounds; `mnist` holds the two files of data=mnist10k (for the race with pythae),
    `images` is a folder whose images are used in the race of data pipelines, else photographs that come with
    scikit-learn. What overrides compose is measured as it is, or, if they do not name speed, with both presets.
    """
    with app.errors_as_sentences():
        arguments = sys.argv[1:]
        if {"-h", "--help"} & set(arguments):
            print(main.__doc__)
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
