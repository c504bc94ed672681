"""Sentences in text files, one a line."""

from __future__ import annotations

import codecs
import re
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from genlab.data.columns import Ragged
from genlab.data.folders import SPLIT_FOLDERS
from genlab.data.module import SPLITS
from genlab.data.sequences import SequenceSet, sequences
from genlab.data.store import ArrayStore
from genlab.errors import UserError, sentence
from genlab.fields.typed import listed
from genlab.fields.vocabulary import UNKNOWN, vocabulary

SPLIT_WORDS = {**SPLIT_FOLDERS, "dev": "val"}
SEPARATORS = {"word": " ", "character": ""}  # by level: what stands between two tokens
LABEL = re.compile(r"\.(\d{1,3}|neg|pos)$")  # end of the name of a file whose sentences are of one class


class Text(SequenceSet):
    """Sentences in text files, one a line, as numbers of words or characters, int32 [T].

    `root` is a file, of which 80 / 10 / 10 % are for train, val and test; or a folder, whose files are splits if
    "train", "val" (or "valid", "validation", "dev") and "test" are parts of their names, as in ptb.train.txt. Parts are
    what ".", "-" and "_" separate. A missing val or test is cut off train; a folder without such names is one corpus,
    its files ending in .txt, or in labels. Labels are the ends .0, .1, ... and .neg, .pos, if there are at least two;
    the sentences of a file without such an end have no label.

    The vocabulary is that of the training split, all of it, whatever `limit_train` is; see
    `genlab.fields.vocabulary.vocabulary`. `columns.x.size` is the number of the most frequent words that are kept,
    "<unk>" among them; if it is null, all are. Other words become "<unk>".

    Args:
        level: "word": words are separated by white space, and taken as they stand; "character".
        lowercase: Turn all letters into small ones.
        encoding: Of the files, as Python names it.
        splits: Part of the names of the files of each split, such as `{train: test, test: dev}`; None: see above. All
            files with that part in their names are joined.
        class_names: Names of the classes, in the order of the ends; None: the ends.
        title: Name of the data on cards; None: "text" and the name of the file or folder.
        **more: Those of `ArrayData`.

    Raises:
        UserError: If an argument is none of the above.
    """

    name = "text"
    kind = "tokens"
    own_shape: ClassVar[tuple[int | None, ...] | None] = (None,)
    source: ClassVar[str] = "a text file, or a folder of files such as train.txt, valid.txt and test.txt"
    nouns: ClassVar[tuple[str, str]] = ("sentences", "words")

    def __init__(
        self,
        *,
        level: str = "word",
        lowercase: bool = False,
        encoding: str = "utf-8",
        splits: Mapping[str, str] | None = None,
        class_names: Sequence[str] | None = None,
        title: str | None = None,
        **more: Any,
    ) -> None:
        if level not in SEPARATORS:
            raise UserError(f"data.level must be one of {', '.join(SEPARATORS)}, got {level!r}.")
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise UserError(f"data.encoding={encoding} is unknown; try utf-8 or latin-1.") from error
        if splits is not None and ("train" not in splits or not splits.keys() <= {*SPLITS}):
            raise UserError(
                f"data.splits must name parts of file names for train, and for val and test if you like, got "
                f"{dict(splits)}. Try data.splits={{train: test, test: dev}}."
            )
        self.level, self.lowercase, self.encoding, self.title = level, lowercase, encoding, title
        self.splits = None if splits is None else {split: str(part) for split, part in splits.items()}
        self._titles = None if class_names is None else tuple(map(str, class_names))
        self.class_names = self._titles
        super().__init__(**more)
        self._spec = self._spec.with_stated({"x": {"separator": SEPARATORS[level]}})
        if self._spec.x.size is not None and self._spec.x.size < 2:
            raise UserError(f"data.columns.x.size must be at least 2 words, got {self._spec.x.size}.")

    def _full_name(self) -> str:
        return self.title or super()._full_name()

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        groups = self._files(self._given(download))
        ends = self._ends([path for group in groups.values() for path in group])
        # Words are numbered in the order of their appearance, until it is known which the training split holds.
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        stores = {split: self._store(group, ends, numbers) for split, group in groups.items()}
        return self._numbered(self._complete(self._bounded(stores)), list(numbers))

    def _ends(self, files: Sequence[Path]) -> list[str]:
        """The ends of names that are labels, in the order of their numbers; none if there are not two."""
        ends = sorted({_end(path) for path in files} - {""}, key=lambda end: (len(end), end))
        ends = ends if len(ends) > 1 else []
        if not ends and self.labels and self.spec.num_classes:
            raise UserError(
                f"{self.name} has no classes, got {self.spec.num_classes}: no two names of its files end in .0 and .1, "
                "or in .neg and .pos. Try data.num_classes=null data.class_names=null."
            )
        if self._titles is not None and len(self._titles) != len(ends):
            raise UserError(f"{self.name} has the classes {listed(ends)}, got data.class_names={list(self._titles)}.")
        self.class_names = self._titles or tuple(ends) or None
        return ends

    # --- Files ------------------------------------------------------------------------------------------------------

    def _files(self, root: Path) -> dict[str, list[Path]]:
        """The files of each split, in the order of their names; "all" if no name holds a split."""
        if root.is_file():
            if self.splits is not None:
                raise UserError(f"data.splits chooses files of a folder, and data.root={root} is a file.")
            return {"all": [root]}
        files = sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
        groups = self._chosen(files) if self.splits else self._recognised(files)
        return groups or {"all": self._corpus(files)}

    def _chosen(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        """The files of each split that `splits` names."""
        assert self.splits is not None
        groups = {split: [path for path in files if _has(path, part)] for split, part in self.splits.items()}
        for split, group in groups.items():
            if not group:
                raise UserError(
                    f"data.splits.{split}={self.splits[split]} is no part of a name in {self.root}; there are "
                    f"{_names(files)}."
                )
        return groups

    def _recognised(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        """The files of each split by the first word for a split in their names; none if no name holds one."""
        groups: dict[str, list[Path]] = {}
        for path in files:
            split = next((SPLIT_WORDS[part] for part in _parts(path.name) if part in SPLIT_WORDS), None)
            if split is not None:
                groups.setdefault(split, []).append(path)
        groups = {split: groups[split] for split in SPLITS if split in groups}
        if groups and "train" not in groups:
            raise UserError(
                f"{self.root} holds no file for training, only {_names(sum(groups.values(), []))}. Choose by parts of "
                "their names, such as data.splits={train: test, test: dev}."
            )
        for split, group in groups.items():
            if len({_end(path) for path in group}) < len(group):
                raise UserError(
                    f"{self.root} holds several files for {split}: {_names(group)}. Choose by parts of their names, "
                    f"such as data.splits={{train: {group[0].name}}}; all that have a part are joined."
                )
        return groups

    def _corpus(self, files: Sequence[Path]) -> list[Path]:
        """The files of a folder without splits: those with labels, if there are two, else those ending in .txt."""
        labelled = [path for path in files if _end(path)]
        found = labelled if len({*map(_end, labelled)}) > 1 else [p for p in files if p.suffix.lower() == ".txt"]
        if not found:
            raise UserError(f"There is no text in {self.root}; set data.root to {self.source}.")
        return found

    def _lines(self, path: Path) -> list[str]:
        """The lines of a file."""
        try:
            data = path.read_bytes()
            text = data.decode(self.encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path} is not written in {self.encoding}: line {line} holds {error.object[error.start]:#04x}. Try "
                "data.encoding=latin-1."
            ) from error
        except (OSError, LookupError) as error:  # some codecs are none of text
            raise UserError(f"{path} cannot be read ({sentence(error)}).") from error
        if "\0" in text:
            raise UserError(f"{path} holds zero bytes, so it is no text. In UTF-16 it is: data.encoding=utf-16.")
        text = text.lower() if self.lowercase else text
        return text.replace("\r\n", "\n").removesuffix("\n").split("\n")  # `splitlines` ends lines at other marks too

    # --- Numbers ----------------------------------------------------------------------------------------------------

    def _store(self, files: Sequence[Path], ends: Sequence[str], numbers: defaultdict[str, int]) -> ArrayStore:
        """The sentences of some files by the numbers of their tokens, to which new tokens are added."""
        flat, lengths, labels = array("i"), array("q", [0]), []
        for path in files:
            lines = self._lines(path)
            for line in lines:
                words: Sequence[str] = line.split()
                if self.level == "character" and words:
                    words = line
                flat.extend(map(numbers.__getitem__, words))
                lengths.append(len(words))
            labels += [ends.index(_end(path)) if _end(path) in ends else -1] * len(lines)
        offsets = torch.from_numpy(np.array(lengths, np.int64).cumsum())
        store = ArrayStore({"x": Ragged(torch.from_numpy(np.array(flat, np.int32)), offsets)})
        return store.with_column("y", torch.tensor(labels)) if ends else store

    def _numbered(self, stores: Mapping[str, ArrayStore], every: Sequence[str]) -> dict[str, ArrayStore]:
        """The stores of numbers of `every` word, as numbers of the training split's vocabulary."""
        known = [every[i] for i in sequences(stores["train"]).flat.tolist()]
        words = vocabulary([known], self.spec.x.size)
        self._found("x", size=len(words), names=words)
        places = {word: i for i, word in enumerate(words)}
        table = torch.tensor([places.get(word, places[UNKNOWN]) for word in every], dtype=torch.int32)

        def renumbered(x: Ragged) -> Ragged:
            return Ragged(table[x.flat.long()], x.offsets)

        return {s: ArrayStore({**store.columns, "x": renumbered(sequences(store))}) for s, store in stores.items()}


def _parts(name: str) -> list[str]:
    return re.split(r"[._-]+", name.lower())


def _has(path: Path, part: str) -> bool:
    """Whether a file's name holds a part, of whole words: "ptb.train" is one of ptb.train.txt."""
    own, given = _parts(path.name), _parts(part)
    return any(own[i : i + len(given)] == given for i in range(len(own)))


def _end(path: Path) -> str:
    """The end of a name that is a label, without the dot; empty if there is none."""
    found = LABEL.search(path.name)
    return found.group(1) if found else ""


def _names(files: Sequence[Path]) -> str:
    return listed([path.name for path in files]) or "no files"
