"""`genlab-report`, `python scripts/report.py runs=...`: one page about runs: common settings, differences, scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from genlab.cli import app
from genlab.commands import short
from genlab.config.arguments import parse, take_path, take_paths
from genlab.reports.page import write
from genlab.reports.report import collect, draw_boxes, home_of, markdown

HELP = """genlab-report: compare runs on one page and in one table.

  genlab-report runs=outputs/latest                     report.html and report.md in the run folder
  genlab-report runs=outputs/multirun_2026-01-01        every run of a sweep, seeds averaged
  genlab-report runs=RUN_A runs=RUN_B out=compare.html  several; a score file (scores/*.json) for a set of images
  genlab-report runs=DIR by=model                       all runs of a method together, whatever their settings; and
                                                        report.png, for every score a box plot of each method's runs

Scores come from genlab-evaluate (scores/*.json in a run folder), else from the run itself. Scores whose protocol
cards differ or are missing are shown, but not ranked. The page needs no network and no other file."""
DEFAULTS: dict[str, Any] = {"runs": None, "out": None, "by": None}


def main() -> None:
    """The command line."""
    with app.errors_as_sentences():
        arguments = sys.argv[1:]
        if app.print_if_asked(HELP):
            return
        named = take_paths(arguments, "runs")
        out, rest = take_path([a for a in arguments if not a.startswith("runs=")], "out")
        by = parse(rest, DEFAULTS)["by"]
        report = collect(named, by)
        page = Path(out or home_of(named) / "report.html")
        write(report, page)
        print(markdown(report))
        print(f"In {short(page)} (open it in a browser) and {short(page.with_suffix('.md'))}.")
        if by:
            print(f"The boxes are in {short(draw_boxes(report, page.with_suffix('.png')))}.")


if __name__ == "__main__":
    main()
