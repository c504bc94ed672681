"""Genlab's own section of a checkpoint: plain containers and tensors only, so that loading executes nothing."""

from __future__ import annotations

from typing import Any

from genlab.errors import UserError

CHECKPOINT_FORMAT = 1


def checkpoint_section(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Genlab's own section of a checkpoint.

    Raises:
        UserError: If there is none, or its format is newer than this version reads.
    """
    section = checkpoint.get("genlab") if isinstance(checkpoint, dict) else None
    if not isinstance(section, dict) or not {"format", "config", "ema", "random"} <= section.keys():
        raise UserError("This checkpoint was not written by genlab: it has no complete section 'genlab'.")
    if section["format"] > CHECKPOINT_FORMAT:
        raise UserError(f"This checkpoint has format {section['format']}; this genlab reads up to {CHECKPOINT_FORMAT}.")
    return section
