"""Nearest neighbours of a few images in a large set, to detect a generator that copies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from genlab.metrics.scores import distances


def nearest(queries: Tensor, parts: Iterable[Tensor], k: int = 5) -> tuple[Tensor, Tensor]:
    """The k elements of a set nearest to each query, by Euclidean distance in float64.

    Args:
        queries: Images, points or features, [N, ...].
        parts: The set, part by part, [M_i, ...] each, so that it need not be in memory at once.
        k: Number of neighbours; fewer if the set is smaller.

    Returns:
        Positions in the set [N, k], nearest first, and distances [N, k].

    Raises:
        ValueError: If the set is empty.
    """
    flat = queries.flatten(1).cpu()
    best: tuple[Tensor, Tensor] | None = None
    start = 0
    for part in parts:
        here = distances(flat, part.flatten(1).cpu(), lambda d: d)
        rows = torch.arange(start, start + len(part)).expand_as(here)
        start += len(part)
        if best is not None:
            here, rows = torch.cat([best[1], here], dim=1), torch.cat([best[0], rows], dim=1)
        # Stable: of equally near elements the first wins, independent of the division into parts.
        order = here.argsort(dim=1, stable=True)[:, :k]
        best = rows.gather(1, order), here.gather(1, order)
    if best is None:
        raise ValueError("The set to search for neighbours is empty.")
    return best
