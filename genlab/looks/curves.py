"""Training curves, read from `metrics.csv`. Free of torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FEWEST = 40  # points of a curve that is smoothed
WINDOW = 0.1  # of a curve's points in a mean
NOISE = 0.1  # standard deviation around the means, relative to their range, from which on a curve is noisy


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves in a `metrics.csv`: name to (iterations, values)."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            steps, values = curves.setdefault(row["metric"], ([], []))
            steps.append(int(row["step"]))
            values.append(float(row["value"]))
    return curves


def smoothed(values: Sequence[float]) -> list[float] | None:
    """Moving means of a noisy curve; None for a curve of few points or little noise.

    Args:
        values: Equally spaced values; those that are not finite are passed over.

    Returns:
        At each point the mean of the values around it, over a tenth of the curve; NaN where none is finite.
    """
    found = np.asarray(values, dtype=float)
    finite = np.isfinite(found)
    if finite.sum() < FEWEST:
        return None
    half = max(1, round(WINDOW * len(found) / 2))
    places = np.arange(len(found))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(found))
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, found, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    with np.errstate(invalid="ignore"):
        means = (sums[high] - sums[low]) / (counts[high] - counts[low])
    around = np.std((found - means)[finite])
    return means.tolist() if around > NOISE * (np.nanmax(means) - np.nanmin(means)) else None
