"""Draws pictures of a trained model: `python scripts/visualize.py run=outputs/latest what=interpolations`."""

import _checkout  # noqa: F401

from genlab.cli.visualize import main

if __name__ == "__main__":
    main()
