"""The data module that all data sets share: splits, streams, checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from genlab.data.decode import default_workers
from genlab.data.mixture import Mixture
from genlab.data.spec import Batch, DataSpec
from genlab.data.store import ArrayStore
from genlab.data.stream import FixedBatches, NamedStreams, Stream, binarise, stable_seed
from genlab.errors import UserError

log = logging.getLogger("genlab")

SPLITS = ("train", "val", "test")
BINARIZE = ("none", "static", "dynamic")
_SPLIT_SEED = 20140610  # of every split that genlab makes itself: one split for all runs, whatever `seed` is

AnyBatch = TypeVar("AnyBatch", Batch, dict[str, Batch])


class ArrayData(LightningDataModule):
    """Base of all data sets: one `ArrayStore` per split, training batches from a resumable `Stream`.

    How to add a data set: subclass, set `name` and `kind` (and `class_names`, `fractions`, if they differ), and write
    one method, `_load(download)`, that returns the stores the source has: "train" and, where they are official, "val"
    and "test"; or "all" where nothing is official. What is missing is cut off "train" or "all" by a fixed permutation.
    Images go through `prepare_images` (files) or `resize_images` (arrays) on their way. Then add a yaml in
    `configs/data`.

    Args:
        batch_size: Samples per iteration and chunk, over all processes.
        shape: Shape of a sample, [C, H, W] or [D]; may be left out for images, where it follows from the next two.
        image_size: Height and width in pixels, one number if they agree.
        channels: 1 or 3.
        kind: Kind of the samples; must be the data set's own.
        num_classes: Number of classes; checked against what is found. None: taken from what is found, in `setup`.
        seed: Of the order, flips and dynamic binarisation of training batches; never of the splits.
        root: Folder (or zip) that holds the files.
        download: Fetch missing files, where the data set can.
        skip_broken: Leave out images that cannot be read instead of stopping.
        labels: Whether batches carry labels, where there are any.
        flip: Mirror training images at random.
        binarize: "none"; "static": each pixel is drawn from its grey value once and for all; "dynamic": anew in each
            training batch, once and for all in validation and test.
        num_labelled: Training sees so many labels, equally many of each class, and -1 for all others; judges see all.
        label_seed: Of that choice.
        limit_train: Use only so many training samples (a fixed random choice).
        num_workers: Threads (of many images: processes) that decode; all cores unless given.

    Raises:
        UserError: If the arguments contradict each other or the data set.
    """

    name: str = "data"
    kind: ClassVar[str] = "image"
    class_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None  # of the known factors, where the stores hold them
    own_shape: ClassVar[tuple[int, ...] | None] = None  # of data that comes in one shape only
    mirrors = False  # whether a mirrored image is one of the same class: true of photographs, not of digits
    grouped = False  # whether one known factor alone varies in each training batch
    fractions: ClassVar[tuple[float, float]] = (0.1, 0.1)  # of validation and test where none is official

    def __init__(
        self,
        *,
        batch_size: int,
        shape: Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = None,
        channels: int | None = None,
        kind: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        root: str | Path | None = None,
        download: bool = False,
        skip_broken: bool = False,
        labels: bool = True,
        flip: bool = False,
        binarize: str = "none",
        num_labelled: int | None = None,
        label_seed: int = 0,
        limit_train: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"data.batch_size must be a positive whole number, got {batch_size!r}.")
        if limit_train is not None and limit_train < 1:
            raise UserError(f"data.limit_train must be a positive number or null, got {limit_train}.")
        if num_labelled is not None and (num_labelled < 1 or not labels):
            raise UserError(
                f"data.num_labelled must be a positive number or null, and data.labels=true, got {num_labelled} and "
                f"data.labels={str(labels).lower()}."
            )
        if num_workers is not None and num_workers < 1:
            raise UserError(f"data.num_workers must be a positive number or null (all cores), got {num_workers}.")
        if binarize not in BINARIZE:
            raise UserError(f"data.binarize must be one of {', '.join(BINARIZE)}, got {binarize!r}.")
        if kind is not None and kind != self.kind:
            raise UserError(f"The data set {self.name} holds samples of kind {self.kind!r}, got data.kind={kind!r}.")
        if self.kind != "image" and (flip or binarize != "none"):
            raise UserError(f"data.flip and data.binarize are for images; {self.name} holds {self.kind}.")
        if self.class_names is not None and num_classes not in (None, len(self.class_names)):
            raise UserError(f"{self.name} has {len(self.class_names)} classes, got data.num_classes={num_classes}.")
        self.batch_size, self.seed, self.labels = batch_size, seed, labels
        self.root = None if root is None else Path(root).expanduser()
        self.name = self._full_name()
        self.download, self.skip_broken = download, skip_broken
        self.flip, self.binarize, self.limit_train = flip, binarize, limit_train
        self.num_labelled, self.label_seed = num_labelled, label_seed
        self.workers = num_workers or default_workers()
        self.batches_per_step: int | Callable[[int], int] = 1  # set by the model before training
        found = len(self.class_names) if self.class_names else None
        self._spec = DataSpec(
            kind=self.kind,
            shape=self._image_shape(shape, image_size, channels) if self.kind == "image" else self._plain_shape(shape),
            num_classes=(num_classes or found) if labels else None,
            value_range=(-1.0, 1.0) if self.kind == "image" else None,
            class_names=self.class_names if labels else None,
            factor_names=self.factor_names,
        )
        self._splits: dict[str, ArrayStore] | None = None
        self._drawn: ArrayStore | None = None  # the training split as judges see it, where it is binarised anew

    # --- Facts --------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> DataSpec:
        """The facts about the data; before `setup`, those that the configuration states."""
        return self._spec

    @property
    def modes(self) -> Mixture | None:
        """The mixture of Gaussians that the data are, None for all other data."""
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._spec.shape[1], self._spec.shape[2]

    def describe(self) -> dict[str, Any]:
        """The data's part of a protocol card: plain containers; prepares the data if need be."""
        splits = {name: self.split(name) for name in SPLITS}
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self._spec.shape),
            "sizes": {name: len(store) for name, store in splits.items()},
            "num_classes": self._spec.num_classes,
            "binarize": self.binarize,
            "fingerprint": {name: store.fingerprint() for name, store in splits.items()},
        }

    def _full_name(self) -> str:
        """The name for cards and files; a data set that stands for many adds which one it is."""
        return self.name

    # --- Preparation --------------------------------------------------------------------------------------------

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        """The stores of this source: "train" with "val" and "test" where they are official, or "all".

        Args:
            download: Whether missing files may be fetched (once per machine, never by two processes at once).
        """
        raise NotImplementedError(f"{type(self).__name__} must define _load().")

    def prepare_data(self) -> None:
        """Download and decode, in one process per machine; the result is kept on disk."""
        if self._splits is None:
            self._splits = self._build(self.download)

    def setup(self, stage: str | None = None) -> None:
        """Have the splits in this process; does nothing when they are there."""
        if self._splits is None:
            self._splits = self._build(download=False)

    def split(self, name: str) -> ArrayStore:
        """The store of "train", "val" or "test"; prepares the data if need be."""
        if name not in SPLITS:
            raise UserError(f"A split is one of {', '.join(SPLITS)}, got {name!r}.")
        if self.trainer is None:  # a script without Lightning's calls
            self.prepare_data()
        self.setup()
        assert self._splits is not None
        return self._splits[name]

    def judged(self, name: str) -> ArrayStore:
        """A split as judges see it: `split`, but pixels that training draws anew in each batch are drawn once.

        A judge that learned grey images would be wrong about binary ones, and so would a distance between the two.
        """
        store = self.split(name)
        if self.binarize != "dynamic" or name != "train":
            return store
        if self._drawn is None:
            self._drawn = _binarised(store, name)
        return self._drawn

    def _build(self, download: bool) -> dict[str, ArrayStore]:
        stores = self._complete(self._load(download))
        self._check_classes(stores)
        if self.limit_train is not None and self.limit_train < len(stores["train"]):
            chosen = _permutation(len(stores["train"]))[: self.limit_train].sort().values
            stores["train"] = stores["train"].subset(chosen)
        if not self.labels:
            stores = {name: store.with_labels(None) for name, store in stores.items()}
        for name, store in stores.items():
            if self.binarize == "static" or (self.binarize == "dynamic" and name != "train"):
                stores[name] = _binarised(store, name)
        return stores

    def _complete(self, stores: Mapping[str, ArrayStore]) -> dict[str, ArrayStore]:
        """Cut the splits that the source does not have off the one that it has, always in the same way."""
        rest = stores["all"] if "all" in stores else stores["train"]
        missing = {name: f for name, f in zip(SPLITS[1:], self.fractions, strict=True) if name not in stores}
        sizes = {name: max(1, round(fraction * len(rest))) for name, fraction in missing.items()}
        if sum(sizes.values()) >= len(rest):
            raise UserError(
                f"{self.name} has {len(rest)} samples, too few to keep some for {' and '.join(sizes)}; "
                f"give at least {len(sizes) + 1} of them."
            )
        done = {name: stores[name] for name in SPLITS[1:] if name in stores}
        parts = _permutation(len(rest)).split([*sizes.values(), len(rest) - sum(sizes.values())])
        # Sorted positions, because a memory map is read fastest in its own order.
        cut = {name: rest.subset(part.sort().values) for name, part in zip(sizes, parts, strict=False)}
        train = rest.subset(parts[-1].sort().values) if sizes else rest
        return {"train": train, **{name: {**done, **cut}[name] for name in SPLITS[1:]}}

    def _check_classes(self, stores: Mapping[str, ArrayStore]) -> None:
        """Compare the labels with what the configuration states, and complete the spec where it states nothing."""
        for store in stores.values():
            if store.shape != self._spec.shape:
                raise UserError(f"{self.name} has samples of shape {list(store.shape)}, got {list(self._spec.shape)}.")
        if not self.labels:
            return
        labels = [store.y for store in stores.values() if store.y is not None]
        found = len(self.class_names) if self.class_names else max((int(y.max()) + 1 for y in labels), default=0)
        if not labels:
            found = 0
        stated = self._spec.num_classes
        if stated is not None and stated != found:
            what = f"has {found} classes" if found else "has no labels (they come from sub-folders, one per class)"
            raise UserError(f"{self.name} {what}, got data.num_classes={stated}; set it to {found or 'null'}.")
        if found:
            facts = {**self._spec.to_dict(), "num_classes": found, "class_names": self.class_names}
            self._spec = DataSpec.from_dict(facts)

    # --- Batches ------------------------------------------------------------------------------------------------

    def training_store(self) -> ArrayStore:
        """The training split with the labels that training may see: of all samples, or of `num_labelled` of them.

        Raises:
            UserError: If there are fewer labels.
        """
        store = self.split("train")
        if self.num_labelled is None:
            return store
        known = 0 if store.y is None else int((store.y >= 0).sum())
        if store.y is None or known < self.num_labelled:
            raise UserError(
                f"data.num_labelled={self.num_labelled} asks for more labels than the {known} that {self.name} has."
            )
        kept = _one_class_after_the_other(store.y, self.label_seed)[: self.num_labelled]
        return store.with_labels(torch.full_like(store.y, -1).index_copy_(0, kept, store.y[kept]))

    def stream(
        self, start: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str | None = None
    ) -> Stream:
        """The training batches from number `start` on."""
        where = {"start": start, "rank": rank, "world_size": world_size, "device": device}
        return self._made(Stream, self.training_store(), batches_per_step=self.batches_per_step, **where)

    def _made(self, kind: Callable[..., Stream], store: ArrayStore, **more: Any) -> Stream:
        """A stream of this kind with all that the configuration says of training batches."""
        return kind(
            store,
            self._spec,
            self.batch_size,
            self.seed,
            flip=self.flip,
            binarize=self.binarize == "dynamic",
            with_labels=self.labels,
            **more,
        )

    def train_dataloader(self) -> Stream | NamedStreams:
        """The stream of this process, from the trainer's iteration on: a resumed run goes on where it stopped."""
        if self.trainer is None:
            return self.stream()
        trainer = self.trainer
        device = trainer.strategy.root_device
        return self.stream(trainer.global_step, trainer.global_rank, trainer.world_size, device)

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        """Streams make their batches on the device already, so that there is nothing left to do."""
        if isinstance(batch, dict):
            return {name: part.to(device, non_blocking=True) for name, part in batch.items()}
        return batch.to(device, non_blocking=True)

    def batches(
        self,
        split: str,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> FixedBatches:
        """The samples of a split once and in a fixed order, for metrics; may be iterated again and has a length."""
        return FixedBatches(self.split(split), batch_size or self.batch_size, device, limit, rank, world_size)

    def first_batches(self, n: int | None = None, device: torch.device | str | None = None) -> Iterator[Batch]:
        """The first `n` training batches (None: as many as are taken), whole and the same in all processes.

        For `GenerativeModel.initialise`.
        """
        # A few batches do not pay for a copy of the whole set.
        stream = self._made(Stream, self.training_store(), device=device, resident_bytes=0)
        return (stream.batch(i) for i in (count() if n is None else range(n)))

    # --- Checks of the arguments --------------------------------------------------------------------------------

    def _image_shape(
        self, shape: Sequence[int] | None, image_size: int | Sequence[int] | None, channels: int | None
    ) -> tuple[int, ...]:
        size = None if image_size is None else _as_size(image_size)
        if channels is not None and channels not in (1, 3):
            raise UserError(f"data.channels must be 1 (grey) or 3 (RGB), got {channels}.")
        if shape is None:
            if size is None or channels is None:
                raise UserError(f"{self.name} needs data.image_size and data.channels, e.g. 32 and 3.")
            return (channels, *size)
        given = tuple(int(n) for n in shape)
        if len(given) != 3 or given[0] not in (1, 3):
            raise UserError(f"data.shape of images is [C, H, W] with C = 1 or 3, got {list(given)}.")
        if (size is not None and given[1:] != size) or (channels is not None and given[0] != channels):
            raise UserError(
                f"data.shape={list(given)} contradicts data.image_size={image_size} and data.channels={channels}; "
                "set only the latter two."
            )
        return given

    def _plain_shape(self, shape: Sequence[int] | None) -> tuple[int, ...]:
        own = self.own_shape
        given = own if shape is None else tuple(int(n) for n in shape)
        if given is None:
            raise UserError(f"{self.name} needs data.shape, the shape of one sample.")
        if own is not None and given != own:
            raise UserError(f"{self.name} has samples of shape {list(own)}, got data.shape={list(given)}.")
        return given


def _as_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """One number or [H, W] as (H, W)."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise UserError(f"data.image_size must be a positive number or [height, width], got {image_size!r}.")
    return size[0], size[1]


def _permutation(n: int) -> Tensor:
    """A fixed permutation of n positions; numpy guarantees that RandomState never changes its numbers."""
    return torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(n).astype(np.int64))


def _one_class_after_the_other(y: Tensor, seed: int) -> Tensor:
    """Positions of the labels [N] that are known: one of each class, another of each, and so on, all at random."""
    rng = torch.Generator().manual_seed(stable_seed(seed, "labelled"))
    order = torch.randperm(len(y), generator=rng)
    order = order[y[order] >= 0]
    first = torch.randperm(int(y.max()) + 1, generator=rng)  # where the last round is not whole, some classes lack one
    rounds = torch.empty_like(order)
    for label in y[order].unique():
        mine = y[order] == label
        rounds[mine] = torch.arange(int(mine.sum()))
    return order[(rounds * len(first) + first[y[order]]).argsort()]


def _binarised(store: ArrayStore, name: str) -> ArrayStore:
    """A copy in which each pixel was drawn once, as 0 or 255 (the same copy in all runs)."""
    generator = torch.Generator().manual_seed(stable_seed("binarize", name))
    x = torch.empty((len(store), *store.shape), dtype=torch.uint8)
    for idx in torch.arange(len(store)).split(4096):  # uniform numbers take four times the store's memory
        x[idx[0] : idx[-1] + 1] = binarise(store.gather(idx), generator)
    return ArrayStore(x, store.y, factor=store.factor)
