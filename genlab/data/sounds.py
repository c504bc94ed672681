"""Sounds in wav files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.data.columns import Ragged
from genlab.data.folders import by_split, class_folders, unwrapped, walk
from genlab.data.module import log
from genlab.data.sequences import SequenceSet
from genlab.data.store import ArrayStore
from genlab.errors import UserError
from genlab.fields.typed import listed
from genlab.fields.wave import read_wav

LISTED = 10  # broken files in a message

File = tuple[Path, dict[str, int]]
"""A wav file, and the class of its sound by name of the column of labels."""


class WavSet(SequenceSet):
    """Data sets whose source is wav files, as int16 [T]; channels are averaged.

    If `shape` is [T], longer sounds are cut and shorter ones followed by silence.

    Args:
        rate: Samples a second that all files must have, as nothing is resampled; None: those of the files.
        **more: Those of `ArrayData`; with `skip_broken`, files that cannot be read are left out.

    Raises:
        UserError: If `rate` is not positive, or `columns.x.most` is given beside a length T.
    """

    kind = "wave"
    source: ClassVar[str] = "a folder of wav files"
    nouns: ClassVar[tuple[str, str]] = ("sounds", "samples")

    def __init__(self, *, rate: int | None = None, **more: Any) -> None:
        if rate is not None and rate < 1:
            raise UserError(f"data.rate must be a positive number of samples a second or null, got {rate}.")
        self.rate = rate
        super().__init__(**more)
        if not self.spec.x.ragged and self.spec.x.most is not None:
            raise UserError(
                f"data.columns.x.most is for sounds of any length, and data.shape={list(self.spec.shape)} cuts them. "
                "Try data.columns.x.most=null."
            )
        if rate is not None:
            self._spec = self._spec.with_stated({"x": {"rate": rate}})

    def _folder(self, download: bool) -> Path:
        root = self._given(download)
        if not root.is_dir():
            raise UserError(f"data.root={root} is a file; set it to {self.source}.")
        return root

    def _stores(self, groups: Mapping[str, Sequence[File]]) -> dict[str, ArrayStore]:
        """The sounds of each split that can be read, with their labels."""
        sounds = self._sounds([path for group in groups.values() for path, _ in group])
        stores = {}
        for split, group in groups.items():
            kept = [(sounds[path], labels) for path, labels in group if path in sounds]
            if not kept:
                raise UserError(f"No sound of the {split} split in {self.root} can be read.")
            columns = {name: torch.tensor([labels[name] for _, labels in kept]) for name in kept[0][1]}
            stores[split] = ArrayStore({"x": self._column([sound for sound, _ in kept]), **columns})
        return self._bounded(stores) if self.spec.x.ragged else stores

    def _sounds(self, paths: Sequence[Path]) -> dict[Path, Tensor]:
        """The sounds, int16 [T], of the files that can be read; adds their rate to the facts."""
        sounds: dict[Path, Tensor] = {}
        rates: dict[int, Path] = {}
        broken = []
        for path in paths:
            try:
                sounds[path], rate = read_wav(path)
                rates.setdefault(rate, path)
            except UserError as error:
                broken.append(str(error))
        if broken and not self.skip_broken:
            more = f"; and {len(broken) - LISTED} more" if len(broken) > LISTED else ""
            raise UserError(
                f"{len(broken)} of {len(paths)} sounds cannot be read: {'; '.join(broken[:LISTED])}{more}. Mend or "
                "remove them, or leave them out with data.skip_broken=true."
            )
        if broken:
            log.warning("%d of %d sounds cannot be read and are skipped, e.g. %s", len(broken), len(paths), broken[0])
        self._one_rate(rates)
        return sounds

    def _one_rate(self, rates: Mapping[int, Path]) -> None:
        """Adds the rate to the facts; `rates` has a file of each."""
        for rate, path in rates.items():
            if self.rate not in (None, rate):
                raise UserError(f"{path} has {rate} samples a second, got data.rate={self.rate}. Try data.rate=null.")
            self._spec = self._spec.with_stated({"x": {"rate": rate}})
        if len(rates) > 1:
            (one, first), (other, second), *_ = rates.items()
            raise UserError(
                f"All sounds must have one rate: {first} has {one} samples a second, and {second} has {other}. Convert "
                "them, or set data.root to a folder of one rate."
            )

    def _column(self, sounds: list[Tensor]) -> Tensor | Ragged:
        if self.spec.x.ragged:
            return Ragged.of(sounds)
        length = self.spec.shape[0]
        return torch.stack([F.pad(sound, (0, length - len(sound))) for sound in sounds])  # a negative padding cuts


class WavFolder(WavSet):
    """A folder of wav files, in any depth, with 8 or 16 bits a sample.

    Sub-folders `train`, `val` (or `valid`, `validation`) and `test` are official splits; missing ones are cut off
    `train`. Without `train`, a fixed 80 / 10 / 10 % for train, val and test. The first sub-folder (below the split)
    is a sound's class, if there are at least two such folders. A single top folder that holds all is passed over.
    Hidden files are ignored.
    """

    name = "wav"

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        root = self._folder(download)
        files = unwrapped([(path.relative_to(root).parts, path) for path in walk(root, (".wav",))], root)
        if not files:
            raise UserError(f"There are no sounds in {root}; expected files ending in .wav, in any depth.")
        groups = by_split(files, f"sounds in {root}")
        names = class_folders(groups)
        self.class_names = tuple(names) or None
        numbers = {name: number for number, name in enumerate(names)}
        return self._stores(
            {
                split: [(path, {"y": numbers.get(parts[0], -1)} if names else {}) for parts, path in group]
                for split, group in groups.items()
            }
        )


class SpokenDigits(WavSet):
    """The Free Spoken Digit Dataset: 3,000 recordings of the digits, 8 kHz, by six men, 50 of each digit by each.

    Jackson et al. (2018), github.com/Jakobovski/free-spoken-digit-dataset. `root` holds
    `recordings/<digit>_<speaker>_<n>.wav`. The official test split is n = 0..4. The label is the digit; the column
    `speaker` is the man, by the names in `columns.speaker`, if that is given.

    Args:
        held_out: Names of speakers. All of their recordings, and no others, are the test split; those of the others are
            for train and val, whatever n is. None: the official split.
        **more: Those of `WavSet`.

    Raises:
        UserError: If `held_out` names nobody.
    """

    name = "spoken_digits"
    class_names = tuple(str(k) for k in range(10))
    source: ClassVar[str] = "the folder that holds recordings/<digit>_<speaker>_<n>.wav"
    official: ClassVar[range] = range(5)  # the n of the test split
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(\d)_(.+)_(\d+)\.wav")

    def __init__(self, *, held_out: Sequence[str] | None = None, **more: Any) -> None:
        if held_out is not None and (isinstance(held_out, str) or not held_out):
            raise UserError(f"data.held_out must be a list of names or null, got {held_out!r}. Try [theo].")
        self.held_out = None if held_out is None else tuple(sorted(held_out))
        super().__init__(**more)

    def _full_name(self) -> str:
        return "-".join([self.name, *(["without", *self.held_out] if self.held_out else [])])

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        root = self._folder(download)
        paths = sorted(root.glob("recordings/*.wav")) or sorted(root.glob("*.wav"))
        found = {path: self.pattern.fullmatch(path.name) for path in paths}
        wrong = [path.name for path, parts in found.items() if parts is None]
        if wrong or not paths:
            what = f"{listed(wrong)}, not named <digit>_<speaker>_<n>.wav" if wrong else "no recordings"
            raise UserError(f"{root} holds {what}; set data.root to {self.source}.")
        named = {path: parts.groups() for path, parts in found.items() if parts is not None}
        speakers = sorted({speaker for _, speaker, _ in named.values()})
        self._check_speakers(speakers)
        groups: dict[str, list[File]] = {"train": [], "test": []}
        for path, (digit, speaker, n) in named.items():
            test = speaker in self.held_out if self.held_out else int(n) in self.official
            groups["test" if test else "train"].append((path, {"y": int(digit), **self._speaker(speaker)}))
        return self._stores(groups)

    def _check_speakers(self, speakers: Sequence[str]) -> None:
        """Refuses a `held_out` that is unknown or everybody, and recordings of speakers without a number."""
        strange = [name for name in self.held_out or () if name not in speakers]
        if strange or {*(self.held_out or ())} == {*speakers}:
            what = f"{strange[0]!r} is none of them" if strange else "nobody is left for training"
            raise UserError(f"data.held_out names speakers among {listed(speakers)}; {what}.")
        known = self._names
        new = [name for name in speakers if known is not None and name not in known]
        if new:
            raise UserError(
                f"{self.root} holds recordings of {listed(new)}, and data.columns.speaker.names only "
                f"{listed(known or ())}. Add them there, and set data.columns.speaker.size."
            )

    @property
    def _names(self) -> tuple[str, ...] | None:
        """The speakers in the order of their numbers; None if they are no column."""
        return self.spec.fields["speaker"].names if "speaker" in self.spec.fields else None

    def _speaker(self, name: str) -> dict[str, int]:
        return {} if self._names is None else {"speaker": self._names.index(name)}
