"""Sketches as pen movements: the files of sketch-rnn and of Quick, Draw!"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch

from genlab.data.columns import Ragged
from genlab.data.sequences import SequenceSet, sequences
from genlab.data.store import ArrayStore
from genlab.errors import UserError, sentence

ARRAYS = {"train": "train", "val": "valid", "test": "test"}  # by split: the name in an npz
LARGEST = 2**30  # bytes that one array of an npz may unpack to


class Sketches(SequenceSet):
    """Sketches as sequences of steps (dx, dy, 1 if the pen is lifted after it), float32 [T, 3].

    Ha & Eck (2018), "A Neural Representation of Sketch Drawings", section 3.1. `root` is one of

    - an npz of sketch-rnn with the arrays `train`, `valid` and `test`, each of N arrays [T, 3]. They are pickled; they
      are read without unpickling, which could run any code;
    - the same without pickles: all steps joined, [S, 3], and their lengths in `train_lengths` and so on, [N];
    - an ndjson of Quick, Draw!, one drawing a line, [[x, ...], [y, ...]] for each stroke; 80 / 10 / 10 % of the
      drawings are for train, val and test.

    As in the authors' code, offsets are clipped, sketches of more than `columns.x.most` steps are left out, and dx and
    dy are divided by one number, their standard deviation over the training split. There are no labels.

    Args:
        scale: Divisor of the offsets; None: their standard deviation. Cards hold it.
        clip: Largest offset in each direction, in the units of the file; None: any.
        **more: Those of `ArrayData`.

    Raises:
        UserError: If `scale` or `clip` is not positive.
    """

    name = "sketches"
    kind = "strokes"
    own_shape: ClassVar[tuple[int | None, ...] | None] = (None, 5)
    source: ClassVar[str] = "an npz of sketch-rnn or an ndjson of Quick, Draw!"
    nouns: ClassVar[tuple[str, str]] = ("sketches", "steps")

    def __init__(self, *, scale: float | None = None, clip: float | None = 1000.0, **more: Any) -> None:
        for name, value in (("scale", scale), ("clip", clip)):
            if value is not None and not value > 0:
                raise UserError(f"data.{name} must be a positive number or null, got {value}.")
        self.scale, self.clip = scale, clip
        super().__init__(**more)

    def describe(self) -> dict[str, Any]:
        """As `ArrayData.describe`, with the divisor of the offsets."""
        return {**super().describe(), "scale": self.scale}

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        path = self._given(download)
        if path.is_dir():
            raise UserError(f"data.root={path} is a folder; set it to {self.source}.")
        found = {"all": read_ndjson(path)} if path.suffix == ".ndjson" else read_npz(path)
        stores = self._complete(self._bounded({split: ArrayStore({"x": x}) for split, x in found.items()}))
        offsets = {split: self._clipped(sequences(store)) for split, store in stores.items()}
        if self.scale is None:
            self.scale = float(offsets["train"].std(unbiased=False))
        if not self.scale > 0:
            raise UserError(f"All offsets in {path} are equal, so nothing is drawn. Set data.root to {self.source}.")
        scaled = {}
        for split, store in stores.items():
            x = sequences(store)
            steps = torch.cat([offsets[split] / self.scale, x.flat[:, 2:].double()], dim=1)
            scaled[split] = store.with_column("x", Ragged(steps.float(), x.offsets))
        return scaled

    def _clipped(self, x: Ragged) -> torch.Tensor:
        """(dx, dy) of all steps, float64 [S, 2]."""
        offsets = x.flat[:, :2].double()
        return offsets if self.clip is None else offsets.clamp(-self.clip, self.clip)


def read_npz(path: Path) -> dict[str, Ragged]:
    """The sketches of an npz by split, as float32 steps (dx, dy, lifted); see `Sketches` for its two formats.

    Raises:
        UserError: If the file is none, holds other values, or pickles of anything but arrays of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "train" not in names:
                raise ValueError(f"it holds no array train, only {', '.join(names)[:80]}")
            return {split: _sketches(archive, name, names) for split, name in ARRAYS.items() if name in names}
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{path} cannot be read as sketches ({sentence(error)}). Expected is an npz of sketch-rnn with the arrays "
            "train, valid and test; fetch it again."
        ) from error


def _sketches(archive: zipfile.ZipFile, name: str, names: Sequence[str]) -> Ragged:
    """The sketches of one array; with the lengths where it is flat."""
    values = _array(archive, name)
    if f"{name}_lengths" in names:
        lengths = np.asarray(_array(archive, f"{name}_lengths"))
        if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or lengths.sum() != len(values):
            raise ValueError(f"{name}_lengths do not add up to the {len(values)} steps of {name}")
    else:
        lengths = np.array([len(value) for value in values], np.int64)
        values = np.concatenate([value for value in values if len(value)] or [np.zeros((0, 3))])
    return _joined(np.asarray(values), lengths)


def _numbers(values: np.ndarray) -> bool:
    return np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)


def _joined(steps: np.ndarray, lengths: Any) -> Ragged:
    """Steps [S, 3] of sketches of these lengths.

    Raises:
        ValueError: If they are no steps.
    """
    if steps.ndim != 2 or steps.shape[1] != 3 or not _numbers(steps) or not np.isfinite(steps).all():
        raise ValueError(f"steps must be numbers [S, 3], got {steps.dtype} {list(steps.shape)}")
    if not np.isin(steps[:, 2], (0, 1)).all():
        raise ValueError("the third number of a step must be 0 or 1, whether the pen is lifted after it")
    offsets = torch.from_numpy(np.concatenate([[0], np.asarray(lengths, np.int64)]).cumsum())
    return Ragged(torch.from_numpy(steps.astype(np.float32)), offsets)


def read_ndjson(path: Path) -> Ragged:
    """The drawings of Quick, Draw!, float32 steps (dx, dy, lifted); the first step is (0, 0), as it draws nothing.

    Raises:
        UserError: Names the first line that is no drawing.
    """
    sketches = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({sentence(error)}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            strokes = [np.array(stroke[:2], np.float64).T for stroke in json.loads(line)["drawing"] if stroke[0]]
            places = np.concatenate([np.zeros((0, 2)), *strokes])
            if not np.isfinite(places).all():
                raise ValueError("a place is no number")
            lifted = np.zeros((len(places), 1))
            lifted[np.cumsum([len(stroke) for stroke in strokes], dtype=np.int64) - 1] = 1
            sketches.append(np.hstack([np.diff(places, axis=0, prepend=places[:1]), lifted]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"Line {number} of {path} is no drawing ({sentence(error)}). Expected is an object with drawing: "
                "[[[x, ...], [y, ...]], ...]; fetch the file again."
            ) from error
    return _joined(np.concatenate([np.zeros((0, 3)), *sketches]), [len(sketch) for sketch in sketches])


# --- Pickled arrays -------------------------------------------------------------------------------------------------


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    """An array of an npz; of an array of objects, which is a pickle, the list of arrays in it."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > LARGEST:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes")
    with archive.open(info) as file:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        _, _, dtype = header[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            return [_built(item) for item in _Unpickler(file, encoding="latin1").load().data]
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


class _Dtype:
    """The facts about a `numpy.dtype` in a pickle."""

    order = "|"

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """The facts about a `numpy.ndarray` in a pickle."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


def _encoded(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Reads pickles of arrays without running numpy's code or any other: two classes of plain facts stand for it."""

    known: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Array,  # as numpy 1 calls it
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("_codecs", "encode"): _encoded,  # bytes, as Python 3 writes them in the format of Python 2
    }

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        super().__init__(file, encoding=encoding)  # of the strings of Python 2

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that stands for a name in a pickle.

        Raises:
            ValueError: If the name is not one of arrays.
        """
        if (module, name) not in self.known:
            raise ValueError(f"it asks to run {module}.{name}, which arrays of sketches do not; nothing was run")
        return self.known[module, name]


def _built(array: Any) -> np.ndarray:
    """The array of numbers that a pickle describes."""
    if not isinstance(array, _Array) or not re.fullmatch("[iuf][1248]", array.dtype.code):
        raise ValueError("a sketch must be an array of numbers")
    data = array.data.encode("latin1") if isinstance(array.data, str) else array.data
    values = np.frombuffer(data, np.dtype(array.dtype.order + array.dtype.code))
    return values.reshape(array.shape, order="F" if array.fortran else "C")
