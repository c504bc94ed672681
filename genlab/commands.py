"""Commands and paths as they are printed: short, quoted, and under the names that the user has. No heavy imports."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

SCRIPTS = {"train": "train.py"}  # the others lie in scripts/ under their names
INSTALLED = {"train_classifier": "genlab-classifier"}  # the others are genlab-NAME
ONLY_SCRIPTS = ("benchmark", "gallery", "mode_benchmark")


def command(name: str, **values: object) -> str:
    """A command line to be pasted into a shell.

    It starts with `genlab-NAME` if such a command is running or there is no checkout, else with the checkout's script.

    Args:
        name: Of the script: "train", "sample", "evaluate", ...
        **values: Its arguments. A `Path` is written as `short` writes it; for keys with dots, pass a dict with `**`.
    """
    texts = {key: short(value) if isinstance(value, Path) else str(value) for key, value in values.items()}
    return " ".join([program(name), *(shlex.quote(f"{key}={text}") for key, text in texts.items())])


def program(name: str) -> str:
    """The command's first words, see `command`."""
    script = Path(__file__).resolve().parent.parent / SCRIPTS.get(name, f"scripts/{name}.py")
    installed = Path(sys.argv[0]).name.startswith("genlab-") or not script.is_file()
    if installed and name not in ONLY_SCRIPTS:
        return INSTALLED.get(name, f"genlab-{name}")
    return f"python {shlex.quote(short(script))}"


def named(text: str) -> str:
    """A help text whose commands `genlab-NAME` have the names that the user has, see `command`."""
    names = {installed: name for name, installed in INSTALLED.items()}

    def own(found: re.Match[str]) -> str:
        return program(names.get(found[0], found[1]))

    return re.sub(r"\bgenlab-(train|sample|evaluate|report|classifier|visualize|export)\b", own, text)


def short(path: str | os.PathLike[str]) -> str:
    """A path relative to the working folder, or absolute where that is shorter."""
    absolute = os.path.abspath(path)
    try:
        relative = os.path.relpath(path)
    except (ValueError, OSError):  # another drive; a working folder that is gone
        return absolute
    return min(relative, absolute, key=len)


def quoted(path: str | os.PathLike[str]) -> str:
    """A short path as a word of a shell command."""
    return shlex.quote(short(path))
