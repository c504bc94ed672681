"""Atomic file writes, a folder lock and the cache folder. No heavy imports."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from genlab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_atomic(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> Path:
    """Calls `write` on a temporary file beside `path`, flushes it to disk and renames it to `path`.

    A reader sees the old file or the whole new one. A run that is killed leaves the old one.

    Args:
        path: The file to create or replace; its folder is created if needed.
        write: Writes the whole content to an open binary file.

    Returns:
        The path.

    Raises:
        OSError: If the file cannot be written; `path` is then unchanged and the temporary file removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a text file, atomically."""
    return write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Writes plain containers as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


LATEST = "latest"  # a file beside the run folders that holds the newest one's name


def run_path(path: str | os.PathLike[str]) -> Path:
    """A path whose part `latest` (`outputs/latest/checkpoints/best.ckpt`) is replaced by the newest run's folder.

    `outputs/latest` is a file, not a link, since TensorBoard follows links and would show the newest run twice.
    """
    path = Path(path).expanduser()
    for place in (path, *path.parents):
        if place.name == LATEST and place.is_file():
            return place.parent / place.read_text().strip() / path.relative_to(place)
    return path


def existing_run(path: str | os.PathLike[str]) -> Path:
    """The path of `run_path`, which must exist.

    Raises:
        UserError: If it does not.
    """
    place = run_path(path)
    if not place.exists():
        raise UserError(f"There is no run at {place}. Give a run folder (outputs/...) or a .ckpt file.")
    return place


def free_mib(path: Path) -> int:
    """Free space, in MiB, on the file system of a path (which need not exist)."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free // 2**20


def remove_temporaries(folder: Path) -> None:
    """Removes the temporary files of killed calls of `write_atomic`; no other process may be writing to the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


class FolderLock:
    """Lock of a folder that one process writes to. The kernel releases it when the process ends, even when killed.

    On Windows, and on file systems without locks, `take` always succeeds.
    """

    def __init__(self, folder: Path) -> None:
        """Sets the path of the lock file; `take` creates it.

        Args:
            folder: Folder of the lock file `.lock`; must exist when `take` is called.
        """
        self.path = folder / ".lock"
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        """Takes the lock, unless this object holds it already; False if another process holds it."""
        if self._file is not None or fcntl is None:
            return True
        try:
            file = self.path.open("a+b")
        except OSError:  # the folder is not writable: the next write reports that
            return True
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:  # the file system has no locks
            file.close()
            return True
        self._file = file
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        try:
            file.truncate(0)
            file.write(json.dumps(holder).encode())
            file.flush()
        except OSError:  # a full disk: the lock is held, but the file does not name its holder
            pass
        return True

    def holder(self) -> str:
        """Process, host and time of the holder, or "another process" if the lock file does not name it."""
        try:
            found = json.loads(self.path.read_text())
            return f"process {found['pid']} on {found['host']}, since {found['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # the disk is full: buffered bytes cannot be written
                pass
            self._file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def cache_dir() -> Path:
    """Folder of prepared data and trained classifiers: $GENLAB_CACHE or ~/.cache/genlab."""
    return Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab").expanduser()
