"""Draws the pictures of every method, trained on digits for the same CPU time: `python scripts/gallery.py`."""

import _checkout  # noqa: F401

from genlab.cli.gallery import main

if __name__ == "__main__":
    main()
