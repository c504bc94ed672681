"""Readers: networks that read a column from the pictures that it goes with, trained on the data set itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.batch import Batch, Seq
from genlab.extractors.checksums import tensors_checksum
from genlab.extractors.frozen import Frozen, Recipe, cached, fit, load, save
from genlab.fields.base import Field
from genlab.fields.readout import Readout
from genlab.files import cache_dir
from genlab.networks.vgg import VGG, Mapper, seen_size

log = logging.getLogger("genlab")
FORMAT = 1  # of the file; a file of another format has another name
SEEN, MOST_EPOCHS = 40_000, 40  # pictures in all epochs: no limit of time, so that the same data give the same reader
RECIPE = Recipe(batch_size=32)  # small batches: many steps for few pictures


class Reader(Frozen):
    """uint8 images of one shape to features and the outputs of a column's readout.

    Attributes:
        readout: The column's.
        weights: Of the readout's parts.
        agreement: That with test rows, 0..1; NaN if there are none.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], readout: Readout) -> None:
        super().__init__(f"reader-{name}", shape, readout.shape[0], Mapper if len(readout.shape) > 1 else VGG)
        self.readout, self.weights, self.agreement = readout, torch.ones(1), math.nan

    @property
    def quality(self) -> str:
        """Its agreement with test rows in words."""
        return f"{self.readout.agreement} {self.agreement:.4f} on test images"


def readout_of(field: Field, shape: tuple[int, ...]) -> Readout | None:
    """How values of a field are read from images (C, H, W); None if they cannot be. Maps have even sides."""
    height, width = seen_size(shape[1], shape[2])
    return field.readout((height // 2 * 2, width // 2 * 2))


def compared(network: Callable[[Tensor], tuple[Tensor, Tensor]], readout: Readout) -> Callable[[Batch], Tensor]:
    """A function of rows with `images` and `told` values that sums what is right and what was asked for, [2, P]."""

    def sums(rows: Batch) -> Tensor:
        out = network(rows.tensor("images"))[1].cpu()
        return torch.stack([part.double().sum(dim=0) for part in readout.compared(out, readout.target(rows["told"]))])

    return sums


def parts(rows: Batch) -> list[Batch]:
    """The rows, 256 at a time."""
    return [rows.rows(slice(start, start + 256)) for start in range(0, len(rows), 256)]


def agreement(sums: Iterable[Tensor], weights: Tensor) -> float:
    """The agreement, 0..1, of the sums [2, P] of all rows; NaN if nothing was asked for."""
    right, asked = sum(sums, start=torch.zeros(2, 1).double())
    weights = weights.double() * (asked > 0)
    return float((right / asked.clamp_min(1e-9) * weights).sum() / weights.sum())


def load_or_train(name: str, field: Field, train: Batch, test: Batch, device: torch.device | str = "cpu") -> Reader:
    """The reader of a column, from `$GENLAB_CACHE/readers` if it was trained on the same rows before.

    AdamW with one-cycle learning rate: the same rows give the same reader, bit for bit on one CPU with as many threads.
    The global random streams are not used. Nothing is shifted or mirrored, which would falsify places.

    Args:
        name: Name of data set and column: "scenes-caption".
        field: The column's, which has a readout.
        train: `images`, uint8 [N, C, H, W], and `told` values as a model sees them, all of them known.
        test: The same for the reader's own agreement; no choice depends on it.
        device: Where to train; the reader is returned there.
    """
    channels, height, width = train.tensor("images").shape[1:]
    shape = channels, height, width
    readout = readout_of(field, shape)
    assert readout is not None

    def trained() -> Reader:
        reader, rows, started = Reader(name, shape, readout), train.to(device), time.perf_counter()
        net = reader.net

        def loss(at: Tensor) -> Tensor:
            assert net.head is not None
            part = rows.rows(at)
            return readout.loss(net.head(net.features(part.tensor("images").float())), readout.target(part["told"]))

        epochs = min(MOST_EPOCHS, max(1, SEEN // len(rows)))
        fit(reader, loss, len(rows), epochs, RECIPE, torch.Generator().manual_seed(0), torch.device(device))
        reader.weights = readout.weights(train["told"])
        reader.agreement = agreement(map(compared(reader, readout), parts(test)), reader.weights)
        spent = time.perf_counter() - started
        log.info("%s: %s after %.1f s of training on %d.", reader.name, reader.quality, spent, len(rows))
        return reader

    def kept(reader: Reader, path: Path) -> Path:
        return save(reader, path, weights=reader.weights, agreement=reader.agreement)

    def found(path: Path) -> Reader:
        def make(record: dict[str, Any]) -> Reader:
            reader = Reader(name, shape, readout)
            reader.weights, reader.agreement = record["weights"], record["agreement"]
            return reader

        return load(path, make)

    settings = repr((FORMAT, sorted(field.to_dict().items()), RECIPE, SEEN, MOST_EPOCHS))
    content = tensors_checksum({f"{settings} {i}": part for i, part in enumerate([*_tensors(train), *_tensors(test)])})
    return cached(cache_dir() / "readers" / f"{name}-{content[:24]}.pt", found, trained, kept).to(device)


def _tensors(rows: Batch) -> Iterator[Tensor]:
    for column in rows.columns.values():
        yield from (column.values, column.length) if isinstance(column, Seq) else (column,)
