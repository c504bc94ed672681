"""Images in folders and zips."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from genlab.data.decode import DANGLING, ImageEntry, ZipMembers
from genlab.data.module import ArrayData, log
from genlab.data.store import ArrayStore, prepare_images
from genlab.data.table import LABEL_HEADS, Table, files_column, matched, read_names
from genlab.errors import UserError, sentence
from genlab.fields.decoding import check_reading
from genlab.fields.image import Image
from genlab.fields.label import Label

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
File = tuple[tuple[str, ...], ImageEntry]
"""The parts of an image's path, and the image."""


class FileSet(ArrayData):
    """Data sets whose source is many encoded images.

    Args:
        background: Colour under transparent pixels, `white`, `black` or `#rrggbb`; of columns with pictures as well.
        bits: Of the values in 16-bit images, 8, 10, 12, 14 or 16, of which the upper eight are kept. None: those that
            the largest value of all of them needs.
        **more: Those of `ArrayData`.

    Raises:
        UserError: If the background is no colour, or the bits are none of these.
    """

    def __init__(self, *, background: str = "white", bits: int | None = None, **more: Any) -> None:
        super().__init__(**more)
        stated = more.get("columns") or {}
        for name, field in self._spec.fields.items():
            if isinstance(field, Image):
                facts = {"background": background, "bits": bits, **stated.get(name, {})}
                check_reading(facts["background"], facts["bits"])
                read = replace(field, background=facts["background"], bits=facts["bits"])
                self._spec = self._spec.with_field(name, read)

    def _prepare(
        self, groups: Mapping[str, list[ImageEntry]], columns: Mapping[str, Tensor] | None = None
    ) -> dict[str, ArrayStore]:
        """Stores by split; the entries of all splits are decoded together, so that one error lists all broken files.

        Args:
            groups: Entries by split.
            columns: Further stored columns of all entries [N, ...], those of one split after the other.
        """
        entries = [entry for group in groups.values() for entry in group]
        field = self._spec.x
        assert isinstance(field, Image)
        store, bits = prepare_images(
            entries,
            self.size,
            self.spec.shape[0],
            workers=self.workers,
            skip_broken=self.skip_broken,
            background=field.background,
            bits=field.bits,
        )
        self._found("x", bits=bits)
        kept = store.index
        rows = torch.arange(len(entries)) if kept is None else kept
        for name, values in (columns or {}).items():
            store = store.with_column(name, values if kept is None else values[kept])
        bounds = np.cumsum([0, *(len(group) for group in groups.values())])
        if len(groups) == 1:
            return {next(iter(groups)): store}
        stores = {}
        for name, low, high in zip(groups, bounds[:-1], bounds[1:], strict=True):
            positions = ((rows >= low) & (rows < high)).nonzero().squeeze(1)
            if len(positions) == 0:
                raise UserError(f"No image of the {name} split in {self.root} can be read.")
            stores[name] = store.subset(positions)
        return stores

    def _entries(self, files: Sequence[File]) -> dict[str, list[ImageEntry]]:
        """Sorts files into splits and classes by their folders.

        Args:
            files: Path parts and entry of each image.

        Returns:
            The entries by split ("all" if there is no sub-folder `train`), sorted by name. Their label is the number of
            their first folder (below the split) in alphabetical order, -1 without classes.
        """
        if not files:
            raise UserError(
                f"There are no images in {self.root}; expected files ending in {', '.join(FORMATS)}, in any depth."
            )
        groups = by_split(files, f"images in {self.root}")
        names = class_folders(groups)
        self.class_names = tuple(names) or None
        number = {name: position for position, name in enumerate(names)}
        return {
            split: [
                ImageEntry(entry.name, entry.stamp, entry.read, number.get(parts[0], -1) if len(parts) > 1 else -1)
                for parts, entry in group
            ]
            for split, group in groups.items()
        }


class ImageFolder(FileSet):
    """A folder of images, in any depth.

    Sub-folders `train`, `val` (or `valid`, `validation`) and `test` are official splits; missing ones are cut off
    `train`. Without `train`, a fixed 80 / 10 / 10 % for train, val and test. The first sub-folder (below the split)
    is an image's class, if there are at least two such folders. Hidden files are ignored.

    Further columns, which `columns` states, come from a table in the folder: a row for each sample, with the image's
    file in the column `file` and the cells that `Field.parse` of each kind reads. An image may have several rows, all
    in one split, and images without one are left out. A column `label` replaces the folders as classes.

    Args:
        table: The table's path in the folder; None: its only csv, tsv or captions.txt, if `columns` are stated.
        domain: Take only the images of one domain, in the folders `trainA`, `testA` of "A", and so on.
        **more: Those of `ArrayData`.
    """

    name = "folder"

    def __init__(self, *, table: str | None = None, domain: str | None = None, **more: Any) -> None:
        self.table, self.domain = table, domain
        super().__init__(**more)

    def _full_name(self) -> str:
        name = named_after(self.name, self.root)
        return f"{name}-{self.domain}" if self.domain else name

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if download:
            raise UserError("data=folder cannot be downloaded; set data.root=PATH to your folder of images.")
        if self.root is None:
            raise UserError("data=folder needs data.root=PATH, a folder of images.")
        if self.root.is_file():
            hint = "for a zip use data=zip" if zipfile.is_zipfile(self.root) else "give the folder that holds it"
            raise UserError(f"data.root={self.root} is a file, and data=folder needs a folder; {hint}.")
        if not self.root.is_dir():
            raise UserError(f"The folder data.root={self.root} does not exist; set data.root to a folder of images.")
        domain = self.domain or ""
        files = unwrapped([file_entry(self.root, path) for path in walk(self.root)], self.root, domain)
        if domain:
            files = self._of_domain(files)
        table = self._table(self.root)
        return self._with_rows(files, table) if table else self._prepare(self._entries(files))

    def _of_domain(self, files: list[File]) -> list[File]:
        """The files of one domain, as if its folders were called like splits."""
        assert self.domain is not None
        splits = {f"{folder}{self.domain}".lower(): split for folder, split in SPLIT_FOLDERS.items()}
        found = [((splits[parts[0].lower()], *parts[1:]), e) for parts, e in files if parts[0].lower() in splits]
        if not any(parts[0] == "train" for parts, _ in found):
            raise UserError(
                f"There are no images in {self.root}/train{self.domain}; set data.root to a folder with it."
            )
        return found

    def _table(self, root: Path) -> Table | None:
        if self.table is not None:
            return Table.read(root / self.table)
        if not self._stated:
            return None
        found: list[Path] = []
        folder: Path | None = root
        while folder is not None and not found:  # a single top folder is passed over
            found = sorted(
                p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".tsv") or p.name == "captions.txt"
            )
            folder = only_folder(folder)
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "no csv, tsv or captions.txt"
            raise UserError(f"data.columns needs a table, and {root} holds {names}. Choose one with data.table=FILE.")
        return Table.read(found[0])

    def _with_rows(self, files: list[File], table: Table) -> dict[str, ArrayStore]:
        """Stores of the table's rows, each with its image."""
        known = {entry.name: (parts, entry) for parts, entry in files}
        names = matched(table.files(), known, table.path)
        groups = self._entries([known[name] for name in sorted(set(names))])
        if len(files) > len(set(names)):
            unused = len(files) - len(set(names))
            log.warning("%d images in %s have no row in %s and are left out.", unused, self.root, table.path)
        numbers = {entry.name: i for i, entry in enumerate(e for group in groups.values() for e in group)}
        rows_of: dict[int, list[int]] = {}
        for row, name in enumerate(names):
            rows_of.setdefault(numbers[name], []).append(row)
        # Splits are cut by images, so that all rows of one are in the same split.
        images = self._complete(self._prepare(groups, {"image": torch.arange(len(numbers))}))
        stores, rows = {}, {}
        for split, store in images.items():
            of_image = [rows_of[number] for number in store.values("image").tolist()]
            places = torch.arange(len(store)).repeat_interleave(torch.tensor([len(each) for each in of_image]))
            stores[split] = store.with_column("image", None).subset(places)
            rows[split] = [row for each in of_image for row in each]
        fields = {name: self._spec.fields[name] for name in self._stated}
        label = table.place(LABEL_HEADS)
        if label is not None and self.labels and "y" not in fields:
            fields["y"] = Label()
        bounds = np.cumsum([0, *(len(each) for each in rows.values())]).tolist()
        spans = {split: torch.arange(a, b) for split, a, b in zip(rows, bounds[:-1], bounds[1:], strict=True)}
        for name, field in fields.items():
            head = table.head[label] if name == "y" and label is not None else name
            every = [row for each in rows.values() for row in each]
            found, values = table.column(head, field, every, spans["train"])
            if name == "y":
                self.class_names = found.names
            else:
                facts = {fact: getattr(found, fact, None) for fact in ("size", "names", "most", "bits")}
                self._found(name, **{fact: value for fact, value in facts.items() if value is not None})
            stores = {split: store.with_column(name, values.subset(spans[split])) for split, store in stores.items()}
        return stores


class PairedFolders(FileSet):
    """Images, and beside each one or more others: `photo/0001.jpg` and `label/0001.png`, or the same below a split.

    Files belong together if their paths are equal but for the column's folder and the suffix. Splits and classes are
    as in `ImageFolder`.

    Args:
        folders: The folder of each column: `{x: photo, c: label}`. `columns` says of which kind each is.
        class_files: For columns with classes, a file with their names in the folder, one a line; it may be missing.
        **more: Those of `ArrayData`.

    Raises:
        UserError: If there is no folder for the images, or a column has none.
    """

    name = "pairs"

    def __init__(
        self, *, folders: Mapping[str, str], class_files: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        self.folders, self.class_files = dict(folders), dict(class_files or {})
        columns = {"x", *(more.get("columns") or {})}
        if columns != set(self.folders):
            raise UserError(
                f"data.folders names {', '.join(sorted(self.folders))}, and data.columns with x "
                f"{', '.join(sorted(columns))}."
            )
        super().__init__(**more)

    def _full_name(self) -> str:
        return named_after(self.name, self.root)

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if download or self.root is None or not self.root.is_dir():
            raise UserError(f"data.root must be a folder with {self._pattern()}, got {self.root}.")
        root = self.root
        while (inside := only_folder(root, tuple(self.folders.values()))) is not None:
            root = inside
        for name, file in self.class_files.items():
            if (root / file).is_file():
                names = read_names(root / file)
                self._found(name, size=len(names), names=names)
        every = list(walk(root))
        found: dict[str, dict[tuple[str, ...], Path]] = {
            name: dict(_paired(root, folder, every)) for name, folder in self.folders.items()
        }
        for name, paths in found.items():
            alone = sorted(found["x"].keys() ^ paths.keys())
            if alone:
                one = "/".join(alone[0])
                raise UserError(
                    f"{len(alone)} of the files in {root} are not in pairs, e.g. {one} is missing in "
                    f"{self.folders['x'] if alone[0] in paths else self.folders[name]}. Expected {self._pattern()}."
                )
        entries = [(parts, file_entry(root, path)[1]) for parts, path in found["x"].items()]
        parts_of = {entry.name: parts for parts, entry in entries}
        groups = self._entries(entries)
        order = [parts_of[entry.name] for group in groups.values() for entry in group]
        others = {}
        for name, paths in found.items():
            if name != "x":
                files = [paths[parts] for parts in order]
                field, others[name] = files_column(self._spec.fields[name], files, self.workers)
                self._spec = self._spec.with_field(name, field)
        return self._prepare(groups, others)

    def _pattern(self) -> str:
        return " and ".join(f"{folder}/NAME" for folder in self.folders.values()) + ", below train/, val/, test/ or not"


def _paired(root: Path, folder: str, paths: list[Path]) -> Iterator[tuple[tuple[str, ...], Path]]:
    """The paths below `root` with `folder` first, or after a split's folder; without it and without their suffix."""
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        at = 1 if parts[0].lower() in SPLIT_FOLDERS else 0
        if len(parts) > at + 1 and parts[at] == folder:
            yield (*parts[:at], *parts[at + 1 :]), path


class ImageZip(FileSet):
    """A zip of images, read without unpacking; its folders are splits and classes as in `ImageFolder`.

    A single top folder, which most programs add, is ignored. Nothing is written under the names in the archive.
    """

    name = "zip"

    def _full_name(self) -> str:
        return named_after(self.name, self.root)

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if download:
            raise UserError("data=zip cannot be downloaded; set data.root=PATH to your zip of images.")
        if self.root is None:
            raise UserError("data=zip needs data.root=PATH, a zip of images.")
        if self.root.is_dir():
            raise UserError(f"data.root={self.root} is a folder, and data=zip needs a zip file; use data=folder.")
        if not self.root.is_file():
            raise UserError(f"The file data.root={self.root} does not exist; set data.root to a zip of images.")
        try:
            archive = zipfile.ZipFile(self.root)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"data.root={self.root} is not a readable zip ({sentence(error)}).") from error
        with archive:
            return self._prepare(self._entries(unwrapped(list(zip_entries(archive)), self.root)))


T = TypeVar("T")


def by_split(files: Sequence[tuple[tuple[str, ...], T]], what: str) -> dict[str, list[tuple[tuple[str, ...], T]]]:
    """Files by official split, sorted by their paths, or all as "all" if there is no folder `train`.

    Args:
        files: Path parts of each file, and whatever belongs to it.
        what: Stands for the files in a warning of those that lie outside the splits' folders.

    Returns:
        The files with their parts below the split's folder.
    """
    official = any(SPLIT_FOLDERS.get(parts[0].lower()) == "train" for parts, _ in files if len(parts) > 1)
    groups: dict[str, list[tuple[tuple[str, ...], T]]] = {}
    left_out = 0
    for parts, each in sorted(files, key=lambda file: file[0]):
        if not official:
            groups.setdefault("all", []).append((parts, each))
        elif len(parts) > 1 and parts[0].lower() in SPLIT_FOLDERS:
            groups.setdefault(SPLIT_FOLDERS[parts[0].lower()], []).append((parts[1:], each))
        else:
            left_out += 1
    if left_out:
        log.warning("%d %s lie outside train/, val/ and test/ and are not used.", left_out, what)
    return groups


def class_folders(groups: Mapping[str, Sequence[tuple[tuple[str, ...], Any]]]) -> list[str]:
    """The first folders below the split, if there are at least two: a single one is not a class."""
    names = sorted({parts[0] for group in groups.values() for parts, _ in group if len(parts) > 1})
    return names if len(names) > 1 else []


def walk(root: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Path]:
    """The files with these endings under `root`, without hidden files and folders.

    Links are followed, but no folder is visited twice. Links of other names that lead nowhere, perhaps to folders of
    images, are warned of.
    """
    seen: set[str] = set()
    dangling: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(formats):
                yield Path(folder, name)
            elif os.path.islink(path := os.path.join(folder, name)) and not os.path.exists(path):
                dangling.append(path)
    if dangling:
        log.warning("%d links in %s lead to nothing and are passed over, e.g. %s.", len(dangling), root, dangling[0])


def file_entry(root: Path, path: Path) -> File:
    """An image of a folder."""
    parts = path.relative_to(root).parts
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
    except OSError:  # reading it fails later and is reported with the broken images
        stamp = DANGLING if os.path.islink(path) else (0, 0)
    return parts, ImageEntry("/".join(parts), stamp, path.read_bytes)


def zip_entries(archive: zipfile.ZipFile) -> Iterator[File]:
    """The images in a zip, recognised by their names."""
    members = ZipMembers(archive)
    for position, info in enumerate(archive.infolist()):
        parts = tuple(part for part in info.filename.replace("\\", "/").split("/") if part)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if info.is_dir() or not parts or hidden or not parts[-1].lower().endswith(FORMATS):
            continue
        read: Callable[[], bytes] = partial(members.read, position)
        yield parts, ImageEntry("/".join(parts), (info.file_size, info.CRC), read)


def unwrapped(files: list[tuple[tuple[str, ...], T]], root: Path, domain: str = "") -> list[tuple[tuple[str, ...], T]]:
    """Drops top folders that contain all files, unless they are named like a split.

    Args:
        files: Path parts of each file, and whatever belongs to it.
        root: Where they are, for the log line that names a dropped folder.
        domain: What stands behind the names of splits, "A" of trainA.
    """
    dropped: list[str] = []
    while files:
        first = {parts[0] if len(parts) > 1 else "" for parts, _ in files}
        top = next(iter(first))
        if len(first) != 1 or not top or _is_split(top, domain):
            break
        dropped.append(top)
        files = [(parts[1:], each) for parts, each in files]
    if dropped and any(len(parts) > 1 for parts, _ in files):
        log.info("All files of %s lie in %s: splits and classes are the folders in it.", root, "/".join(dropped))
    return files


def only_folder(root: Path, but: tuple[str, ...] = ()) -> Path | None:
    """The only folder in a folder, without hidden ones.

    None if it is a link (which may lead back up), cannot be read, or is named like a split or one of `but`.
    """
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(folders) != 1 or _is_split(folders[0].name) or folders[0].name in but:
        return None
    return folders[0] if not folders[0].is_symlink() and os.access(folders[0], os.R_OK | os.X_OK) else None


def _is_split(folder: str, domain: str = "") -> bool:
    return folder.lower() in {f"{name}{domain}".lower() for name in SPLIT_FOLDERS}


def named_after(kind: str, root: Path | None) -> str:
    """A name for cards and file names: "folder-cats" for .../cats."""
    stem = "" if root is None else root.resolve().stem
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")
    return f"{kind}-{plain}" if plain else kind
