"""CelebA: faces, their attributes and their people."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.decode import ImageEntry
from genlab.data.folders import FileSet, file_entry, walk, zip_entries
from genlab.data.module import SPLITS, log
from genlab.data.store import ArrayStore
from genlab.errors import UserError, sentence

PARTITION, ATTRIBUTES, PEOPLE = "list_eval_partition.txt", "list_attr_celeba.txt", "identity_CelebA.txt"
FOLDERS = ("img_align_celeba", "img")  # the first is the official name


class CelebA(FileSet):
    """CelebA: 202,599 aligned faces, 178 x 218 RGB, official splits. Liu et al. (2015), arXiv:1411.7766.

    Images are cropped around the centre to the aspect ratio of `image_size`: 178 x 178 for square images, as usual.
    They are read from `img_align_celeba.zip` without unpacking, or from the folder `img_align_celeba/` if it exists,
    in `root` or in `root/celeba`.

    Args:
        partial: Take the images that are there. Where they do not fill the three official splits, people are shared
            out by their numbers, 80 / 10 / 10 %, and nobody is in two splits; without identity_CelebA.txt images are.
            Scores on a part are no CelebA scores.
        **more: Those of `ArrayData`. `columns.attributes` gives batches the attributes (0 or 1) that its `names` lists.
    """

    name = "celeba"

    def __init__(self, *, partial: bool = False, **more: Any) -> None:
        self.partial = partial
        super().__init__(**more)

    def _full_name(self) -> str:
        return f"{self.name}-partial" if self.partial else self.name

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if self.root is None:
            raise UserError("data=celeba needs the folder of its files: set data.root=PATH.")
        source = self._source()
        if source is None and download:
            self._download()
            source = self._source()
        if source is None:
            raise UserError(
                f"CelebA is not in {self.root / 'celeba'}: put img_align_celeba.zip and {PARTITION} there (from the "
                "Google Drive linked at mmlab.ie.cuhk.edu.hk/projects/CelebA.html), or set data.root to the folder "
                "that holds celeba/, or data.download=true. For a part of the images: data.partial=true."
            )
        if source.is_dir():
            known = {path.name: file_entry(source, path)[1] for path in walk(source)}
            return self._stores(known, source)
        try:
            archive = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{source} is not a readable zip ({sentence(error)}); fetch it again.") from error
        with archive:
            return self._stores({parts[-1]: entry for parts, entry in zip_entries(archive)}, source)

    def _source(self) -> Path | None:
        """The folder or zip of the images; None if they, or the official splits of a whole set, are not there."""
        assert self.root is not None
        for base in (self.root / "celeba", self.root):
            if not self.partial and not (base / PARTITION).is_file():
                continue
            if (base / "img_align_celeba.zip").is_file() and not (base / FOLDERS[0]).is_dir():
                return base / "img_align_celeba.zip"
            for folder in FOLDERS:
                if (base / folder).is_dir():
                    return base / folder
        return None

    def _stores(self, known: dict[str, ImageEntry], source: Path) -> dict[str, ArrayStore]:
        base = source.parent
        groups = self._parted(known, base) if self.partial else self._official(known, source)
        columns = {}
        if "attributes" in self._stated:
            columns["attributes"] = self._attributes(base, [name for group in groups.values() for name in group])
        return self._prepare({split: [known[name] for name in group] for split, group in groups.items()}, columns)

    def _download(self) -> None:
        from torchvision import datasets

        try:
            datasets.CelebA(str(self.root), split="all", download=True)
        # gdown raises its own error classes, and may not be installed.
        except Exception as error:
            raise UserError(
                f"CelebA could not be downloaded to {self.root} ({sentence(error)}); fetch img_align_celeba.zip and "
                f"{PARTITION} by hand from its Google Drive and put them into {self.root}/celeba."
            ) from error

    # --- Splits -------------------------------------------------------------------------------------------------

    @staticmethod
    def _official(known: dict[str, ImageEntry], source: Path) -> dict[str, list[str]]:
        """File names by official split, each of which must be there."""
        groups = _partition(source.parent / PARTITION)
        missing = [name for group in groups.values() for name in group if name not in known]
        if missing:
            raise UserError(
                f"{len(missing)} of CelebA's images are not in {source}, e.g. {missing[0]}; unpack it again, or take "
                "those that are there with data.partial=true."
            )
        return groups

    def _parted(self, known: dict[str, ImageEntry], base: Path) -> dict[str, list[str]]:
        """File names by split of the images that are there: official splits if all have images, else by people."""
        if not known:
            raise UserError(f"There are no images of CelebA in {base}.")
        if (base / PARTITION).is_file():
            official = _partition(base / PARTITION)
            groups = {split: [name for name in group if name in known] for split, group in official.items()}
            if all(groups.values()):
                return groups
        if not (base / PEOPLE).is_file():
            log.warning("%s is not in %s: one person may be in two splits.", PEOPLE, base)
            return {"all": sorted(known)}
        people = {words[0]: int(words[1]) for words in _lines(base / PEOPLE, 2) if words[0] in known}
        nameless = known.keys() - people.keys()
        if nameless:
            raise UserError(f"{base / PEOPLE} does not say who is in {len(nameless)} images, e.g. {min(nameless)}.")
        # By the number alone, so that further images of a person join the others.
        tenth = {name: people[name] * 2654435761 % 2**32 * 10 >> 32 for name in sorted(known)}  # Knuth's hash
        split = {name: {0: "val", 1: "test"}.get(t, "train") for name, t in tenth.items()}
        groups = {each: [name for name in tenth if split[name] == each] for each in SPLITS}
        return groups if all(groups.values()) else {"all": sorted(known)}

    # --- Attributes ---------------------------------------------------------------------------------------------

    def _attributes(self, base: Path, images: Sequence[str]) -> Tensor:
        """uint8 [N, A], those that the column's field names, or all 40."""
        path = base / ATTRIBUTES
        if not path.is_file():
            raise UserError(f"CelebA's attributes are not in {base}: put {ATTRIBUTES} there, or take data=celeba.")
        lines = _lines(path)
        next(lines, None)  # the number of images
        names: list[str] = next(lines, [])
        chosen = self._spec.fields["attributes"].names or tuple(names)
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise UserError(f"{unknown[0]!r} is no attribute of CelebA; they are {', '.join(names)}.")
        rows: dict[str, list[str]] = {}
        for words in lines:
            if len(words) != 1 + len(names) or not set(words[1:]) <= {"1", "-1"}:
                raise UserError(f"{path} is not CelebA's list of attributes: it has the line {' '.join(words)[:80]!r}.")
            rows[words[0]] = words[1:]
        missing = [image for image in images if image not in rows]
        if missing:
            raise UserError(f"{path} lacks {len(missing)} images, e.g. {missing[0]}.")
        places = [names.index(name) for name in chosen]
        return torch.from_numpy(np.array([[rows[image][k] == "1" for k in places] for image in images], np.uint8))


def _lines(path: Path, words: int | None = None) -> Iterator[list[str]]:
    """The lines of a list as words, without empty ones.

    Raises:
        UserError: If one has another number of words.
    """
    for line in path.read_text().splitlines():
        found = line.split()
        if found and words is not None and len(found) != words:
            raise UserError(f"{path} is not CelebA's list: it has the line {line[:80]!r}.")
        if found:
            yield found


def _partition(path: Path) -> dict[str, list[str]]:
    """File names by split, from lines like `000001.jpg 0`."""
    splits = {"0": "train", "1": "val", "2": "test"}
    groups: dict[str, list[str]] = {name: [] for name in splits.values()}
    for line in path.read_text().split("\n"):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in splits:
            raise UserError(f"{path} is not CelebA's list of splits: it has the line {line[:80]!r}.")
        groups[splits[words[1]]].append(words[0])
    return groups
