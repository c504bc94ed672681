"""OMNIGLOT's letters."""

from __future__ import annotations

import hashlib
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from genlab.data.decode import ImageEntry
from genlab.data.folders import FileSet, zip_entries
from genlab.data.store import ArrayStore
from genlab.errors import UserError, sentence


class OmniglotSmall(FileSet):
    """OMNIGLOT's two small background sets: 4,840 drawings of letters, white on black. Lake et al. (2015), Science 350.

    `data.root` holds omniglot-background-small1.zip and -small2.zip (or the authors' images_background_small1.zip and
    so on), with `<alphabet>/<character>/*.png`, 105 x 105, black on white. Labels are the alphabets. Both sets contain
    the Latin and Greek alphabets, 1,000 drawings; each drawing is used once, so that no test image is a training image.
    A drawing's name decides its split, about 80 / 10 / 10 %. Characters occur in all splits, each drawing in one.
    """

    name = "OMNIGLOT-small"
    class_names = (
        "Balinese", "Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog",
    )  # fmt: skip
    _archives: ClassVar[tuple[str, ...]] = ("background-small{}.zip", "background_small{}.zip")
    _prefixes: ClassVar[tuple[str, ...]] = ("omniglot-", "images_", "")

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if download:
            raise UserError("OMNIGLOT-small cannot be downloaded; set data.root to the folder of its two zips.")
        with ExitStack() as opened:
            files: dict[tuple[str, ...], ImageEntry] = {}
            for part in (1, 2):
                path = self._find(part)
                try:
                    archive = opened.enter_context(zipfile.ZipFile(path))
                except (zipfile.BadZipFile, OSError) as error:
                    raise UserError(f"{path} is not a readable zip ({sentence(error)}); fetch it again.") from error
                files |= {parts[-3:]: entry for parts, entry in zip_entries(archive) if len(parts) >= 3}
            number = {name: position for position, name in enumerate(self.class_names or ())}
            strange = sorted({parts[0] for parts in files} - number.keys())
            if strange or not files:
                what = f"an alphabet {strange[0]!r} unknown to OMNIGLOT-small" if strange else "no drawings"
                raise UserError(f"The zips in {self.root} hold {what}; expected <alphabet>/<character>/*.png.")
            groups: dict[str, list[ImageEntry]] = {"train": [], "val": [], "test": []}
            for parts, entry in sorted(files.items()):
                labelled = ImageEntry(entry.name, entry.stamp, entry.read, number[parts[0]])
                groups[_split_of("/".join(parts))].append(labelled)
            stores = self._prepare({name: group for name, group in groups.items() if group})
        return {name: _inverted(store) for name, store in stores.items()}

    def _find(self, part: int) -> Path:
        if self.root is None:
            raise UserError("data=omniglot_small needs the folder of its two zips: set data.root=PATH.")
        for name in (prefix + archive.format(part) for prefix in self._prefixes for archive in self._archives):
            if (self.root / name).is_file():
                return self.root / name
        raise UserError(
            f"OMNIGLOT-small is not in {self.root}: expected omniglot-background-small{part}.zip there; set data.root "
            "to its folder."
        )


def _split_of(name: str) -> str:
    """The split of a drawing, from the hash of its name alone: independent of the other files and of their order."""
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {0: "val", 1: "test"}.get(tenth, "train")


def _inverted(store: ArrayStore) -> ArrayStore:
    """A copy with black and white swapped."""
    return store.with_column("x", 255 - store.values("x"))
