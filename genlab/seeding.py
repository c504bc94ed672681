"""Looking must not disturb, and looks at the same: random streams left as they were found, and one fixed choice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

CHOICE_SEED = 20140610  # of the samples that stand for all where only some are wanted: one choice for all runs


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Whatever is drawn inside, the global streams of Python, NumPy and torch are afterwards as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # This process draws on one GPU; by default torch would visit all of them, and warn.
        own = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=own):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def fixed_choice(size: int, n: int) -> Tensor:
    """Which of `size` samples stand for all: every one in order, or n at random (a folder may be sorted by class)."""
    if n >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(CHOICE_SEED))[:n].sort().values
