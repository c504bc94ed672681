"""Trains the classifier for the scores of a data set: `python scripts/train_classifier.py data=digits`."""

import _checkout  # noqa: F401

from genlab.cli.train_classifier import main

if __name__ == "__main__":
    main()
