"""Genlab's own section of a checkpoint: plain containers and tensors only, so that loading executes nothing."""

from __future__ import annotations

from typing import Any

import torch

from genlab.engine.noise import random_states
from genlab.errors import UserError

CHECKPOINT_FORMAT = 2  # the facts about the data are those of columns


def checkpoint_section(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Genlab's own section of a checkpoint.

    Raises:
        UserError: If there is none, or its format is another than this version's.
    """
    section = checkpoint.get("genlab") if isinstance(checkpoint, dict) else None
    if not isinstance(section, dict) or not {"format", "config", "ema", "random"} <= section.keys():
        raise UserError("This checkpoint was not written by genlab: it has no complete section 'genlab'.")
    if section["format"] != CHECKPOINT_FORMAT:
        age = "an earlier" if section["format"] < CHECKPOINT_FORMAT else "a later"
        raise UserError(
            f"This checkpoint has format {section['format']}, of {age} genlab; this one reads format "
            f"{CHECKPOINT_FORMAT}. Use that version, or train again."
        )
    return section


def save(model: Any, checkpoint: dict[str, Any]) -> None:
    """Adds the section to a checkpoint."""
    states = [random_states(model.rng)]
    if model.stream.world > 1:
        states = [None] * model.stream.world  # type: ignore[list-item]
        torch.distributed.all_gather_object(states, random_states(model.rng))
    checkpoint["genlab"] = {
        "format": CHECKPOINT_FORMAT,
        "config": model.run_config,
        "spec": model.spec.to_dict() if hasattr(model, "spec") else None,
        "ema": model.averages.values,
        "random": states,
        "tricks": {"replay": model.pool.state(), "history": model.moves.state()},
    }


def load(model: Any, checkpoint: dict[str, Any]) -> None:
    """Restores the section; random states take effect at the first iteration."""
    section = checkpoint_section(checkpoint)
    model.averages.load(section["ema"])
    model.pending_states = section["random"]
    tricks = section.get("tricks") or {"replay": [], "history": {}}
    model.pool.load(tricks["replay"], model.device)
    model.moves.load(tricks["history"], model.device)
