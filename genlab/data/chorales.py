"""Pieces of music as piano rolls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from genlab.data.columns import Ragged
from genlab.data.folders import SPLIT_FOLDERS
from genlab.data.sequences import SequenceSet
from genlab.data.store import ArrayStore
from genlab.errors import UserError, sentence

LOWEST, HIGHEST = 21, 108  # the MIDI numbers of a piano's keys, A0 to C8
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
NAMES = tuple(f"{PITCHES[pitch % 12]}{pitch // 12 - 1}" for pitch in range(LOWEST, HIGHEST + 1))


class Chorales(SequenceSet):
    """Piano rolls, uint8 [T, 88]: 1 for each key of the piano, from A0 to C8, that sounds in a step.

    Boulanger-Lewandowski et al. (2012), "Modeling Temporal Dependencies in High-Dimensional Sequences", among them the
    chorales of J. S. Bach. `root` is a JSON file, or a folder with one: {"train": ..., "valid": ..., "test": ...}, each
    a list of pieces, a piece a list of steps, a step a list of MIDI pitches (60 is C4). A missing valid or test is cut
    off train. There are no labels.

    Args:
        **more: Those of `ArrayData`.
    """

    name = "chorales"
    kind = "roll"
    own_shape: ClassVar[tuple[int | None, ...] | None] = (None, len(NAMES))
    source: ClassVar[str] = "a JSON file of chorales, or its folder"
    nouns: ClassVar[tuple[str, str]] = ("pieces", "steps")

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._spec = self._spec.with_stated({"x": {"names": NAMES}})

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        path = self._given(download)
        if path.is_dir():
            files = sorted(path.glob("*.json"))
            if len(files) != 1:
                found = ", ".join(file.name for file in files) or "none"
                raise UserError(f"data.root={path} must hold one JSON file, and holds {found}; set data.root to it.")
            path = files[0]
        return self._complete(self._bounded({s: ArrayStore({"x": x}) for s, x in read_pieces(path).items()}))


def read_pieces(path: Path) -> dict[str, Ragged]:
    """The pieces of a JSON file by split ("train", "val", "test"), steps uint8 [S, 88].

    Raises:
        UserError: If the file has another form, or a pitch is no key of a piano; names its place.
    """
    try:
        splits = json.loads(path.read_bytes())
        if not isinstance(splits, dict) or "train" not in splits:
            raise ValueError('no "train" in it')
        return {SPLIT_FOLDERS[s]: _rolls(s, pieces) for s, pieces in splits.items() if s in SPLIT_FOLDERS}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read as chorales ({sentence(error)}). Expected is {{"train": [...], "valid": [...], '
            '"test": [...]}, pieces as lists of steps, steps as lists of MIDI pitches.'
        ) from error


def _rolls(split: str, pieces: Sequence[Sequence[Sequence[int]]]) -> Ragged:
    """Pieces of MIDI pitches as rolls."""
    steps = [step for piece in pieces for step in piece]
    rows = np.repeat(np.arange(len(steps)), np.array([len(step) for step in steps], np.int64))
    pitches = [pitch for step in steps for pitch in step]
    for row, pitch in zip(rows, pitches, strict=True):
        if type(pitch) is not int or not LOWEST <= pitch <= HIGHEST:
            ends = np.cumsum([len(piece) for piece in pieces])
            piece = int(np.searchsorted(ends, row, side="right"))
            step = int(row) - int(ends[piece]) + len(pieces[piece])
            raise ValueError(
                f"step {step} of piece {piece} of {split} holds {pitch!r}, which is no whole number from {LOWEST} to "
                f"{HIGHEST}"
            )
    flat = torch.zeros(len(steps), len(NAMES), dtype=torch.uint8)
    flat[torch.from_numpy(rows), torch.tensor(pitches, dtype=torch.long) - LOWEST] = 1
    return Ragged(flat, torch.tensor([0, *(len(piece) for piece in pieces)]).cumsum(0))
