"""Columns from a table beside the samples, and from folders of files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Column, Seq
from genlab.data.columns import Ragged, Rows, Stored
from genlab.data.decode import for_each
from genlab.data.store import cached_array, digest
from genlab.errors import UserError, sentence
from genlab.fields.attributes import Attributes
from genlab.fields.base import Field
from genlab.fields.kinds import make_field

FILE_HEADS = ("file", "filename", "file_name", "image", "path")  # of the column that names the file of each row
LABEL_HEADS = ("y", "label", "class")
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """A table with a head.

    Attributes:
        path: Its file.
        head: Names of the columns.
        cells: Rows of as many texts.
    """

    path: Path
    head: tuple[str, ...]
    cells: list[list[str]]

    @classmethod
    def read(cls, path: Path) -> Table:
        """A table in UTF-8 with commas, semicolons or tabs between cells, which may be quoted.

        Raises:
            UserError: If it cannot be read, or a row has another number of cells than the head.
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                first = file.readline()
                delimiter = max(DELIMITERS, key=first.count)
                file.seek(0)
                rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"The table {path} cannot be read ({sentence(error)}).") from error
        if len(rows) < 2:
            raise UserError(f"The table {path} needs a head and at least one row.")
        head, *cells = rows
        for number, row in enumerate(cells, start=2):
            if len(row) != len(head):
                raise UserError(
                    f"Row {number} of {path} has {len(row)} cells, and the head has {len(head)}: {', '.join(head)}. "
                    'A cell that holds a comma stands in quotes: "a dog, running".'
                )
        return cls(path, tuple(name.strip() for name in head), cells)

    def place(self, heads: Sequence[str]) -> int | None:
        """Number of the first column with one of these names, whatever the case of letters; None if there is none."""
        lower = [name.lower() for name in self.head]
        return next((lower.index(name) for name in heads if name in lower), None)

    def files(self) -> list[str]:
        """The file of each row, with "/" between the parts of its path.

        Raises:
            UserError: If no column is one of `FILE_HEADS`.
        """
        place = self.place(FILE_HEADS)
        if place is None:
            raise UserError(
                f"The table {self.path} has the columns {', '.join(self.head)}; the one of the files must be called "
                f"{' or '.join(FILE_HEADS)}."
            )
        return [row[place].strip().replace("\\", "/").removeprefix("./") for row in self.cells]

    def texts(self, name: str, field: Field) -> list[str]:
        """The cells of a column; of attributes also from one column for each, called by its name.

        Raises:
            UserError: If there is no such column.
        """
        if name in self.head:
            place = self.head.index(name)
            return [row[place] for row in self.cells]
        names = field.names or ()
        if isinstance(field, Attributes) and names and set(names) <= set(self.head):
            places = [(each, self.head.index(each)) for each in names]
            return [", ".join(f"{each}: {row[place]}" for each, place in places) for row in self.cells]
        raise UserError(f"data.columns names {name}, and the table {self.path} has {', '.join(self.head)}.")

    def column(self, name: str, field: Field, rows: Sequence[int], training: Tensor) -> tuple[Field, Stored]:
        """The stored values of some rows, and their field with the facts that they add.

        Args:
            name: The column.
            field: Its field as the config states it.
            rows: Numbers of rows.
            training: Positions in `rows` of the training rows.

        Raises:
            UserError: Names the column and the mistake in it.
        """
        cells = self.texts(name, field)
        texts = [cells[row] for row in rows]
        try:
            if field.suffixes:
                found, of_files = files_column(field, [self.path.parent / text.strip() for text in texts])
                return found, Rows(of_files)
            found, values = field.read(texts, training)
        except UserError as error:
            raise UserError(f"The column {name} of {self.path}: {error}.") from error
        return found, stored(found, values)


def stored(field: Field, values: Column) -> Stored:
    """Values as a model sees them as a column of the store."""
    if isinstance(values, Seq):
        parts = [v[:length] for v, length in zip(values.values, values.length.tolist(), strict=True)]
        return Ragged.of([field.stored(part) for part in parts])
    return Rows(field.stored(values))


def files_column(field: Field, paths: Sequence[Path], workers: int = 1) -> tuple[Field, Tensor]:
    """Stored values [N, ...] of files, which are read once and kept if the store holds them as bytes.

    Returns:
        The field, with the facts that all of its files tell together, and the values.

    Raises:
        UserError: If a file is missing or cannot be read.
    """

    def one(field: Field, path: Path) -> Tensor:
        value = field.parse(str(path), 1)
        assert isinstance(value, Tensor)
        return field.stored(value)[0]

    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} files are not there, e.g. {missing[0]}")
    first = one(field, paths[0])
    if first.dtype != torch.uint8:
        return field, torch.stack([first, *(one(field, path) for path in paths[1:])])

    def fill(array: np.ndarray) -> dict[str, Any]:
        found = field.of_files(paths)

        def row(i: int) -> None:
            array[i] = one(found, paths[i]).numpy()

        for_each(row, len(paths), workers)
        return {"field": found.to_dict()}

    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = digest(b"genlab-files-2", json.dumps([field.to_dict(), stamps]).encode())
    array, note = cached_array(key, (len(paths), *first.shape), fill)
    return make_field(note["field"]), torch.from_numpy(array)


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line; a number before each, from 0 upwards, is left out.

    Raises:
        UserError: If the file cannot be read or the numbers are not 0, 1, 2, ...
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The names of classes in {path} cannot be read ({sentence(error)}).") from error
    parts = [line.split(maxsplit=1) for line in lines]
    if all(len(part) == 2 and part[0].isdecimal() for part in parts):
        if [int(part[0]) for part in parts] != list(range(len(parts))):
            raise UserError(f"The classes in {path} must be numbered 0, 1, 2, ... in this order.")
        return tuple(part[1] for part in parts)
    return tuple(lines)


def matched(wanted: Sequence[str], known: Mapping[str, Any], where: Path) -> list[str]:
    """The key of `known` for each wanted path: the same, or the only one that ends with it.

    Raises:
        UserError: If one is not there, or fits several.
    """
    ends: dict[str, list[str]] = {}
    for key in known:
        parts = key.split("/")
        for start in range(1, len(parts)):
            ends.setdefault("/".join(parts[start:]), []).append(key)
    found = [name if name in known else (ends.get(name) or [""])[0] for name in wanted]
    missing = sorted({name for name, key in zip(wanted, found, strict=True) if not key})
    if missing:
        raise UserError(f"{len(missing)} files of {where} are not there, e.g. {missing[0]}.")
    double = sorted({name for name in wanted if name not in known and len(ends[name]) > 1})
    if double:
        raise UserError(f"{double[0]} of {where} may be {' or '.join(ends[double[0]][:2])}: write its folders as well.")
    return found
