"""Exports a model's weights and sampler: `python scripts/export.py run=outputs/latest`."""

import _checkout  # noqa: F401

from genlab.cli.export import main

if __name__ == "__main__":
    main()
