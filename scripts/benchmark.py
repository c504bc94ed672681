"""Times genlab's step against the same step by hand: `python scripts/benchmark.py`, or with overrides for one."""

from genlab.cli.benchmark import main

if __name__ == "__main__":
    main()
