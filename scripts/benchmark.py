"""Times genlab's step against hand-written ones: `python scripts/benchmark.py [overrides]`."""

import _checkout  # noqa: F401

from genlab.cli.benchmark import main

if __name__ == "__main__":
    main()
