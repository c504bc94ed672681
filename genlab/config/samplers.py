"""`sampler=NAME sampler.KEY=VALUE`: their config, and the sampler's name in cards and files. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from genlab.config import shipped
from genlab.config.arguments import take_path
from genlab.errors import UserError


def take_sampler(arguments: Sequence[str]) -> tuple[str | None, dict[str, Any], list[str]]:
    """The last `sampler=NAME`, all `sampler.KEY=VALUE`, and the other arguments."""
    name, rest = take_path(list(arguments), "sampler")
    dotted = [a for a in rest if a.startswith("sampler.")]
    for argument in dotted:
        if "=" not in argument:
            raise UserError(f"{argument!r} is not understood. Write {argument}=VALUE.")
    settings = {key.removeprefix("sampler."): _value(text) for key, _, text in (a.partition("=") for a in dotted)}
    return (None if name == "null" else name), settings, [a for a in rest if a not in dotted]


def _value(text: str) -> Any:
    """Reads a value as Hydra does: YAML, but 1e-3 is a number (a text in plain YAML)."""
    import yaml

    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def sampler_config(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The shipped config of a sampler with some settings changed.

    Raises:
        UserError: If there is no such sampler or setting, or a value has another type than the default.
    """
    if name not in shipped.options("sampler"):
        raise UserError(f"There is no sampler {name!r}; sampler takes {', '.join(shipped.options('sampler'))}.")
    config = shipped.read_option("sampler", name)
    keys = [key for key in config if key != "_target_"]
    for key, value in settings.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"Did you mean sampler.{near[0]}=?" if near else f"It has {', '.join(keys) or 'no settings'}."
            raise UserError(f"sampler={name} has no setting {key!r}. {hint}")
        default = config[key]
        if not _is_like(value, default):
            wanted = {bool: "true or false", int: "a whole number", list: "a list of whole numbers", str: "a word"}
            raise UserError(f"sampler.{key} must be {wanted.get(type(default), 'a number')}, got {value!r}.")
        config[key] = value
    return config


def sampler_text(name: str, settings: Mapping[str, Any]) -> str:
    """A sampler with all its settings, for protocol cards: "truncated(threshold=1.0, psi=null)"."""
    import json

    config = {key: value for key, value in sampler_config(name, settings).items() if key != "_target_"}
    listed = ", ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    return f"{name}({listed})" if listed else name


def sampler_stem(name: str, settings: Mapping[str, Any]) -> str:
    """A sampler with its changed settings, for names of files; "" for the prior."""
    changed = "".join(f"-{key}={value}" for key, value in sorted(settings.items()))
    return "" if name == "prior" else re.sub(r"[^\w.=-]+", "_", f"-{name}{changed}")


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default; a number may replace null, and null a real number."""
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(default, list):
        return isinstance(value, list) and all(_is_like(part, 1) for part in value)
    number = isinstance(value, int) or (isinstance(value, float) and not isinstance(default, int))
    return (number and not isinstance(value, bool)) or (value is None and not isinstance(default, int))
