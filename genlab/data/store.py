"""The array store of all data sets: images are decoded once to uint8 at the training size, then only indexed.

Decoded arrays are kept on disk under a key made of the files' names, sizes and times, so that the second run of a
configuration starts at once. An array that is large relative to the free memory is read through a memory map.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.batch import Column
from genlab.data.columns import Ragged, Rows, Stored, array_digest
from genlab.data.decode import DANGLING, Broken, ImageEntry, decode_all, default_workers, for_each
from genlab.errors import UserError
from genlab.fields.decoding import fit_image
from genlab.files import cache_dir as genlab_cache
from genlab.files import write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("genlab")

_NO_LOCKS = -1  # in place of a file descriptor
_FORMAT = "genlab-array-2"  # part of every key; change it whenever the decoding changes


class ArrayStore:
    """The columns of one split, read by index.

    Args:
        columns: By name, N values each; tensors [N, ...] or stored columns. `x` are the samples: uint8 images
            [N, C, H, W], float32 points [N, D], or what else their field says; `y` labels [N] int64, -1 = missing;
            `factor` known factors of variation [N, F] float32.

    Raises:
        ValueError: If the columns are not equally long, or labels or factors have another type or shape.
    """

    def __init__(self, columns: Mapping[str, Tensor | Stored]) -> None:
        self.columns: dict[str, Stored] = {n: Rows(c) if isinstance(c, Tensor) else c for n, c in columns.items()}
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"All columns of a store must be equally long, got {lengths}.")
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample; of one step where samples are sequences."""
        column = self.columns["x"]
        assert isinstance(column, (Rows, Ragged))
        return column.shape

    @property
    def index(self) -> Tensor | None:
        """Rows of the samples' array that are this store's, [N] int64; None: all, in order."""
        column = self.columns["x"]
        return column.index if isinstance(column, Rows) else None

    @property
    def nbytes(self) -> int:
        """Bytes of this store's columns, without the other rows of an indexed array."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def device(self) -> torch.device:
        """The device of the columns, and of the positions that they are asked for."""
        return self.columns["x"].device

    @property
    def y(self) -> Tensor | None:
        """All labels [N]; None without labels."""
        return self.values("y") if "y" in self else None

    def values(self, name: str) -> Tensor:
        """All values of a column [N, ...], in the type of the store."""
        column = self.columns[name]
        assert isinstance(column, Rows)
        return column.values

    def gather(self, idx: Tensor, name: str = "x") -> Tensor:
        """A copy of a column's values at the positions `idx` [n], in the type of the store."""
        return cast(Tensor, self.columns[name].gather(idx))

    def rows(self, idx: Tensor, whole: Tensor | None = None) -> dict[str, Column]:
        """A copy of all columns at the positions `idx` [n], in the types of the store.

        Args:
            idx: Positions.
            whole: The positions of all processes, so that sequences are padded to the longest of any; `idx` if None.
        """
        found: dict[str, Column] = {}
        for name, column in self.columns.items():
            steps = None if whole is None or not isinstance(column, Ragged) else int(column.lengths[whole].max())
            found[name] = column.gather(idx) if steps is None else cast(Ragged, column).gather(idx, steps)
        return found

    def subset(self, idx: Tensor) -> ArrayStore:
        """A store of the rows at `idx`: a copy if small, else an index into the same arrays."""
        return ArrayStore({name: column.subset(idx) for name, column in self.columns.items()})

    def with_column(self, name: str, values: Tensor | Stored | None) -> ArrayStore:
        """The same rows with a column added or replaced, or without it (None)."""
        rest = {n: column for n, column in self.columns.items() if n != name}
        return ArrayStore(rest if values is None else {**rest, name: values})

    def to(self, device: torch.device | str) -> ArrayStore:
        """A copy of this store's rows on `device`."""
        return ArrayStore({name: column.to(device) for name, column in self.columns.items()})

    def fingerprint(self) -> str:
        """Hash of all columns and the order of their rows; the same on every machine, computed once."""
        if self._fingerprint is None:
            parts = [[name.encode(), *self.columns[name].parts()] for name in sorted(self.columns)]
            self._fingerprint = digest(*sum(parts, []))
        return self._fingerprint


def digest(*parts: bytes) -> str:
    """Short hash (16 hex digits) of some byte strings and of their lengths, so that moving a boundary changes it."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.hexdigest()


def default_memory_limit() -> int:
    """Bytes of memory for one set of samples: a quarter of the free memory, divided by the machine's processes."""
    return free_memory() // 4 // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def free_memory() -> int:
    """Bytes that this process can still allocate, within the limits of its container; 16 GiB if unknown."""
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
    """Folder of prepared arrays: $GENLAB_CACHE/data or ~/.cache/genlab/data."""
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
        shape: Shape of the array.
        fill: Writes the content into an array of zeros and returns a note (JSON) that is kept with it. If it raises,
            the exception is passed on and nothing is kept.
        cache_dir: Folder of the cache; None: `default_cache_dir()`.
        memory_limit: Bytes; a larger array is never held in memory, but written and read through a memory map. None:
            `default_memory_limit()`.

    Returns:
        The array, and the note with a further key `digest`, the hash of the array's content.

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
    """The array from the cache and its note; None if it is missing or damaged."""
    path, note_path = folder / f"{key}.npy", folder / f"{key}.json"
    if not (path.is_file() and note_path.is_file()):
        return None
    try:
        note = json.loads(note_path.read_text())
        # Mode "c": pages are shared and read on demand, and writes never change the file.
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
    """Computes an array and writes it to the cache, complete or not at all."""
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
                os.replace(temporary, path)  # last, so that an existing array means that both files are complete
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
    """Lets one process at a time make the array `key`; yields whether it waited for another process.

    The kernel releases the lock when its holder ends, even when killed. On a file system without locks two processes
    may do the same work; the later result is kept.
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
    """A file descriptor with the lock of `key`; None if another process holds it, `_NO_LOCKS` if locks are missing."""
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
        except FileNotFoundError:  # the last holder deleted the file: lock a new one
            pass
        except OSError as error:
            os.close(file)
            return None if isinstance(error, BlockingIOError) else _NO_LOCKS
        os.close(file)


def _unlock(file: int | None, folder: Path, key: str) -> None:
    if file is not None and file != _NO_LOCKS:
        (folder / f".{key}.lock").unlink(missing_ok=True)  # before the release, so that nobody locks a deleted file
        os.close(file)


def _remove_leftovers(folder: Path, key: str) -> None:
    """Deletes the temporary files of killed preparations, which are hidden and may be large."""
    for path in folder.glob(".*.tmp"):
        other = path.name.split(".")[1]
        file = None if other == key else _lock(folder, other, wait=False)
        if other == key or file not in (None, _NO_LOCKS):  # this process holds the lock of `key` already
            path.unlink(missing_ok=True)
        _unlock(file, folder, other)


def _claim(path: Path, shape: tuple[int, ...]) -> None:
    """Writes an .npy file of zeros with all its disk blocks allocated.

    With a sparse file, a full disk would kill the process without a message on a write to the memory map.
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
    background: str = "white",
    bits: int | None = None,
) -> tuple[ArrayStore, int | None]:
    """Decodes images once, at the training size.

    Each image is cropped around its centre to the aspect ratio of `size` and resized (Lanczos).

    Args:
        entries: The images, in the order of the store.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        cache_dir: Folder of the cache; None: `default_cache_dir()`.
        key: Further text for the cache key, for anything else that the result depends on.
        workers: Threads or processes; None: `default_workers()`.
        skip_broken: Leave out unreadable images instead of raising.
        memory_limit: Bytes; a larger result is a memory map. None: `default_memory_limit()`.
        background: Colour under transparent pixels, `white`, `black` or `#rrggbb`.
        bits: Of the values in 16-bit images, 8 to 16; None: those that the largest value of all of them needs.

    Returns:
        The store of the readable images, with the entries' labels, or without labels if no entry has one. If images
        were left out, its `index` holds the positions of the others in `entries`. And the bits of the values in 16-bit
        images; `bits` if there are none.

    Raises:
        UserError: If there is no image, or if images cannot be read; the message counts all of them.
    """
    if not entries:
        raise UserError("There are no images to prepare; set data.root to a folder or zip that holds some.")
    parts = [f"{_FORMAT}/{key}/{size[0]}x{size[1]}x{channels}/{background}/{bits}".encode()]
    parts += [f"{e.name}\0{e.stamp[0]}\0{e.stamp[1]}".encode(errors="surrogateescape") for e in entries]

    def fill(array: np.ndarray) -> dict[str, Any]:
        broken, found = decode_all(entries, array, workers or default_workers(), background, bits)
        if broken and not skip_broken:
            raise _broken_error(broken, entries)
        return {"broken": broken, "bits": found}

    array, note = cached_array(digest(*parts), (len(entries), channels, *size), fill, cache_dir, memory_limit)
    broken, found = note["broken"], note["bits"]
    if broken and not skip_broken:  # prepared earlier with skip_broken
        raise _broken_error(broken, entries)
    index = _readable(broken, entries) if broken else None
    labels = torch.tensor([e.label for e in entries])[slice(None) if index is None else index]
    if found != bits:
        log.info("16-bit images: their largest value needs %d bits, of which the upper eight are kept.", found)
    store = ArrayStore({"x": Rows(torch.from_numpy(array), index, note["digest"])})
    return store.with_column("y", labels) if (labels >= 0).any() else store, found


def resize_images(
    images: np.ndarray, size: tuple[int, int], channels: int, workers: int | None = None, cache_dir: Path | None = None
) -> ArrayStore:
    """Crops and resizes decoded images to the training size, as `prepare_images` does.

    Args:
        images: uint8 [N, C, H, W] with C = 1 or 3.
        size: Height and width in pixels.
        channels: 1 or 3.
        workers: Threads; None: `default_workers()`.
        cache_dir: Folder of the cache; None: `default_cache_dir()`.

    Returns:
        A store without labels; images that have the size already are used as they are.
    """
    if images.shape[1:] == (channels, *size):
        return ArrayStore({"x": torch.from_numpy(np.ascontiguousarray(images))})

    def fill(array: np.ndarray) -> dict[str, Any]:
        def one(position: int) -> None:
            pixels = images[position].transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
            array[position] = fit_image(image, size, channels)

        for_each(one, len(images), workers or default_workers())
        return {}

    key = digest(f"{_FORMAT}/{size[0]}x{size[1]}x{channels}".encode(), array_digest(images).encode())
    array, note = cached_array(key, (len(images), channels, *size), fill, cache_dir)
    return ArrayStore({"x": Rows(torch.from_numpy(array), digest=note["digest"])})


def _readable(broken: Sequence[Broken], entries: Sequence[ImageEntry]) -> Tensor:
    """Positions of the images that are not broken, [n] int64, with a warning of the others."""
    log.warning("Left out: %s.", "; ".join(_told_broken(broken, entries, 1)))
    keep = torch.ones(len(entries), dtype=torch.bool)
    keep[[position for position, _, _ in broken]] = False
    if not keep.any():
        raise UserError(f"None of the {len(entries)} images can be read, e.g. {broken[0][1]}: {broken[0][2]}")
    return keep.nonzero().squeeze(1)


def _broken_error(broken: Sequence[Broken], entries: Sequence[ImageEntry]) -> UserError:
    return UserError(
        f"{'; '.join(_told_broken(broken, entries, 10))}. "
        "Mend or remove them, or leave them out with data.skip_broken=true."
    )


def _told_broken(broken: Sequence[Broken], entries: Sequence[ImageEntry], named: int) -> list[str]:
    """Numbers of the images that cannot be read and of the links that lead nowhere, some of them with their names."""
    links = [name for position, name, _ in broken if entries[position].stamp == DANGLING]
    images = [f"{name} ({reason})" for position, name, reason in broken if entries[position].stamp != DANGLING]
    groups = {"images cannot be read": images, "images are links to files that are not there": links}
    return [
        f"{len(found)} of {len(entries)} {words}: {'; '.join(found[:named])}"
        + (f"; and {len(found) - named} more" if len(found) > named else "")
        for words, found in groups.items()
        if found
    ]


def warn_of_equal(name: str, store: ArrayStore) -> None:
    """Warns if all images of a store are equal: a file format that was misread, or a folder of copies."""
    column = store.columns["x"]
    if len(store) < 2 or not isinstance(column, Rows):
        return
    first = column.gather(torch.tensor([0]))
    if all(bool((column.gather(rows) == first).all()) for rows in torch.arange(len(store)).split(256)):
        value = first.flatten()[0].item()
        one = f", and each of their pixels is {value}" if bool((first == value).all()) else ""
        log.warning("All %d samples of %s are equal%s: there is nothing to learn from them.", len(store), name, one)
