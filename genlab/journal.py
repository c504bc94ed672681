"""`train.log`: iterations, scores, warnings, resumptions and the end of a run, one dated line each. Free of torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

JOURNAL = "train.log"
NOTES = "genlab.journal"  # logger of lines for the journal alone, which the terminal shows in another form


class _Journal(logging.Handler):
    """Appends to a file, from the moment at which its folder exists; earlier lines wait."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path
        self.waiting: list[str] = []
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting += [line for line in self.format(record).splitlines() if line.strip()]
        if self.path.parent.is_dir():
            with suppress(OSError), self.path.open("a", encoding="utf-8") as file:  # a full disk is reported elsewhere
                file.write("".join(f"{line}\n" for line in self.waiting))
                self.waiting = []


@contextmanager
def journal(run_dir: Path) -> Iterator[None]:
    """Writes genlab's log lines, Python's warnings and `note` within the block to `train.log` in the run folder."""
    handler, show = _Journal(run_dir / JOURNAL), warnings.showwarning
    loggers = [logging.getLogger("genlab"), logging.getLogger(NOTES)]
    levels = [logger.level for logger in loggers]

    def showwarning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        note(f"{category.__name__}: {message}")
        show(message, category, filename, lineno, file, line)

    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    loggers[1].propagate = False
    warnings.showwarning = showwarning
    try:
        yield
    finally:
        warnings.showwarning = show
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def note(text: str) -> None:
    """Writes to the journals that are open, and nowhere else."""
    logging.getLogger(NOTES).info("%s", text)


def say(text: str) -> None:
    """Prints, and writes to the journals that are open."""
    print(text)
    note(text)
