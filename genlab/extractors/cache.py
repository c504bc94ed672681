"""Cache of features of real data: with Inception on a CPU they take hours, and every run needs the same ones."""

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
from genlab.metrics.features import Features
from genlab.sharing import agreed, is_first

log = logging.getLogger("genlab")
FORMAT = 2  # of the file; a file of another format is replaced


def cached_features(
    content: str,
    card: dict[str, Any],
    compute: Callable[[], Features],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Features:
    """Features of one set of real images by one extractor: from the cache, else computed and cached.

    Args:
        content: Identifies the images by their content (a fingerprint and the selection of images), not by their path.
        card: The extractor's card; another checksum, resize or precision has another file.
        compute: Computes them; called only if the file is missing or unreadable.
        cache_dir: Default `$GENLAB_CACHE/features`, else `~/.cache/genlab/features`.
    """
    facts = {key: str(card.get(key)) for key in ("extractor", "checksum", "resize", "precision")}
    key = hashlib.sha256(repr((FORMAT, content, sorted(facts.items()))).encode()).hexdigest()[:24]
    path = Path(cache_dir or default_cache() / "features") / f"{card.get('extractor', 'features')}-{key}.pt"
    found = None
    if path.is_file():
        try:
            found = load_features(path)
        except ValueError as error:
            log.warning("%s; computing them again.", error)
    if agreed(found is not None):  # of a group, all processes read the file or all compute
        assert found is not None
        return found
    made = compute()
    try:
        if is_first():
            save_features(made, path)
    except OSError as error:  # a full disk must not cost the scores
        log.warning("The features could not be cached in %s: %s. Set GENLAB_CACHE to another folder.", path, error)
    return made


def save_features(made: Features, path: str | os.PathLike[str]) -> Path:
    """Writes the features atomically, as tensors and plain values (`weights_only` reads them)."""
    record = {"format": FORMAT, **{field.name: getattr(made, field.name) for field in fields(Features)}}
    return write_atomic(path, lambda file: torch.save(record, file))


def load_features(path: str | os.PathLike[str]) -> Features:
    """Reads a file of `save_features`, without running code from it.

    Raises:
        ValueError: If the file is damaged or of another format.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        if record.pop("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        return Features.of(**record)
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no readable features: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds no readable features: {error}") from error
