"""Arguments that are read before Hydra, and those of commands without Hydra."""

from __future__ import annotations

from typing import Any

from genlab.errors import UserError

COMMAND_FILE = ".hydra/command.yaml"  # in a run folder: the arguments of the run, written before all else


def take_path(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value` as it was typed, and the other arguments."""
    values = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == key]
    return (values[-1] if values else None), [a for a in arguments if a.partition("=")[0] != key]


def parse(arguments: list[str], defaults: dict[str, Any], others: dict[str, str] | None = None) -> dict[str, Any]:
    """`key=value` arguments over defaults; values are YAML, but those of run, out, real and fake are texts.

    Raises:
        UserError: If a key is unknown or a value has the wrong type.
    """
    import difflib

    import yaml

    options = dict(defaults)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            if others is not None and equals and key.isidentifier() and not near:
                others[key] = text
                continue
            hint = f"Did you mean {near[0]}=?" if near else f"The keys are {', '.join(defaults)}."
            raise UserError(f"{argument!r} is not understood. {hint}")
        is_text = key in ("run", "out", "real", "fake")
        value = text if is_text else yaml.safe_load(text)
        default = defaults[key]
        if isinstance(default, int) and not isinstance(default, bool) and not isinstance(value, int):
            raise UserError(f"{key} must be a whole number, got {text!r}.")
        options[key] = value
    return options
