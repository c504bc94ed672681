"""Image data sets: scikit-learn's digits, torchvision's sets, MNIST-10k, CelebA, OMNIGLOT, folders and zips."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from genlab.data.decode import ImageEntry, ZipMembers
from genlab.data.module import ArrayData, log
from genlab.data.store import ArrayStore, prepare_images, resize_images
from genlab.errors import UserError

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_DIGIT_NAMES = tuple(str(k) for k in range(10))


class _ArraySet(ArrayData):
    """Data sets whose source is an array of decoded images."""

    def _store(self, images: np.ndarray, labels: Any) -> ArrayStore:
        """A store of the images, uint8 [N, C, H, W], resized to the training size, with their labels [N]."""
        y = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        return resize_images(images, self.size, self.spec.shape[0], self.workers).with_column("y", y)


class Digits(_ArraySet):
    """Scikit-learn's 1,797 handwritten digits, 8 x 8 grey, from the package itself (no download).

    A grey value v in 0..16 becomes round(255 v / 16). A fixed split: 70 / 10 / 20 % for train, val and test.
    Source: E. Alpaydin, C. Kaynak (1998), UCI "Optical Recognition of Handwritten Digits", the test part.
    """

    name = "digits"
    class_names = _DIGIT_NAMES
    fractions: ClassVar[tuple[float, float]] = (0.1, 0.2)

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        from sklearn.datasets import load_digits

        source = load_digits()
        images = np.rint(source.images * (255 / 16)).astype(np.uint8)
        return {"all": self._store(images[:, None], source.target)}


class _TorchvisionSet(_ArraySet):
    """Sets that torchvision downloads and reads; train and test are official."""

    title: ClassVar[str]
    files: ClassVar[str]  # paths of the files below `root`, for messages

    def _arrays(self, train: bool, download: bool) -> tuple[np.ndarray, Any]:
        """Images uint8 [N, C, H, W] and labels."""
        raise NotImplementedError

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if self.root is None:
            raise UserError(f"data={self.name} needs the folder of its files: set data.root=PATH.")
        stores = {}
        for split in ("train", "test"):
            try:
                images, labels = self._arrays(split == "train", download)
            except UserError:
                raise
            # torchvision raises RuntimeError for missing files; OSError and others for broken files or no network.
            except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
                if download:
                    raise UserError(
                        f"{self.title} could not be downloaded to {self.root} ({_sentence(error)}); put {self.files} "
                        "there by hand, or set data.root to a folder that holds them."
                    ) from error
                raise UserError(
                    f"{self.title} is not in {self.root}, or is incomplete: expected {self.files}; set data.root to "
                    "the folder that holds them, or data.download=true."
                ) from error
            stores[split] = self._store(images, labels)
        return stores


class MNIST(_TorchvisionSet):
    """MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 grey. LeCun, Cortes, Burges (1998)."""

    name = "mnist"
    title = "MNIST"
    files = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    class_names = _DIGIT_NAMES

    def _arrays(self, train: bool, download: bool) -> tuple[np.ndarray, Any]:
        from torchvision import datasets

        source = datasets.MNIST(str(self.root), train=train, download=download)
        return source.data.numpy()[:, None], source.targets


class FashionMNIST(_TorchvisionSet):
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28 x 28 grey. Xiao et al. (2017), arXiv:1708.07747."""

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    files = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    class_names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

    def _arrays(self, train: bool, download: bool) -> tuple[np.ndarray, Any]:
        from torchvision import datasets

        source = datasets.FashionMNIST(str(self.root), train=train, download=download)
        return source.data.numpy()[:, None], source.targets


class CIFAR10(_TorchvisionSet):
    """CIFAR-10: 50,000 + 10,000 photographs, 32 x 32 RGB. Krizhevsky (2009)."""

    name = "cifar10"
    title = "CIFAR-10"
    files = "cifar-10-batches-py/ (the unpacked cifar-10-python.tar.gz)"
    mirrors = True
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def _arrays(self, train: bool, download: bool) -> tuple[np.ndarray, Any]:
        from torchvision import datasets

        source = datasets.CIFAR10(str(self.root), train=train, download=download)
        return source.data.transpose(0, 3, 1, 2), source.targets


class MNIST10k(_ArraySet):
    """The 10,000 test digits of MNIST, for machines without the training set. Scores on it are not MNIST scores.

    `data.root` holds t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, as .gz or unpacked; the names may start with
    "mnist-". A fixed split: 8,000 / 1,000 / 1,000 for train, val and test.
    """

    name = "MNIST-10k"
    class_names = _DIGIT_NAMES

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if download:
            raise UserError("MNIST-10k cannot be downloaded; set data.root to the folder of its two files.")
        images = read_idx(self._find("t10k-images-idx3-ubyte"))
        labels = read_idx(self._find("t10k-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"The MNIST files in {self.root} do not fit together: {images.shape} and {labels.shape}.")
        return {"all": self._store(images[:, None], labels)}

    def _find(self, name: str) -> Path:
        if self.root is None:
            raise UserError("data=mnist10k needs the folder of MNIST's test files: set data.root=PATH.")
        folders = (self.root, self.root / "MNIST" / "raw")  # the second is torchvision's
        for path in (f / f"{prefix}{name}{end}" for f in folders for prefix in ("", "mnist-") for end in ("", ".gz")):
            if path.is_file():
                return path
        raise UserError(f"MNIST-10k is not in {self.root}: expected {name}.gz there; set data.root to its folder.")


def read_idx(path: Path) -> np.ndarray:
    """Reads the array of bytes in an IDX file (LeCun's format), gzipped or not.

    Args:
        path: The file: two zero bytes, the type (8 = uint8), the number of dimensions, their sizes as big-endian
            int32, then the bytes.

    Returns:
        uint8 array of the shape given in the header.

    Raises:
        UserError: If the file has another format, is cut off, or states a size above 1 GiB.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise ValueError("not an IDX file of bytes")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise ValueError("cut off")
            shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
            total = math.prod(shape)
            if total > 2**30:
                raise ValueError(f"it claims {total} bytes")
            data = file.read(total)
            if len(data) < total or file.read(1):
                raise ValueError("cut off" if len(data) < total else "longer than its header says")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_sentence(error)}); fetch it again.") from error
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


# --- Files ----------------------------------------------------------------------------------------------------------


class _FileSet(ArrayData):
    """Data sets whose source is many encoded images."""

    def _prepare(self, groups: dict[str, list[ImageEntry]]) -> dict[str, ArrayStore]:
        """Stores by split; the entries of all splits are decoded together, so that one error lists all broken files."""
        entries = [entry for group in groups.values() for entry in group]
        store = prepare_images(
            entries, self.size, self.spec.shape[0], workers=self.workers, skip_broken=self.skip_broken
        )
        bounds = np.cumsum([0, *(len(group) for group in groups.values())])
        kept = store.index
        rows = torch.arange(len(entries)) if kept is None else kept
        if len(groups) == 1:
            return {next(iter(groups)): store}
        stores = {}
        for name, low, high in zip(groups, bounds[:-1], bounds[1:], strict=True):
            positions = ((rows >= low) & (rows < high)).nonzero().squeeze(1)
            if len(positions) == 0:
                raise UserError(f"No image of the {name} split in {self.root} can be read.")
            stores[name] = store.subset(positions)
        return stores

    def _entries(self, files: Sequence[tuple[tuple[str, ...], ImageEntry]]) -> dict[str, list[ImageEntry]]:
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
        official = any(_SPLIT_FOLDERS.get(parts[0].lower()) == "train" for parts, _ in files if len(parts) > 1)
        groups: dict[str, list[tuple[tuple[str, ...], ImageEntry]]] = {}
        left_out = 0
        for parts, entry in sorted(files, key=lambda file: file[0]):
            if not official:
                groups.setdefault("all", []).append((parts, entry))
            elif len(parts) > 1 and parts[0].lower() in _SPLIT_FOLDERS:
                groups.setdefault(_SPLIT_FOLDERS[parts[0].lower()], []).append((parts[1:], entry))
            else:
                left_out += 1
        if left_out:
            log.warning("%d images in %s lie outside train/, val/ and test/ and are not used.", left_out, self.root)
        names = sorted({parts[0] for group in groups.values() for parts, _ in group if len(parts) > 1})
        if len(names) < 2:  # a single folder is not a class
            names = []
        self.class_names = tuple(names) or None
        number = {name: position for position, name in enumerate(names)}
        return {
            split: [
                ImageEntry(entry.name, entry.stamp, entry.read, number.get(parts[0], -1) if len(parts) > 1 else -1)
                for parts, entry in group
            ]
            for split, group in groups.items()
        }


class ImageFolder(_FileSet):
    """A folder of images, in any depth.

    Sub-folders `train`, `val` (or `valid`, `validation`) and `test` are official splits; missing ones are cut off
    `train`. Without `train`, a fixed 80 / 10 / 10 % for train, val and test. The first sub-folder (below the split)
    is an image's class, if there are at least two such folders. Hidden files are ignored.
    """

    name = "folder"

    def _full_name(self) -> str:
        return _named_after(self.name, self.root)

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
        return self._prepare(self._entries([_file_entry(self.root, path) for path in _walk(self.root)]))


class ImageZip(_FileSet):
    """A zip of images, read without unpacking; its folders are splits and classes as in `ImageFolder`.

    A single top folder, which most programs add, is ignored. Nothing is written under the names in the archive.
    """

    name = "zip"

    def _full_name(self) -> str:
        return _named_after(self.name, self.root)

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
            raise UserError(f"data.root={self.root} is not a readable zip ({_sentence(error)}).") from error
        with archive:
            return self._prepare(self._entries(_unwrapped(list(_zip_entries(archive)))))


class CelebA(_FileSet):
    """CelebA: 202,599 aligned faces, 178 x 218 RGB, official splits, no labels. Liu et al. (2015), arXiv:1411.7766.

    Images are cropped around the centre to the aspect ratio of `image_size`: 178 x 178 for square images, as usual.
    They are read from `celeba/img_align_celeba.zip` without unpacking, or from `celeba/img_align_celeba/` if it exists.
    """

    name = "celeba"

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if self.root is None:
            raise UserError("data=celeba needs the folder of its files: set data.root=PATH.")
        base = self.root / "celeba"
        partition, folder, packed = (
            base / n for n in ("list_eval_partition.txt", "img_align_celeba", "img_align_celeba.zip")
        )
        here = partition.is_file() and (folder.is_dir() or packed.is_file())
        if not here and download:
            self._download()
        elif not here:
            raise UserError(
                f"CelebA is not in {base}: put img_align_celeba.zip and list_eval_partition.txt there (from the Google "
                "Drive linked at mmlab.ie.cuhk.edu.hk/projects/CelebA.html), or set data.root to the folder that holds "
                "celeba/, or data.download=true."
            )
        groups = self._partition(partition)
        if folder.is_dir():
            known = {path.name: _file_entry(folder, path)[1] for path in _walk(folder)}
            return self._prepare(self._pick(groups, known, folder))
        try:
            archive = zipfile.ZipFile(packed)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{packed} is not a readable zip ({_sentence(error)}); fetch it again.") from error
        with archive:
            known = {parts[-1]: entry for parts, entry in _zip_entries(archive)}
            return self._prepare(self._pick(groups, known, packed))

    def _download(self) -> None:
        from torchvision import datasets

        try:
            datasets.CelebA(str(self.root), split="all", download=True)
        # gdown raises its own error classes, and may not be installed.
        except Exception as error:
            raise UserError(
                f"CelebA could not be downloaded to {self.root} ({_sentence(error)}); fetch img_align_celeba.zip and "
                f"list_eval_partition.txt by hand from its Google Drive and put them into {self.root}/celeba."
            ) from error

    @staticmethod
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

    @staticmethod
    def _pick(groups: dict[str, list[str]], known: dict[str, ImageEntry], where: Path) -> dict[str, list[ImageEntry]]:
        missing = [name for group in groups.values() for name in group if name not in known]
        if missing:
            raise UserError(
                f"{len(missing)} of CelebA's images are not in {where}, e.g. {missing[0]}; unpack it again."
            )
        return {split: [known[name] for name in group] for split, group in groups.items()}


class OmniglotSmall(_FileSet):
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
                    raise UserError(f"{path} is not a readable zip ({_sentence(error)}); fetch it again.") from error
                files |= {parts[-3:]: entry for parts, entry in _zip_entries(archive) if len(parts) >= 3}
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


def _walk(root: Path) -> Iterator[Path]:
    """The images under `root`, without hidden files and folders. Links are followed, but no folder is visited twice."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(FORMATS):
                yield Path(folder, name)


def _file_entry(root: Path, path: Path) -> tuple[tuple[str, ...], ImageEntry]:
    parts = path.relative_to(root).parts
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
    except OSError:  # a dangling link: reading it fails later and is reported with the other broken images
        stamp = (-1, 0)
    return parts, ImageEntry("/".join(parts), stamp, path.read_bytes)


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[tuple[tuple[str, ...], ImageEntry]]:
    """The images in a zip, recognised by their names."""
    members = ZipMembers(archive)
    for position, info in enumerate(archive.infolist()):
        parts = tuple(part for part in info.filename.replace("\\", "/").split("/") if part)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if info.is_dir() or not parts or hidden or not parts[-1].lower().endswith(FORMATS):
            continue
        read: Callable[[], bytes] = partial(members.read, position)
        yield parts, ImageEntry("/".join(parts), (info.file_size, info.CRC), read)


def _unwrapped(
    files: list[tuple[tuple[str, ...], ImageEntry]],
) -> list[tuple[tuple[str, ...], ImageEntry]]:
    """Drops top folders that contain all files, unless they are named like a split."""
    while files:
        first = {parts[0] if len(parts) > 1 else "" for parts, _ in files}
        if len(first) != 1 or "" in first or next(iter(first)).lower() in _SPLIT_FOLDERS:
            break
        files = [(parts[1:], entry) for parts, entry in files]
    return files


def _named_after(kind: str, root: Path | None) -> str:
    """A name for cards and file names: "folder-cats" for .../cats."""
    stem = "" if root is None else root.resolve().stem
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")
    return f"{kind}-{plain}" if plain else kind


def _sentence(error: BaseException) -> str:
    """The message of an exception on one line, at most 200 characters; the class name if it is empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__
