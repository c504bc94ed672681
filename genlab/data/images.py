"""Image data sets that come as arrays: scikit-learn's digits, MNIST and its heirs, USPS, CIFAR-10, MNIST-10k."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore, resize_images
from genlab.errors import UserError, sentence

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


class _Official(_ArraySet):
    """Sets with official splits for training and test, which torchvision can fetch.

    Args:
        validation: Rows of the official training set that are held out for validation, by a fixed permutation; None: a
            tenth. With 0 all rows are for training, and validation scores are those of a tenth that is trained on.
        **more: Those of `ArrayData`.

    Raises:
        UserError: If `validation` is negative or leaves nothing for training.
    """

    title: ClassVar[str]
    files: ClassVar[str]  # paths of the files below `root`, for messages

    def __init__(self, *, validation: int | None = None, **more: Any) -> None:
        if validation is not None and (isinstance(validation, bool) or validation < 0):
            raise UserError(f"data.validation must be a number of images, 0 or more, got {validation}.")
        self.validation = validation
        super().__init__(**more)

    def _arrays(self, train: bool) -> tuple[np.ndarray, Any]:
        """Images uint8 [N, C, H, W] and labels."""
        raise NotImplementedError

    def _fetch(self) -> None:
        """Downloads the files."""
        raise NotImplementedError

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        if self.root is None:
            raise UserError(f"data={self.name} needs the folder of its files: set data.root=PATH.")
        # torchvision raises RuntimeError for missing files; OSError and others for broken files or no network.
        faults = (RuntimeError, OSError, ValueError, AssertionError, EOFError)
        try:
            found = self._both()
        except faults as error:
            if isinstance(error, UserError):
                raise
            if not download:
                raise UserError(
                    f"{self.title} is not in {self.root}, or is incomplete: expected {self.files}; set data.root to "
                    "the folder that holds them, or data.download=true."
                ) from error
            try:
                self._fetch()
                found = self._both()
            except faults as failure:
                raise UserError(
                    f"{self.title} could not be downloaded to {self.root} ({sentence(failure)}); put {self.files} "
                    "there by hand, or set data.root to a folder that holds them."
                ) from failure
        return {split: self._store(*arrays) for split, arrays in found.items()}

    def _both(self) -> dict[str, tuple[np.ndarray, Any]]:
        return {split: self._arrays(split == "train") for split in ("train", "test")}

    def _held_out(self, split: str, fraction: float, total: int) -> int:
        if split != "val" or not self.validation:
            return super()._held_out(split, fraction, total)
        return self.validation

    def _complete(self, stores: Mapping[str, ArrayStore]) -> dict[str, ArrayStore]:
        done = super()._complete(stores)
        return {**done, "train": stores["train"]} if self.validation == 0 else done


class _IdxSet(_Official):
    """MNIST and its heirs: four files in LeCun's format, gzipped or not, in `root` or where torchvision puts them."""

    def _arrays(self, train: bool) -> tuple[np.ndarray, Any]:
        part = "train" if train else "t10k"
        images, labels = (self._find(f"{part}-{content}-ubyte") for content in ("images-idx3", "labels-idx1"))
        if images is None or labels is None:
            raise FileNotFoundError(f"no {part} files")
        return _fitting(read_idx(images), read_idx(labels), self.root)

    def _find(self, name: str) -> Path | None:
        return _find_idx(self.root, name, type(self).__name__, self.name)

    def _fetch(self) -> None:
        from torchvision import datasets

        getattr(datasets, type(self).__name__)(str(self.root), train=True, download=True)


class MNIST(_IdxSet):
    """MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 grey. LeCun, Cortes, Burges (1998)."""

    name = "mnist"
    title = "MNIST"
    files = "{train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same in MNIST/raw"
    class_names = _DIGIT_NAMES


class FashionMNIST(_IdxSet):
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28 x 28 grey. Xiao et al. (2017), arXiv:1708.07747."""

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    files = "{train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same in FashionMNIST/raw"
    class_names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class CIFAR10(_Official):
    """CIFAR-10: 50,000 + 10,000 photographs, 32 x 32 RGB. Krizhevsky (2009)."""

    name = "cifar10"
    title = "CIFAR-10"
    files = "cifar-10-batches-py/ (the unpacked cifar-10-python.tar.gz)"
    mirrors = True
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def _arrays(self, train: bool) -> tuple[np.ndarray, Any]:
        from torchvision import datasets

        source = datasets.CIFAR10(str(self.root), train=train, download=False)
        return source.data.transpose(0, 3, 1, 2), source.targets

    def _fetch(self) -> None:
        from torchvision import datasets

        datasets.CIFAR10(str(self.root), train=True, download=True)


class USPS(_Official):
    """USPS: 7,291 + 2,007 handwritten digits, 16 x 16 grey. Hull (1994), "A database for handwritten text recognition".

    `data.root` holds usps.npz with `train_images`, `train_labels`, `test_images` and `test_labels`, where images are
    int16 [N, 16, 16], 1,000 times a value in [-1, 1]; or torchvision's usps.bz2 and usps.t.bz2.
    """

    name = "usps"
    title = "USPS"
    files = "usps.npz, or usps.bz2 and usps.t.bz2"
    class_names = _DIGIT_NAMES

    def _arrays(self, train: bool) -> tuple[np.ndarray, Any]:
        assert self.root is not None
        path = self.root / "usps.npz"
        if not path.is_file():
            from torchvision import datasets

            source = datasets.USPS(str(self.root), train=train)
            return np.asarray(source.data)[:, None], source.targets
        part = "train" if train else "test"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read as USPS ({sentence(error)}); fetch it again.") from error
        return _fitting(np.rint((values / 1000 + 1) * 127.5).clip(0, 255).astype(np.uint8), labels, path)

    def _fetch(self) -> None:
        from torchvision import datasets

        for train in (True, False):
            datasets.USPS(str(self.root), train=train, download=True)


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
        return {"all": self._store(*_fitting(self._read("images-idx3"), self._read("labels-idx1"), self.root))}

    def _read(self, content: str) -> np.ndarray:
        if self.root is None:
            raise UserError("data=mnist10k needs the folder of MNIST's test files: set data.root=PATH.")
        path = _find_idx(self.root, f"t10k-{content}-ubyte", "MNIST", "mnist")
        if path is None:
            raise UserError(
                f"MNIST-10k is not in {self.root}: expected t10k-{content}-ubyte.gz there; set data.root to its folder."
            )
        return read_idx(path)


def _find_idx(root: Path | None, name: str, folder: str, prefix: str) -> Path | None:
    """A file in `root`, or in `folder`/raw below it, as torchvision has it; gzipped or not, with a prefix or not."""
    folders = [] if root is None else [root, root / folder / "raw"]
    names = [f"{start}{name}{end}" for start in ("", f"{prefix}-") for end in ("", ".gz")]
    return next((f / n for f in folders for n in names if (f / n).is_file()), None)


def _fitting(images: np.ndarray, labels: np.ndarray, where: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Grey images [N, H, W] as [N, 1, H, W], and their labels [N].

    Raises:
        UserError: If there are not as many labels as images.
    """
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"The images and labels in {where} do not fit together: {images.shape} and {labels.shape}.")
    return images[:, None], labels


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
        raise UserError(f"{path} cannot be read ({sentence(error)}); fetch it again.") from error
    return np.frombuffer(data, np.uint8).reshape(shape).copy()
