"""Writes a page that compares runs: `python scripts/report.py runs=outputs/multirun_...`."""

import _checkout  # noqa: F401

from genlab.cli.report import main

if __name__ == "__main__":
    main()
