"""Counts modes that methods cover on toy mixtures at equal CPU time: `python scripts/mode_benchmark.py rows=all`."""

import _checkout  # noqa: F401

from genlab.cli.mode_benchmark import main

if __name__ == "__main__":
    main()
