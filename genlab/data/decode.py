"""Encoded images to uint8 arrays of one size, on all cores.

Free of torch, so that a worker process is ready in a fraction of a second.
"""

from __future__ import annotations

import io
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
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from genlab.errors import UserError

_PROGRESS_FROM = 2000  # images; fewer are decoded before a bar could be read
_PROCESSES_FROM = 16384  # images; fewer are decoded by the time that processes pay for their start
_PROCESSES_LEAST = 3  # of two, each costs more processor time than a thread, and the wait is hardly shorter
_THREADS_FROM = 4096  # bytes of a mean image; of smaller ones threads only take the interpreter lock from each other
_CHUNK = 32  # images per task
_MEMBER_LIMIT = 2**30  # bytes that one member of a zip may unpack to

Broken = tuple[int, str, str]
"""Position, name and reason of an image that cannot be read."""


@dataclass(frozen=True)
class ImageEntry:
    """One encoded image of a folder or an archive.

    Attributes:
        name: Name relative to its source, with "/" between the parts.
        stamp: What changes with the content: (size, time) of a file, (size, CRC) of an archive's member.
        read: Returns the encoded bytes. Where it can be pickled, many images are read and decoded in processes.
        label: Class, -1 = none.
    """

    name: str
    stamp: tuple[int, int]
    read: Callable[[], bytes]
    label: int = -1


class ZipMembers:
    """Reads the members of a zip for several threads, and for other processes, where it opens the zip once more."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.lock = archive, threading.Lock()

    def __reduce__(self) -> tuple[Callable[[str], ZipMembers], tuple[str]]:
        if self.archive.filename is None:
            raise TypeError("A zip that is no file cannot be opened by another process.")
        return _open_zip, (os.path.abspath(self.archive.filename),)

    def read(self, position: int) -> bytes:
        """The bytes of the member at that position of the archive's list; ValueError if they are too many."""
        info = self.archive.filelist[position]
        if info.file_size > _MEMBER_LIMIT:
            raise ValueError(f"unpacks to {info.file_size} bytes")
        with self.lock:  # zipfile counts the open members without one; reading itself it guards
            member = self.archive.open(info)
        try:
            return member.read()  # checks the CRC
        finally:
            with self.lock:
                member.close()


def _open_zip(path: str) -> ZipMembers:
    return ZipMembers(zipfile.ZipFile(path))


def default_workers() -> int:
    """How many threads or processes decode: the cores that this process may use, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(32, cores or 1))


# --- One image ------------------------------------------------------------------------------------------------------


def decode_image(data: bytes, size: tuple[int, int], channels: int) -> np.ndarray:
    """One encoded image at the training size.

    Args:
        data: The file's bytes.
        size: Height and width in pixels.
        channels: 1 or 3.

    Returns:
        uint8 [C, H, W].

    Raises:
        Exception: Whatever PIL raises if the image is not whole (nearly any type).
    """
    with Image.open(io.BytesIO(data)) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # PIL itself only warns up to twice the limit
            raise ValueError(f"{image.width} x {image.height} pixels, more than {limit}: a decompression bomb?")
        # JPEG decodes large photographs at 1/2, 1/4 or 1/8; twice the target is left for the Lanczos filter.
        image.draft("RGB", (2 * max(size), 2 * max(size)))
        image.load()
        upright = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
        return fit_image(upright, size, channels)


def fit_image(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image at the training size.

    Args:
        image: Of any mode; transparency is dropped, 16 bits keep their upper eight.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [C, H, W]: the centre of the image in the aspect ratio of `size`, resized with the Lanczos filter.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16-bit greys to 255 instead
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (size[1], size[0]):
        image = _centre_crop(image, size).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part with the aspect of `size`, in whole pixels.

    Cut before the resize: ImageOps.fit would let the filter reach over the edge of the crop (the published CelebA
    protocol crops first).
    """
    width = min(image.width, max(1, round(image.height * size[1] / size[0])))
    height = min(image.height, max(1, round(image.width * size[0] / size[1])))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@contextmanager
def strict_pil() -> Iterator[None]:
    """PIL refuses cut-off files and oversized images, whatever another library has set; process-wide for the block."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. odd EXIF; what matters raises
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


# --- All images -----------------------------------------------------------------------------------------------------


def decode_all(entries: Sequence[ImageEntry], array: np.ndarray, workers: int) -> list[Broken]:
    """Decode into the rows of an array, in processes where there are many images, else in threads.

    Threads cost nothing to start and share large photographs' work well (PIL works outside the interpreter lock), but
    the decoding of small images is mostly Python: one thread is faster than two there.

    Args:
        entries: The images.
        array: uint8 [N, C, H, W], filled.
        workers: Number of threads or processes.

    Returns:
        The images that cannot be read, by position; their rows are left as they are.

    Raises:
        UserError: If a worker process is killed.
    """
    size, channels = (int(array.shape[2]), int(array.shape[3])), int(array.shape[1])
    broken: list[Broken] = []

    def here(start: int) -> int:
        stop = min(start + _CHUNK, len(entries))
        for position in range(start, stop):
            try:
                array[position] = decode_image(entries[position].read(), size, channels)
            except Exception as error:
                broken.append(_broken(position, entries[position].name, error))
        return stop - start

    payload = None
    many = len(entries) >= _PROCESSES_FROM and workers >= _PROCESSES_LEAST
    if many and not multiprocessing.current_process().daemon:  # a daemon may have no children
        payload = _pickled((entries, size, channels, Image.MAX_IMAGE_PIXELS))
    if payload is None:
        small = sum(entry.stamp[0] for entry in entries) < _THREADS_FROM * len(entries)
        threads = 1 if small else workers
        with strict_pil():
            _drain(ThreadPoolExecutor(threads, "genlab-images"), here, len(entries), threads)
        return sorted(broken)

    def collect(result: tuple[int, np.ndarray, list[Broken]]) -> int:
        start, rows, bad = result
        array[start : start + len(rows)] = rows
        broken.extend(bad)
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
    return sorted(broken)


def for_each(work: Callable[[int], None], total: int, workers: int) -> None:
    """Call `work(0..total-1)` in threads, with a progress bar where it takes a while; the first error ends it."""

    def chunk(start: int) -> int:
        stop = min(start + _CHUNK, total)
        for position in range(start, stop):
            work(position)
        return stop - start

    _drain(ThreadPoolExecutor(workers, "genlab-images"), chunk, total, workers)


def _broken(position: int, name: str, error: Exception) -> Broken:
    """The sentence on an image that cannot be read; raises the error again if it is not the image's."""
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
    """Have a pool work on chunk after chunk and shut it down, with a progress bar where it takes a while.

    Args:
        pool: Threads or processes.
        work: Gets the position of a chunk's first image.
        total: Number of images.
        workers: Size of the pool.
        collect: Gets what `work` returned, in this thread; returns how many images that was.
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
    """Results as they come, with at most `ahead` tasks under way: Ctrl-C and errors end soon, memory stays flat."""
    running: set[Future[Any]] = set()
    for task in tasks:
        running.add(pool.submit(work, task))
        if len(running) >= ahead:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    for future in running:
        yield future.result()


# --- Worker processes -----------------------------------------------------------------------------------------------

_job: tuple[Sequence[ImageEntry], tuple[int, int], int]  # of a worker process, set when it starts


def _start_worker(payload: bytes) -> None:
    """Sets up a worker process."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    entries, size, channels, limit = pickle.loads(payload)  # from the parent process, not from a file
    _job = (entries, size, channels)
    Image.MAX_IMAGE_PIXELS = limit
    strict_pil().__enter__()  # for the rest of the process


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_chunk(start: int) -> tuple[int, np.ndarray, list[Broken]]:
    """The images from `start` on: their first position, their rows (zeros where broken), the broken ones."""
    entries, size, channels = _job
    chunk = entries[start : start + _CHUNK]
    rows = np.zeros((len(chunk), channels, *size), np.uint8)
    broken = []
    for k, entry in enumerate(chunk):
        try:
            rows[k] = decode_image(entry.read(), size, channels)
        except Exception as error:
            broken.append(_broken(start + k, entry.name, error))
    return start, rows, broken


def _pickled(job: Any) -> bytes | None:
    """A job for worker processes, None if it cannot leave this one (entries that read by a closure)."""
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Processes that are spawned in the block do not run the user's script a second time.

    Spawning runs it again for what may be defined in it, which here is nothing; a script without the guard
    `if __name__ == "__main__":` would start its training once more in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
