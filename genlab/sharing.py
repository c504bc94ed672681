"""Evaluation shared by a group of processes: each computes every n-th piece, and all receive all results in order.

The result of a piece depends on the piece's number alone, not on the process or the number of processes. A score
therefore equals that of a single process bit for bit (with the same number of threads per process). Without a process
group, this process computes all pieces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from genlab.errors import UserError

P = TypeVar("P")
R = TypeVar("R")


@contextmanager
def joined() -> Iterator[bool]:
    """Within the block, the processes started by torchrun form a group. Yields whether this process is the first.

    The backend is gloo on all devices, because results are exchanged on the CPU. Without torchrun no group is made; an
    existing group is used as it is.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield is_first()
        return
    dist.init_process_group("gloo")
    try:
        yield is_first()
    finally:
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    grouped = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return place()[0] == 0


def stream(seed: int, piece: int) -> torch.Generator:
    """The random stream of one piece of work, the same on every process; piece 0 has the seed itself.

    Steps of 2^32 / golden ratio keep the streams of small seeds apart; torch uses 32 bits of a seed.
    """
    return torch.Generator().manual_seed((seed + piece * 0x9E3779B9) % 2**32)


def shared(pieces: Iterable[P], work: Callable[[P], R]) -> Iterator[R]:
    """Yields the result of each piece, in order. In a group every process must iterate to the end.

    Args:
        pieces: Descriptions of the pieces, the same on every process; best small, with the data loaded by `work`.
        work: Computes one piece. In a group the result is pickled: plain values and tensors on the CPU.

    Raises:
        UserError: If a process raised one; it is raised on all processes, so that none waits for the others.
        RuntimeError: If another process raised any other error.
    """
    rank, world = place()
    if world == 1:
        yield from map(work, pieces)
        return
    left = iter(pieces)
    while group := list(islice(left, world)):
        mine: R | None = None
        error: Exception | None = None
        try:
            mine = work(group[rank]) if rank < len(group) else None
        except Exception as problem:
            error = problem
        told = None if error is None else (type(error) if isinstance(error, UserError) else None, f"{error}")
        answers: list[Any] = [None] * world
        dist.all_gather_object(answers, (mine, told))
        if error is not None:
            raise error
        for number, (_, reported) in enumerate(answers):
            if reported is not None:
                users_mistake, message = reported
                raise users_mistake(message) if users_mistake else RuntimeError(f"Process {number} failed: {message}")
        yield from (cast(R, result) for result, _ in answers[: len(group)])


def by_first(make: Callable[[], R]) -> R:
    """Calls `make` in the first process and returns its result in all: for scores of shared values and for files."""
    (made,) = shared([make], lambda each: each())
    return made


def first_then_others(make: Callable[[], R]) -> R:
    """Calls `make` in the first process, then in the others, which read the first one's files from the cache."""
    made: list[R] = []
    by_first(lambda: made.append(make()))
    return made[0] if made else make()


def agreed(here: bool) -> bool:
    """Whether `here` is true on every process: a result that one process lacks must be computed by all together."""
    _, world = place()
    if world == 1:
        return here
    answers: list[Any] = [None] * world
    dist.all_gather_object(answers, here)
    return all(answers)
