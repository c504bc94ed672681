"""Writing that leaves either the old file or the new one, never half of one. Free of heavy imports."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


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


def cache_dir() -> Path:
    """Where prepared data and trained classifiers are kept: $GENLAB_CACHE or ~/.cache/genlab."""
    return Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab").expanduser()
