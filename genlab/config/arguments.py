"""Arguments that are read before Hydra, and those of commands without Hydra."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from genlab.errors import UserError

COMMAND_FILE = ".hydra/command.yaml"  # in a run folder: the arguments of the run, written before all else


def expanded(path: str) -> str:
    """A path with the home folder in place of a leading `~`; shells do not expand it behind `key=`."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # the home of an unknown user
        return path


def take_path(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value` as it was typed (but `~`, see `expanded`), and the other arguments."""
    values = take_paths(arguments, key)
    return (values[-1] if values else None), [a for a in arguments if a.partition("=")[0] != key]


def take_paths(arguments: list[str], key: str) -> list[str]:
    """The values of all `key=value` as they were typed (but `~`, see `expanded`)."""
    return [expanded(a.partition("=")[2]) for a in arguments if a.partition("=")[0] == key]


TEXTS = ("run", "out", "real", "fake", "device")  # keys whose values are taken as they are typed
GUESSES = {  # first guesses -> keys, where a command has them
    "num_samples": "n",
    "n_samples": "n",
    "ckpt": "run",
    "ckpt_path": "run",
    "checkpoint": "run",
    "checkpoint_path": "run",
    "model": "run",
    "path": "run",
    "output": "out",
    "output_dir": "out",
    "out_dir": "out",
    "outdir": "out",
    "save_dir": "out",
    "gpu": "device",
    "cuda": "device",
    "bs": "batch_size",
    "batch": "batch_size",
    "root": "data.root",
    "data_root": "data.root",
    "data_dir": "data.root",
    "metrics": "scores",
    "metric": "scores",
    "score": "scores",
    "pictures": "what",
}


def parse(arguments: list[str], defaults: dict[str, Any], others: dict[str, str] | None = None) -> dict[str, Any]:
    """`key=value` arguments over defaults. Values are YAML; those of `TEXTS` are texts.

    Args:
        arguments: As typed.
        defaults: The values of the keys that are not given; a value of theirs has the type of the default.
        others: Receives keys that are none of the defaults', as texts, also those that are nearly one: a column may be
            called `layout`, and a key `out`. None to refuse them.

    Raises:
        UserError: If a key is unknown or a value has the wrong type.
    """
    options = dict(defaults)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in defaults:
            if others is not None and equals and key.isidentifier() and GUESSES.get(key) not in defaults:
                others[key] = text
                continue
            near = near_key(key, defaults)
            hint = f"Did you mean {near}=?" if near else f"The keys are {', '.join(defaults)}."
            raise UserError(f"{argument!r} is not understood. {hint}")
        options[key] = expanded(text) if key in TEXTS else _value(key, text, defaults[key])
    if "device" in options:
        check_device(options["device"])
    return options


def check_device(device: Any) -> None:
    """Refuses a text that names no device.

    Raises:
        UserError: If it does.
    """
    if not re.fullmatch(r"(cpu|cuda|mps|xpu|meta)(:\d+)?", str(device)):
        raise UserError(f"device must be cpu, cuda, cuda:N or mps, got {device!r}. Try device=cpu.")


def near_key(key: str, known: Collection[str]) -> str | None:
    """The key that an unknown one may mean."""
    guess = GUESSES.get(key)
    if guess is not None and guess in known:
        return guess
    return next(iter(difflib.get_close_matches(key, known, n=1)), None)


def _value(key: str, text: str, default: Any) -> Any:
    """A value in YAML, of the default's type."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={text} cannot be read: {text!r} is no number, word or list.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, got {text!r}.")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{key} must be true or false, got {text!r}.")
    if isinstance(default, int) and not isinstance(default, bool) and (type(value) is not int):
        raise UserError(f"{key} must be a whole number, got {text!r}.")
    if isinstance(default, list):
        value = [value] if isinstance(value, str) else value
        if not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise UserError(f"{key} must be a list of names, [NAME,NAME], got {text!r}.")
    if key == "seed" and not (type(value) is int and 0 <= value < 2**32):
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {text}.")
    return value
