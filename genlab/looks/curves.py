"""Training curves, read from `metrics.csv`. Free of torch."""

from __future__ import annotations

import csv
from pathlib import Path


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves in a `metrics.csv`: name to (iterations, values)."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            steps, values = curves.setdefault(row["metric"], ([], []))
            steps.append(int(row["step"]))
            values.append(float(row["value"]))
    return curves
