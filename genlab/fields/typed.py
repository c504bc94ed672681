"""Reading names, numbers and files that were typed on a command line; every mistake is a `UserError`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.fields.base import spread

LISTED = 20  # names in a message


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many only the first."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def number_in(word: Any, low: float, high: float, noun: str) -> float:
    """A finite number between two others, both included; `noun` says in a message which."""
    try:
        value = float(word)
    except (TypeError, ValueError):  # a list or a name
        value = math.nan
    if not math.isfinite(value) or not low <= value <= high:
        bounds = f" from {low:g} to {high:g}" if math.isfinite(high - low) else ""
        raise UserError(f"{noun} must be a number{bounds}, got {word}")
    return value


def read_yaml(text: str, example: str) -> Any:
    """Lists and mappings of strings; `example` is shown if the text is neither."""
    import yaml

    try:
        found = yaml.load(text, yaml.BaseLoader)  # strings stay what they are: a class may be called "no" or "1e3"
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} cannot be read; write it as {example}") from error
    if not isinstance(found, (list, dict)):
        raise UserError(f"{text!r} cannot be read; write it as {example}")
    return found


def rows_of(text: str, n: int, read: Callable[[str], Tensor]) -> Tensor:
    """n rows of what was typed, [n, ...]: one value, or several with ";" between them."""
    values = torch.stack([read(part.strip()) for part in text.split(";")])
    return values[spread(len(values), n)]


def fitted(paths: Sequence[Path], size: Sequence[int]) -> str | None:
    """How pictures of other sizes than height and width are made to fit, in words; None if there are none such."""
    from PIL import Image

    found = []
    for path in paths:
        with Image.open(path) as picture:
            found.append(picture.size)
    other = [each for each in found if each != (size[1], size[0])]
    if not other:
        return None
    some = f"{other[0][0]} x {other[0][1]} pixels" if len(found) == 1 else f"{len(other)} of {len(found)} pictures"
    return f"{some}, cropped around the middle and resized to the {size[1]} x {size[0]} of these data"


def files_at(text: str, suffixes: Sequence[str], noun: str) -> list[Path]:
    """A file, or a folder's files with these suffixes in the order of their names; `noun` is their plural."""
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"{path} is no file and no folder")
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
    if not found:
        raise UserError(f"the folder {path} holds no {noun} ({', '.join(suffixes)})")
    return found
