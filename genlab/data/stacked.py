"""Stacked digits: three grey images as the channels of one image, with 1,000 modes that a classifier can count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from genlab.data.module import SPLITS, ArrayData
from genlab.data.store import ArrayStore
from genlab.errors import UserError
from genlab.seeding import stable_seed

CHANNELS = 3
HELD_OUT = {"val": 10_000, "test": 26_000}  # stacks; the papers judge 26,000 samples


class StackedDigits(ArrayData):
    """Three images of a labelled grey set, drawn with replacement, as the red, green and blue of one image.

    "Stacked MNIST" if the grey set is MNIST; Srivastava et al. (2017), "VEEGAN", section 5.1. Ten classes give 1,000
    modes, the triples of classes; the label is 100 r + 10 g + b. A split is stacked from the images of the same split
    of the grey set, with the same draws in every run.

    Args:
        source: The grey set, a key of `sources`.
        sources: Constructors of the grey sets by name.
        num_train: Stacks for training; 128,000 in the papers.
        labels: Whether batches contain the triple as a label, 0..999.

    The other arguments are those of `ArrayData`; `root` and `download` apply to the grey set.

    Raises:
        UserError: If the source is unknown or has no labels.
    """

    name = "stacked"

    def __init__(
        self,
        *,
        batch_size: int,
        source: str,
        sources: Mapping[str, Callable[..., ArrayData]],
        num_train: int = 128_000,
        shape: Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = None,
        channels: int = CHANNELS,
        kind: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        root: str | Path | None = None,
        download: bool = False,
        labels: bool = False,
        flip: bool = False,
        binarize: str = "none",
        limit_train: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        if source not in sources:
            raise UserError(f"data.source must be one of {', '.join(sources)}, got {source!r}.")
        if num_train < 1:
            raise UserError(f"data.num_train must be at least 1, got {num_train}. Try data.num_train=128000.")
        if channels != CHANNELS:
            raise UserError(f"Stacked digits have {CHANNELS} channels, got data.channels={channels}.")
        size = image_size if shape is None else list(shape)[1:]
        self._num_train = num_train
        self._grey = sources[source](
            batch_size=batch_size, image_size=size, channels=1, root=root, download=download, num_workers=num_workers
        )
        super().__init__(
            batch_size=batch_size,
            shape=shape,
            image_size=image_size,
            channels=channels,
            kind=kind,
            num_classes=num_classes,
            seed=seed,
            root=root,
            download=download,
            labels=labels,
            flip=flip,
            binarize=binarize,
            limit_train=limit_train,
            num_workers=num_workers,
        )

    def _full_name(self) -> str:
        return f"stacked-{self._grey.name}"

    @property
    def grey(self) -> ArrayData:
        """The grey set, at the same size; its classifier identifies the modes."""
        return self._grey

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        stores = {}
        for split in SPLITS:
            store = self.grey.split(split)
            if store.y is None:
                raise UserError(f"{self.grey.name} has no labels, and stacks are made of labelled images.")
            n = HELD_OUT.get(split, self._num_train)
            draws = np.random.RandomState(stable_seed(self.name, split) % 2**32).randint(len(store), size=(n, CHANNELS))
            rows = torch.from_numpy(draws.astype(np.int64))
            x = torch.empty((n, CHANNELS, *self.size), dtype=torch.uint8)
            y = torch.zeros(n, dtype=torch.int64)
            for channel, chosen in enumerate(rows.unbind(dim=1)):
                for part in torch.arange(n).split(8192):
                    x[part, channel] = store.gather(chosen[part])[:, 0]
                y = 10 * y + store.y[chosen]
            stores[split] = ArrayStore({"x": x, "y": y})
        return stores
