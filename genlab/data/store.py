"""One array store for all data sets: decoded once to uint8 at the training size, then only indexed.

What was decoded is kept on disk under a key made of the files' names, sizes and times, so that the second run of any
configuration starts at once. An array that is large beside the free memory stays there and is read through a memory
map.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.data.decode import ImageEntry, decode_all, default_workers, fit_image, for_each
from genlab.errors import UserError
from genlab.files import cache_dir as genlab_cache
from genlab.files import write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("genlab")

_COPY_LIMIT = 256 * 2**20  # bytes; a smaller subset is copied out, a larger one indexes its parent
_NO_LOCKS = -1  # in place of a file descriptor
_FORMAT = "genlab-array-1"  # part of every key: change it whenever decoding changes


class ArrayStore:
    """Samples and labels that are only ever indexed.

    Args:
        x: Samples, uint8 [R, C, H, W] (images) or float32 [R, D] (points); may be a memory map.
        y: Labels [N] int64, -1 = missing; None without labels.
        index: Which rows of `x` are this store's samples, [N] int64; None for all, in order.
        digest: Hash of the bytes of `x` where it is known already, so that `fingerprint` need not read them.
        factor: Known factors of variation [N, F] float32; None where they are not known.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        index: Tensor | None = None,
        digest: str | None = None,
        factor: Tensor | None = None,
    ) -> None:
        if x.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"A store holds uint8 images or float32 points, got {x.dtype}.")
        size = len(x) if index is None else len(index)
        if y is not None and (y.dtype != torch.int64 or y.shape != (size,)):
            raise ValueError(f"Labels must be int64 of shape [{size}], got {y.dtype} {list(y.shape)}.")
        if factor is not None and (factor.dtype != torch.float32 or factor.dim() != 2 or len(factor) != size):
            raise ValueError(f"Factors must be float32 of shape [{size}, F], got {factor.dtype} {list(factor.shape)}.")
        self.x, self.y, self.index, self.factor = x, y, index, factor
        self._digest = digest
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.x) if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes that the samples of this store take (not those of the array that it may index)."""
        return len(self) * self.x[:1].numel() * self.x.element_size()

    def gather(self, idx: Tensor) -> Tensor:
        """Samples at the positions `idx` [N], in the store's own type; always a copy."""
        return self.x.index_select(0, idx if self.index is None else self.index.index_select(0, idx))

    def labels(self, idx: Tensor) -> Tensor | None:
        """Labels at the positions `idx` [N], None without labels."""
        return None if self.y is None else self.y.index_select(0, idx)

    def factors(self, idx: Tensor) -> Tensor | None:
        """Known factors [N, F] at the positions `idx` [N], None where they are not known."""
        return None if self.factor is None else self.factor.index_select(0, idx)

    def subset(self, idx: Tensor) -> ArrayStore:
        """The store of the samples at `idx`: a copy when small, else a view of the same array."""
        y, factor = self.labels(idx), self.factors(idx)
        rows = idx if self.index is None else self.index.index_select(0, idx)
        if len(idx) * self.x[:1].numel() * self.x.element_size() <= _COPY_LIMIT:
            return ArrayStore(self.x.index_select(0, rows), y, factor=factor)
        return ArrayStore(self.x, y, rows, self._array_digest(), factor)

    def with_labels(self, y: Tensor | None) -> ArrayStore:
        """The same samples with the labels `y` [N], or with none."""
        return ArrayStore(self.x, y, self.index, self._digest, self.factor)

    def to(self, device: torch.device | str) -> ArrayStore:
        """A resident copy on `device`, holding the samples of this store only."""
        x = self.x if self.index is None else self.x.index_select(0, self.index)
        y, factor = (None if t is None else t.to(device) for t in (self.y, self.factor))
        return ArrayStore(x.to(device), y, factor=factor)

    def fingerprint(self) -> str:
        """Hash of the content (samples, their order and labels), the same on every machine; computed once."""
        if self._fingerprint is None:
            parts = [self._array_digest().encode()]
            parts += [t.numpy().tobytes() for t in (self.index, self.y, self.factor) if t is not None]
            self._fingerprint = digest(*parts)
        return self._fingerprint

    def _array_digest(self) -> str:
        if self._digest is None:
            self._digest = array_digest(self.x.numpy())
        return self._digest


def digest(*parts: bytes) -> str:
    """Short hash (16 hex digits) of some bytes; the lengths count, so that parts cannot flow into each other."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Hash of an array's type, shape and bytes, read in slices (it may be a memory map)."""
    h = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    rows = max(1, 2**24 // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        h.update(np.ascontiguousarray(array[start : start + rows]).data)
    return h.hexdigest()


def default_memory_limit() -> int:
    """Bytes that one set of samples may take in memory: a quarter of what is free, shared by a machine's processes."""
    return free_memory() // 4 // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def free_memory() -> int:
    """Bytes that this process can still allocate, within the limits of its container; 16 GiB where nobody says."""
    found = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        cache = [
            int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file ")
        ]
        found.append(max(0, int(limit[0]) - int(used[0]) + sum(cache)))
    return min(found, default=16 * 2**30)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def default_cache_dir() -> Path:
    """Where prepared arrays are kept: $GENLAB_CACHE/data or ~/.cache/genlab/data."""
    return genlab_cache() / "data"


# --- The cache ------------------------------------------------------------------------------------------------------


def cached_array(
    key: str,
    shape: Sequence[int],
    fill: Callable[[np.ndarray], dict[str, Any]],
    cache_dir: Path | None = None,
    memory_limit: int | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """A uint8 array that is computed once and kept on disk.

    Args:
        key: Name of the array in the cache; must determine its content.
        shape: Its shape.
        fill: Writes the content into an array of zeros and returns a note (JSON) to be kept with it. What it raises
            passes through, and then nothing is kept.
        cache_dir: Folder of the cache, `default_cache_dir()` unless given.
        memory_limit: A larger array (bytes) is never held in memory: it is written and read through a memory map.
            `default_memory_limit()` unless given.

    Returns:
        The array and its note, which also holds `digest`, the hash of the array's content.

    Raises:
        UserError: If the array fits neither into memory nor into the cache folder.
    """
    folder = cache_dir or default_cache_dir()
    shape = tuple(shape)
    nbytes = int(np.prod(shape, dtype=np.int64))
    in_memory = nbytes <= (default_memory_limit() if memory_limit is None else memory_limit)
    kept = _read_kept(folder, key, shape, in_memory)
    if kept is not None:
        return kept
    with _preparing(folder, key) as waited:
        kept = _read_kept(folder, key, shape, in_memory) if waited else None
        return kept or _make(folder, key, shape, in_memory, fill)


def _read_kept(
    folder: Path, key: str, shape: tuple[int, ...], in_memory: bool
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The array from the cache, None if it is not there or not whole."""
    path, note_path = folder / f"{key}.npy", folder / f"{key}.json"
    if not (path.is_file() and note_path.is_file()):
        return None
    try:
        note = json.loads(note_path.read_text())
        # Mode "c": pages are shared and read on demand, and a write could never reach the file.
        array = np.load(path, mmap_mode=None if in_memory else "c", allow_pickle=False)
        if array.shape == shape and array.dtype == np.uint8:
            return array, note
    except (OSError, ValueError, EOFError):
        pass
    log.warning("The prepared data %s cannot be used (cut off?) and is made anew.", path)
    return None


def _make(
    folder: Path, key: str, shape: tuple[int, ...], in_memory: bool, fill: Callable[[np.ndarray], dict[str, Any]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Compute an array and put it into the cache, whole or not at all."""
    path = folder / f"{key}.npy"
    nbytes = int(np.prod(shape, dtype=np.int64))
    temporary: Path | None = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(folder).free < nbytes + 2**20:
                raise OSError(f"{nbytes / 1e9:.1f} GB do not fit there")
            handle, name = tempfile.mkstemp(prefix=f".{key}.", suffix=".tmp", dir=folder)
            os.close(handle)
            temporary = Path(name)
            if not in_memory:
                _claim(temporary, shape)
        except OSError as error:
            if not in_memory:
                raise UserError(
                    f"The prepared images need {nbytes / 1e9:.1f} GB in the cache folder {folder} ({error}); "
                    "set the environment variable GENLAB_CACHE to a folder with room."
                ) from error
            log.warning("The cache folder %s cannot be used (%s): the data is prepared at each start.", folder, error)

        if in_memory:
            array = np.zeros(shape, np.uint8)
        else:
            assert temporary is not None
            array = np.lib.format.open_memmap(temporary, mode="r+")
        note = fill(array)
        note = {**note, "digest": array_digest(array)}

        if temporary is not None:
            try:
                if isinstance(array, np.memmap):
                    array.flush()
                    del array
                else:
                    with temporary.open("wb") as file:
                        np.save(file, array, allow_pickle=False)
                        file.flush()
                        os.fsync(file.fileno())
                write_text(folder / f"{key}.json", json.dumps(note))
                os.replace(temporary, path)  # last: the array's presence says that both are whole
            except OSError as error:
                if not in_memory:
                    raise
                log.warning("The prepared data could not be kept in %s: %s", folder, error)
        if not in_memory:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        return array, note
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def _preparing(folder: Path, key: str) -> Iterator[bool]:
    """Only one process at a time makes the array `key`; yields whether another one was waited for.

    The kernel lets go of the lock when its holder ends, however it ends. Where a folder knows no locks, two processes
    may do the same work; the last one's result stays.
    """
    file = _lock(folder, key, wait=False)
    waited = file is None
    if file is None:
        log.info("Another process prepares the same data; waiting for it.")
        file = _lock(folder, key, wait=True)
    try:
        if file is not None and file != _NO_LOCKS:
            _remove_leftovers(folder, key)
        yield waited
    finally:
        _unlock(file, folder, key)


def _lock(folder: Path, key: str, wait: bool) -> int | None:
    """A file descriptor with the lock of `key`; None if another process has it, `_NO_LOCKS` if none can be had."""
    if fcntl is None:
        return _NO_LOCKS
    path = folder / f".{key}.lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError:
            return _NO_LOCKS
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:  # the last holder took the file away: lock a new one
            pass
        except OSError as error:
            os.close(file)
            return None if isinstance(error, BlockingIOError) else _NO_LOCKS
        os.close(file)


def _unlock(file: int | None, folder: Path, key: str) -> None:
    if file is not None and file != _NO_LOCKS:
        (folder / f".{key}.lock").unlink(missing_ok=True)  # before it is let go, so that nobody locks a nameless file
        os.close(file)


def _remove_leftovers(folder: Path, key: str) -> None:
    """Delete what killed preparations have left behind; it may be large, and nobody sees it."""
    for path in folder.glob(".*.tmp"):
        other = path.name.split(".")[1]
        file = None if other == key else _lock(folder, other, wait=False)
        if other == key or file not in (None, _NO_LOCKS):  # the lock of `key` is ours already
            path.unlink(missing_ok=True)
        _unlock(file, folder, other)


def _claim(path: Path, shape: tuple[int, ...]) -> None:
    """An .npy file of zeros whose blocks are all there.

    A sparse one would kill the process without a message when the disk fills up under the memory map.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    nbytes = int(np.prod(shape, dtype=np.int64))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        offset = file.tell()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), offset, nbytes)
        else:
            file.truncate(offset + nbytes)


# --- Images ---------------------------------------------------------------------------------------------------------


def prepare_images(
    entries: Sequence[ImageEntry],
    size: tuple[int, int],
    channels: int,
    cache_dir: Path | None = None,
    key: str = "",
    workers: int | None = None,
    skip_broken: bool = False,
    memory_limit: int | None = None,
) -> ArrayStore:
    """Decode images once, at the training size.

    Each is cropped around its centre to the aspect ratio of `size` and resized (Lanczos).

    Args:
        entries: The images, in the order of the store.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        cache_dir: Folder of the cache, `default_cache_dir()` unless given.
        key: Anything else that the result depends on.
        workers: Threads or processes, `default_workers()` unless given.
        skip_broken: Leave unreadable images out instead of refusing the set.
        memory_limit: A larger result (bytes) is a memory map; `default_memory_limit()` unless given.

    Returns:
        The store of the readable images (its `index` names their positions in `entries` where some were left out),
        with the entries' labels, or without labels if no entry has one.

    Raises:
        UserError: If there is no image, or if some cannot be read (all of them are found before that is said).
    """
    if not entries:
        raise UserError("There are no images to prepare; set data.root to a folder or zip that holds some.")
    parts = [f"{_FORMAT}/{key}/{size[0]}x{size[1]}x{channels}".encode()]
    parts += [f"{e.name}\0{e.stamp[0]}\0{e.stamp[1]}".encode(errors="surrogateescape") for e in entries]

    def fill(array: np.ndarray) -> dict[str, Any]:
        broken = decode_all(entries, array, workers or default_workers())
        if broken and not skip_broken:
            raise _broken_error(broken, len(entries))
        return {"broken": broken}

    array, note = cached_array(digest(*parts), (len(entries), channels, *size), fill, cache_dir, memory_limit)
    broken = note["broken"]
    index = None
    labels = torch.tensor([e.label for e in entries])
    if broken:
        if not skip_broken:  # prepared earlier with skip_broken
            raise _broken_error(broken, len(entries))
        log.warning("%d of %d images cannot be read and are skipped, e.g. %s", len(broken), len(entries), broken[0][1])
        keep = torch.ones(len(entries), dtype=torch.bool)
        keep[[position for position, _, _ in broken]] = False
        if not keep.any():
            raise UserError(f"None of the {len(entries)} images can be read, e.g. {broken[0][1]}: {broken[0][2]}")
        index = keep.nonzero().squeeze(1)
        labels = labels[index]
    return ArrayStore(torch.from_numpy(array), labels if (labels >= 0).any() else None, index, note["digest"])


def resize_images(
    images: np.ndarray, size: tuple[int, int], channels: int, workers: int | None = None, cache_dir: Path | None = None
) -> ArrayStore:
    """Images that are decoded already, brought to the training size as `prepare_images` does it.

    Args:
        images: uint8 [N, C, H, W] with C = 1 or 3.
        size: Height and width in pixels.
        channels: 1 or 3.
        workers: Threads, `default_workers()` unless given.
        cache_dir: Folder of the cache, `default_cache_dir()` unless given.

    Returns:
        A store without labels; of the images themselves where they have the size already.
    """
    if images.shape[1:] == (channels, *size):
        return ArrayStore(torch.from_numpy(np.ascontiguousarray(images)))

    def fill(array: np.ndarray) -> dict[str, Any]:
        def one(position: int) -> None:
            pixels = images[position].transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
            array[position] = fit_image(image, size, channels)

        for_each(one, len(images), workers or default_workers())
        return {}

    key = digest(f"{_FORMAT}/{size[0]}x{size[1]}x{channels}".encode(), array_digest(images).encode())
    array, note = cached_array(key, (len(images), channels, *size), fill, cache_dir)
    return ArrayStore(torch.from_numpy(array), digest=note["digest"])


def _broken_error(broken: Sequence[Sequence[Any]], total: int) -> UserError:
    names = "; ".join(f"{name} ({reason})" for _, name, reason in broken[:10])
    more = f"; and {len(broken) - 10} more" if len(broken) > 10 else ""
    return UserError(
        f"{len(broken)} of {total} images cannot be read: {names}{more}. "
        "Mend or remove them, or leave them out with data.skip_broken=true."
    )
