"""Decoding of image files to uint8 arrays of one size, on all cores.

Does not import torch, so that a worker process starts in a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from genlab.errors import UserError
from genlab.fields.decoding import bits_for, read_image

_PROGRESS_FROM = 2000  # images; fewer are decoded too fast for a progress bar
_PROCESSES_FROM = 16384  # images; for fewer, starting processes takes longer than it saves
_PROCESSES_LEAST = 3  # two processes cost more processor time than two threads and are hardly faster
_THREADS_FROM = 4096  # mean bytes of an image; on smaller ones threads only compete for the interpreter lock
_CHUNK = 32  # images per task
_MEMBER_LIMIT = 2**30  # bytes that one member of a zip may unpack to

Broken = tuple[int, str, str]
"""Position and name of an image that cannot be read, and the reason."""
DANGLING = (-1, 0)  # stamp of a link to a file that is not there


@dataclass(frozen=True)
class Reading:
    """How files become arrays.

    Attributes:
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        background: Colour under transparent pixels, `white`, `black` or `#rrggbb`.
        bits: Of the values in 16-bit images; None: those that each needs.
    """

    size: tuple[int, int]
    channels: int
    background: str = "white"
    bits: int | None = None

    def __call__(self, data: bytes) -> tuple[np.ndarray, int | None]:
        """See `genlab.fields.decoding.read_image`."""
        return read_image(data, self.size, self.channels, self.background, self.bits)


@dataclass(frozen=True)
class ImageEntry:
    """One encoded image of a folder or an archive.

    Attributes:
        name: Path relative to the source, with "/" between the parts.
        stamp: Changes when the content does: (size, time) of a file, (size, CRC) of an archive's member; `DANGLING` of
            a link that leads nowhere.
        read: Returns the encoded bytes. It must be picklable for decoding in processes.
        label: Class, -1 = none.
    """

    name: str
    stamp: tuple[int, int]
    read: Callable[[], bytes]
    label: int = -1


class ZipMembers:
    """Reads the members of a zip in several threads. Pickled to another process, it opens the zip there."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.lock = archive, threading.Lock()

    def __reduce__(self) -> tuple[Callable[[str], ZipMembers], tuple[str]]:
        if self.archive.filename is None:
            raise TypeError("A zip without a file name cannot be opened by another process.")
        return _open_zip, (os.path.abspath(self.archive.filename),)

    def read(self, position: int) -> bytes:
        """The bytes of the member at `position` in the archive's list; ValueError if it unpacks to more than 1 GiB."""
        info = self.archive.filelist[position]
        if info.file_size > _MEMBER_LIMIT:
            raise ValueError(f"unpacks to {info.file_size} bytes")
        with self.lock:  # zipfile locks reads, but not its count of open members
            member = self.archive.open(info)
        try:
            return member.read()  # checks the CRC
        finally:
            with self.lock:
                member.close()


def _open_zip(path: str) -> ZipMembers:
    return ZipMembers(zipfile.ZipFile(path))


def default_workers() -> int:
    """Default number of decoding threads or processes: the cores that this process may use, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(32, cores or 1))


@contextmanager
def strict_pil() -> Iterator[None]:
    """Within the block, PIL rejects cut-off files and oversized images in the whole process.

    Other libraries may have set PIL to accept them.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. malformed EXIF; serious faults raise
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


# --- All images -----------------------------------------------------------------------------------------------------


def decode_all(
    entries: Sequence[ImageEntry],
    array: np.ndarray,
    workers: int,
    background: str = "white",
    bits: int | None = None,
) -> tuple[list[Broken], int | None]:
    """Decodes images into the rows of an array: in processes if there are many, else in threads.

    Threads start at once and decode large photographs in parallel, because PIL releases the interpreter lock. Small
    images spend most of their time in Python code, where one thread is faster than two.

    Args:
        entries: The images.
        array: uint8 [N, C, H, W], filled in place.
        workers: Number of threads or processes.
        background: Colour under transparent pixels, `white`, `black` or `#rrggbb`.
        bits: Of the values in 16-bit images; None: those that the largest value of all of them needs.

    Returns:
        The images that cannot be read, by position, whose rows mean nothing; and the bits of the values in 16-bit
        images, `bits` if there are none.

    Raises:
        UserError: If a worker process is killed.
    """
    reading = Reading((int(array.shape[2]), int(array.shape[3])), int(array.shape[1]), background, bits)
    broken, largest = _decode(entries, array, workers, reading)
    if bits is not None or not largest:
        return broken, bits
    found = bits_for(max(largest.values()))
    if {bits_for(value) for value in largest.values()} != {16}:
        # Each was read with the bits that it needs itself; now all of them with the same.
        deep = np.array(sorted(largest))
        rows, chosen = _Chosen(array, deep), [entries[position] for position in deep]
        again, _ = _decode(chosen, rows, workers, replace(reading, bits=found))
        broken += [(int(deep[k]), name, reason) for k, name, reason in again]
    return sorted(broken), found


@dataclass(frozen=True)
class _Chosen:
    """Some rows of an array, to be written as if they were an array of their own."""

    array: np.ndarray
    positions: np.ndarray

    def __setitem__(self, key: int | slice, value: np.ndarray) -> None:
        self.array[self.positions[key]] = value


def _decode(
    entries: Sequence[ImageEntry], array: np.ndarray | _Chosen, workers: int, reading: Reading
) -> tuple[list[Broken], dict[int, int]]:
    """Decodes images into the rows of an array; returns the broken ones and the largest value of each 16-bit one."""
    broken: list[Broken] = []
    largest: dict[int, int] = {}

    def here(start: int) -> int:
        stop = min(start + _CHUNK, len(entries))
        for position in range(start, stop):
            try:
                array[position], value = reading(entries[position].read())
            except Exception as error:
                broken.append(_broken(position, entries[position].name, error))
            else:
                if value is not None:
                    largest[position] = value
        return stop - start

    payload = None
    many = len(entries) >= _PROCESSES_FROM and workers >= _PROCESSES_LEAST
    if many and not multiprocessing.current_process().daemon:  # a daemon process cannot have children
        payload = _pickled((entries, reading, Image.MAX_IMAGE_PIXELS))
    if payload is None:
        small = sum(entry.stamp[0] for entry in entries) < _THREADS_FROM * len(entries)
        threads = 1 if small else workers
        with strict_pil():
            _drain(ThreadPoolExecutor(threads, "genlab-images"), here, len(entries), threads)
        return sorted(broken), largest

    def collect(result: tuple[int, np.ndarray, list[Broken], dict[int, int]]) -> int:
        start, rows, bad, deep = result
        array[start : start + len(rows)] = rows
        broken.extend(bad)
        largest.update(deep)
        return len(rows)

    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (payload,))
    try:
        with _no_main_module():
            _drain(pool, _decode_chunk, len(entries), workers, collect)
    except BrokenProcessPool as error:
        raise UserError(
            f"One of {workers} processes that decode images was killed, most likely because memory ran out; "
            f"use fewer with data.num_workers={max(1, workers // 2)}."
        ) from error
    return sorted(broken), largest


def for_each(work: Callable[[int], None], total: int, workers: int) -> None:
    """Calls `work(i)` for i in 0..total-1 in threads, with a progress bar for many; the first error stops it."""

    def chunk(start: int) -> int:
        stop = min(start + _CHUNK, total)
        for position in range(start, stop):
            work(position)
        return stop - start

    _drain(ThreadPoolExecutor(workers, "genlab-images"), chunk, total, workers)


def _broken(position: int, name: str, error: Exception) -> Broken:
    """Position, name and reason (one line) of an image that cannot be read; raises a MemoryError again."""
    if isinstance(error, MemoryError):
        raise error
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image"  # PIL names a BytesIO object
    return position, name.encode(errors="backslashreplace").decode(), reason[:120]


def _drain(
    pool: Executor,
    work: Callable[[int], Any],
    total: int,
    workers: int,
    collect: Callable[[Any], int] = lambda done: done,
) -> None:
    """Runs `work` on all chunks in a pool and shuts the pool down, with a progress bar for many images.

    Args:
        pool: Threads or processes.
        work: Called in the pool with the position of a chunk's first image.
        total: Number of images.
        workers: Size of the pool.
        collect: Called in this thread with the result of `work`; returns the number of images in it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Preparing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = total <= _PROGRESS_FROM
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        bar = progress.add_task("", total=total)
        try:
            for done in _bounded(pool, work, range(0, total, _CHUNK), 4 * workers):
                progress.advance(bar, collect(done))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _bounded(pool: Executor, work: Callable[[int], Any], tasks: Iterable[int], ahead: int) -> Iterator[Any]:
    """Yields results as they arrive. At most `ahead` tasks are submitted, for prompt Ctrl-C and constant memory."""
    running: set[Future[Any]] = set()
    for task in tasks:
        running.add(pool.submit(work, task))
        if len(running) >= ahead:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    for future in running:
        yield future.result()


# --- Worker processes -----------------------------------------------------------------------------------------------

_job: tuple[Sequence[ImageEntry], Reading]  # in a worker process


def _start_worker(payload: bytes) -> None:
    """Sets up a worker process."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    entries, reading, limit = pickle.loads(payload)  # from the parent process, not from a file
    _job = (entries, reading)
    Image.MAX_IMAGE_PIXELS = limit
    strict_pil().__enter__()  # for the rest of the process


def _end_with_parent() -> None:
    """Ends this worker when its parent ends; otherwise it would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_chunk(start: int) -> tuple[int, np.ndarray, list[Broken], dict[int, int]]:
    """Decodes the chunk at `start`.

    Returns:
        `start`, the rows (zeros for broken images), the broken images, and the largest value of each 16-bit one.
    """
    entries, reading = _job
    chunk = entries[start : start + _CHUNK]
    rows = np.zeros((len(chunk), reading.channels, *reading.size), np.uint8)
    broken: list[Broken] = []
    largest: dict[int, int] = {}
    for k, entry in enumerate(chunk):
        try:
            rows[k], value = reading(entry.read())
        except Exception as error:
            broken.append(_broken(start + k, entry.name, error))
        else:
            if value is not None:
                largest[start + k] = value
    return start, rows, broken, largest


def _pickled(job: Any) -> bytes | None:
    """The pickled job for worker processes; None if it cannot be pickled (entries whose `read` is a closure)."""
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Within the block, spawned processes do not run the user's script again.

    A spawned process imports the main script, which decoding does not need. A script without the guard
    `if __name__ == "__main__":` would start its training again in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
