"""The shipped kinds of columns, and a field from plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from genlab.errors import UserError
from genlab.fields import (  # noqa: F401, being defined registers a kind
    attributes,
    boxes,
    image,
    keypoints,
    label,
    layout,
    masked,
    points,
    roll,
    strokes,
    tokens,
    video,
    wave,
)
from genlab.fields.base import KINDS, Field


def make_field(facts: Mapping[str, Any]) -> Field:
    """The field that `Field.to_dict` described.

    Raises:
        UserError: If there is no such kind, or the kind has no such fact.
    """
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of column; there are {', '.join(sorted(KINDS))}.")
    unknown = given.keys() - {f.name for f in fields(KINDS[kind])}
    if unknown:
        raise UserError(f"A column of kind {kind} has no {sorted(unknown)[0]!r}.")
    return KINDS[kind](**given)
