"""Exports a model's weights and sampler: `python scripts/export.py run=outputs/latest`."""

from genlab.cli.export import main

if __name__ == "__main__":
    main()
