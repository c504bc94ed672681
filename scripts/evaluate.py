"""Scores runs or sets of images: `python scripts/evaluate.py run=outputs/latest`, `... real=A fake=B`."""

import _checkout  # noqa: F401

from genlab.cli.evaluate import main

if __name__ == "__main__":
    main()
