"""Draws samples from a trained model: `python scripts/sample.py run=outputs/latest n=64`."""

import _checkout  # noqa: F401

from genlab.cli.sample import main

if __name__ == "__main__":
    main()
