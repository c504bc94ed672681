"""Writing that leaves either the old file or the new one, never half of one. Free of heavy imports."""

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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_atomic(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> Path:
    """Calls `write` on a temporary file beside `path`, makes it durable, and renames it into place.

    A reader sees the old file or the whole new one, and a run that is killed leaves the old one.

    Args:
        path: The file to make or replace; its folder is made if needed.
        write: Writes the whole content to an open binary file.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written; `path` is then as it was, and no temporary file stays behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own mode would shut out the rest of the group
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


def free_mib(path: Path) -> int:
    """MiB that are free where a path lies, or would lie."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free // 2**20


def remove_temporaries(folder: Path) -> None:
    """Takes away what `write_atomic` leaves when its process is killed; nobody else may be writing to the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


class FolderLock:
    """Says that this process alone writes to a folder; the kernel lets go of it when the process ends, however it ends.

    File systems that know no locks, and Windows, go without.
    """

    def __init__(self, folder: Path) -> None:
        """Names the lock.

        Args:
            folder: Where it lies, as `.lock`; `take` needs the folder to exist.
        """
        self.path = folder / ".lock"
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        """Takes the lock, unless it is ours already; False if another process has it."""
        if self._file is not None or fcntl is None:
            return True
        try:
            file = self.path.open("a+b")
        except OSError:  # a folder that may not be written to: whoever writes next finds the words for it
            return True
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:  # no locks here
            file.close()
            return True
        self._file = file
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        try:
            file.truncate(0)
            file.write(json.dumps(holder).encode())
            file.flush()
        except OSError:  # a full disk: the lock holds without a name
            pass
        return True

    def holder(self) -> str:
        """Who has it, as far as it is known."""
        try:
            found = json.loads(self.path.read_text())
            return f"process {found['pid']} on {found['host']}, since {found['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Lets go; safe to call again."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # what was still to be written: the disk is full
                pass
            self._file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def cache_dir() -> Path:
    """Where prepared data and trained classifiers are kept: $GENLAB_CACHE or ~/.cache/genlab."""
    return Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab").expanduser()
