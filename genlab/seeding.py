"""Random states restored after sampling and scoring, and a fixed choice of samples that all runs share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

CHOICE_SEED = 20140610  # of `fixed_choice`: the same samples in all runs


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restores the global random states of Python, NumPy and torch (CPU and own GPU) after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # This process draws on one GPU. By default torch would save the states of all GPUs, and warn.
        own = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=own):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def fixed_choice(size: int, n: int) -> Tensor:
    """Sorted positions of min(n, size) of `size` samples: all, or n drawn at random (folders are sorted by class)."""
    if n >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(CHOICE_SEED))[:n].sort().values


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) from numbers and names: a hash that is the same in every process, version and machine."""
    h = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8)
    return int.from_bytes(h.digest(), "little") >> 1
