"""Times genlab's step against hand-written ones: `python scripts/benchmark.py [overrides]`."""

from genlab.cli.benchmark import main

if __name__ == "__main__":
    main()
