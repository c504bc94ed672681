"""Judging shared by the processes of a group: each does every n-th piece of work, and all get all results in order.

A piece depends on its number alone, never on who does it or how many there are, so that a score is the one of a single
process to the last bit (with equally many threads each). Without a process group everything is done here.
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
    """Inside, the processes that torchrun started form a group; says whether this is the first of them.

    By gloo whatever the device: results are exchanged on the CPU. A process that was started alone stays alone, and a
    group that is there already is used.
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
    """This process's number, and how many there are."""
    grouped = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return place()[0] == 0


def stream(seed: int, piece: int) -> torch.Generator:
    """The random stream of one piece of work, whoever does it; the first one's is that of the seed itself.

    Steps of 2^32 / golden ratio keep streams of everyday seeds apart; torch reads 32 bits of a seed.
    """
    return torch.Generator().manual_seed((seed + piece * 0x9E3779B9) % 2**32)


def shared(pieces: Iterable[P], work: Callable[[P], R]) -> Iterator[R]:
    """The result of each piece, in order; in a group every process must read it to the end.

    Args:
        pieces: What is to be done, the same on every process; best something small that `work` makes large.
        work: Does one piece. In a group the result is pickled: plain values and tensors on the CPU.

    Raises:
        UserError: If it stopped any process; then it is raised on all, so that none waits for it.
        RuntimeError: If another error stopped another process.
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
    """The result of the first process, on all of them: for scores of shared values, and files that one must write."""
    (made,) = shared([make], lambda each: each())
    return made


def first_then_others(make: Callable[[], R]) -> R:
    """Made by the first process, then by the others, which find what it left in the cache."""
    made: list[R] = []
    by_first(lambda: made.append(make()))
    return made[0] if made else make()


def agreed(here: bool) -> bool:
    """Whether it holds on every process: what one of them lacks, all must make together."""
    _, world = place()
    if world == 1:
        return here
    answers: list[Any] = [None] * world
    dist.all_gather_object(answers, here)
    return all(answers)
