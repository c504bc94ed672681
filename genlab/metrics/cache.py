"""Cache of statistics of real data: with Inception on a CPU they take hours, and every run needs the same ones."""

import hashlib
import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from genlab.files import cache_dir as default_cache
from genlab.files import write_atomic
from genlab.metrics.features import FeatureStats
from genlab.sharing import agreed, is_first

log = logging.getLogger("genlab")
FORMAT = 1  # of the file; a file of another format is replaced


def cached_stats(
    content: str,
    card: dict[str, Any],
    compute: Callable[[], FeatureStats],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FeatureStats:
    """Statistics of one set of real images by one extractor: from the cache, else computed and cached.

    Args:
        content: Identifies the images by their content (a fingerprint and the selection of images), not by their path.
        card: The extractor's card; another checksum, resize or precision has another file.
        compute: Computes them; called only if the file is missing or unreadable.
        cache_dir: Default `$GENLAB_CACHE/statistics`, else `~/.cache/genlab/statistics`.
    """
    facts = {key: str(card.get(key)) for key in ("extractor", "checksum", "resize", "precision")}
    key = hashlib.sha256(repr((FORMAT, content, sorted(facts.items()))).encode()).hexdigest()[:24]
    path = Path(cache_dir or default_cache() / "statistics") / f"{card.get('extractor', 'features')}-{key}.pt"
    found = None
    if path.is_file():
        try:
            found = load_stats(path)
        except ValueError as error:
            log.warning("%s; computing them again.", error)
    if agreed(found is not None):  # of a group, all processes read the file or all compute
        assert found is not None
        return found
    stats = compute()
    try:
        if is_first():
            save_stats(stats, path)
    except OSError as error:  # a full disk must not cost the scores
        log.warning("The statistics could not be cached in %s: %s. Set GENLAB_CACHE to another folder.", path, error)
    return stats


def save_stats(stats: FeatureStats, path: str | os.PathLike[str]) -> Path:
    """Writes the statistics atomically, as tensors and plain values (`weights_only` reads them)."""
    record = {"format": FORMAT, **{field.name: getattr(stats, field.name) for field in fields(FeatureStats)}}
    return write_atomic(path, lambda file: torch.save(record, file))


def load_stats(path: str | os.PathLike[str]) -> FeatureStats:
    """Reads a file of `save_stats`, without running code from it.

    Raises:
        ValueError: If the file is damaged or of another format.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        if record.pop("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        stats = FeatureStats(**record)
        rows, width = stats.features.shape
        if stats.mean.shape != (width,) or stats.scatter.shape != (width, width) or len(stats.logits) != rows:
            raise ValueError("its shapes do not match")
        return stats
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no readable statistics: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds no readable statistics: {error}") from error
