"""The exceptions of genlab. No heavy imports, so that the command line can report a mistake at once."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can correct: the message names the value given, the values allowed and an override.

    The command line prints it without a traceback and exits with code 2.
    """


class NotNumbers(UserError):
    """Samples are NaN or infinite and cannot be scored; training continues without the scores."""


class TrainingStopped(RuntimeError):
    """Training cannot continue (a NaN, a full disk); the message names the cause and the files kept. Exit code 3."""


class NotFinite(TrainingStopped):
    """A loss, gradient or weight is NaN or infinite; `health.on_nan=rollback` resumes from the last good checkpoint."""


class Interrupted(SystemExit):
    """A signal ends the program; the exit code is 128 + the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        """Pickles the signal: a worker process sends the exception to its sweep."""
        return Interrupted, (self.number,)


def install(extra: str) -> str:
    """The command that installs an extra: from the checkout that genlab runs from, else the installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return f'pip install "genlab[{extra}]"'
    return f'pip install -e "{"." if root == Path.cwd() else root}[{extra}]"'


def sentence(error: BaseException) -> str:
    """The message of an exception on one line, at most 200 characters; the class name if it is empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__
