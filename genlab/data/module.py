"""The base class of all data sets: splits, streams of batches, checks of the configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from genlab.batch import Batch
from genlab.data.decode import default_workers
from genlab.data.derive import Derivation, derived, with_derived
from genlab.data.mixture import Mixture
from genlab.data.spec import DataSpec
from genlab.data.store import ArrayStore, warn_of_equal
from genlab.data.stream import FixedBatches, MergedStreams, Stream, binarise, normalised
from genlab.errors import UserError
from genlab.fields.base import KINDS, Field
from genlab.fields.image import Image
from genlab.fields.label import Label
from genlab.fields.typed import listed
from genlab.seeding import stable_seed

log = logging.getLogger("genlab")

SPLITS = ("train", "val", "test")
BINARIZE = ("none", "static", "dynamic")
_SPLIT_SEED = 20140610  # of all splits that are not official: the same in all runs, independent of `seed`


class ArrayData(LightningDataModule):
    """Base of all data sets: one `ArrayStore` per split, training batches from a resumable `Stream`.

    To add a data set: subclass, set `name` and `kind` (and `class_names` and `fractions` if they differ), and write
    one method, `_load(download)`. It returns the official splits of the source: "train", with "val" and "test" if they
    exist, or "all" if no split is official. Missing splits are cut off "train" or "all" by a fixed permutation.
    `_load` makes stores of images with `prepare_images` (files) or `resize_images` (arrays). Then add a yaml file in
    `configs/data`. Columns beside samples, labels and factors stand there, below `columns`.

    Args:
        batch_size: Samples per iteration and chunk, over all processes.
        shape: Shape of a sample, [C, H, W] or [D]; null first where samples are sequences. Optional for images: it
            follows from the next two arguments.
        image_size: Height and width in pixels, or one number for both.
        channels: 1 or 3.
        kind: Kind of the samples; must be that of the data set.
        num_classes: Number of classes, checked against the data. None: taken from the data, in `setup`.
        seed: Seed of the order, flips and dynamic binarisation of training batches, not of the splits.
        root: Folder (or zip) of the files.
        download: Fetch missing files, if the data set can be downloaded.
        skip_broken: Leave out images that cannot be read; otherwise they stop the run.
        labels: Whether batches contain the labels, if the data have any.
        flip: Mirror each training image with probability 1/2.
        binarize: "none"; "static": each pixel is drawn once from its grey value; "dynamic": drawn anew in each training
            batch, and once in validation and test.
        num_labelled: Number of labels in training, balanced over the classes; all others become -1. Metrics use all.
        label_seed: Seed of the choice of these labels.
        limit_train: Number of training samples that are used (a fixed random choice); None: all.
        num_workers: Threads (for many images: processes) that decode images; None: one per core, at most 32.
        columns: The facts about further columns of the stores, by name: `{caption: {kind: tokens, ...}}`, with the
            attributes of the kind's field in `genlab.fields`. Those of `x` are added to its kind and shape.

    Raises:
        UserError: If the arguments contradict each other or the data set.
    """

    name: str = "data"
    kind: str = "image"
    class_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None  # of the factors of variation, if the stores hold them
    own_shape: ClassVar[tuple[int | None, ...] | None] = None  # the shape of a sample, if the data set has only one
    mirrors = False  # whether mirroring keeps an image's class: true of photographs, not of digits
    grouped = False  # whether exactly one factor varies within each training batch
    fractions: ClassVar[tuple[float, float]] = (0.1, 0.1)  # of validation and test, if these are not official

    def __init__(
        self,
        *,
        batch_size: int,
        shape: Sequence[int | None] | None = None,
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
        columns: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        _check_numbers(batch_size, limit_train, num_labelled, labels, num_workers)
        if binarize not in BINARIZE:
            raise UserError(f"data.binarize must be one of {', '.join(BINARIZE)}, got {binarize!r}.")
        if kind is not None and kind != self.kind:
            raise UserError(f"The data set {self.name} holds samples of kind {self.kind!r}, got data.kind={kind!r}.")
        images = issubclass(KINDS[self.kind], Image)
        if not images and (flip or binarize != "none"):
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
        self.labelled_share: float | None = None  # of each batch; set by the model, None: as they come
        found = len(self.class_names) if self.class_names else None
        self.read: Collection[str] | None = None  # columns that training reads; set by the model, None: all
        self.derive: dict[str, Derivation] = {}
        own = self._image_shape(shape, image_size, channels) if images else self._plain_shape(shape)
        classes = (num_classes or found) if labels else None
        self._stated = tuple(name for name in columns or () if name != "x")
        spec = DataSpec.of(self.kind, own, classes, self.class_names, self.factor_names)
        self._spec = spec.with_stated(columns)
        self._splits: dict[str, ArrayStore] | None = None
        self._drawn: ArrayStore | None = None  # the training split for metrics, if `binarize` is "dynamic"

    # --- Facts --------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> DataSpec:
        """The facts about the data; before `setup`, only those from the configuration."""
        return self._spec

    @property
    def column_names(self) -> set[str]:
        """The columns of training batches."""
        return {*self._spec.fields, "index", *(["group"] if self.grouped else [])}

    @property
    def modes(self) -> Mixture | None:
        """The mixture of Gaussians that the data are drawn from; None for all other data."""
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._spec.shape[-2], self._spec.shape[-1]

    def describe(self) -> dict[str, Any]:
        """The data's part of a protocol card, in plain containers; prepares the data if necessary."""
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

    def derive_columns(self, derive: Mapping[str, Derivation]) -> None:
        """Adds columns that are made of the others in each batch, by name; `derive=half` and its like.

        Raises:
            UserError: If there is a column of that name, or one cannot be made of these data.
        """
        self.derive, self._spec = dict(derive), with_derived(self._spec, derive)

    def _full_name(self) -> str:
        """The name for cards and files; data sets such as `folder` add the name of their source."""
        return self.name

    # --- Preparation --------------------------------------------------------------------------------------------

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        """The stores of the official splits: "train", with "val" and "test" if they are official, or "all".

        Args:
            download: Whether missing files may be fetched (once per machine, never by two processes at once).
        """
        raise NotImplementedError(f"{type(self).__name__} must define _load().")

    def prepare_data(self) -> None:
        """Downloads and decodes, in one process per machine; the result is kept on disk."""
        if self._splits is None:
            self._splits = self._build(self.download)

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits in this process, unless they are loaded already."""
        if self._splits is None:
            self._splits = self._build(download=False)

    def split(self, name: str) -> ArrayStore:
        """The store of "train", "val" or "test"; prepares the data if necessary."""
        if name not in SPLITS:
            raise UserError(f"A split is one of {', '.join(SPLITS)}, got {name!r}.")
        if self.trainer is None:  # a script, where Lightning does not call `prepare_data`
            self.prepare_data()
        self.setup()
        assert self._splits is not None
        return self._splits[name]

    def judged(self, name: str) -> ArrayStore:
        """A split for metrics: `split`, except that dynamic binarisation draws the training pixels once.

        Metrics compare binary samples with this store; a classifier or a distance on grey images would be misleading.
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
        self._tell_classes(stores)
        if self.limit_train is not None and self.limit_train < len(stores["train"]):
            chosen = _permutation(len(stores["train"]))[: self.limit_train].sort().values
            stores["train"] = stores["train"].subset(chosen)
        if not self.labels:
            stores = {name: store.with_column("y", None) for name, store in stores.items()}
        self._check_columns(stores)
        if self._spec.images:
            warn_of_equal(self.name, stores["train"])
        for name, store in stores.items():
            if self.binarize == "static" or (self.binarize == "dynamic" and name != "train"):
                stores[name] = _binarised(store, name)
        return stores

    def _held_out(self, split: str, fraction: float, total: int) -> int:
        """How many of `total` rows become a split that is not official."""
        return max(1, round(fraction * total))

    def _complete(self, stores: Mapping[str, ArrayStore]) -> dict[str, ArrayStore]:
        """Cuts missing splits off "train" or "all" by a fixed permutation."""
        rest = stores["all"] if "all" in stores else stores["train"]
        missing = {name: f for name, f in zip(SPLITS[1:], self.fractions, strict=True) if name not in stores}
        sizes = {name: self._held_out(name, fraction, len(rest)) for name, fraction in missing.items()}
        if sum(sizes.values()) >= len(rest):
            raise UserError(
                f"{self.name} has {len(rest)} samples, too few to cut off {' and '.join(sizes)}; "
                f"it needs at least {len(sizes) + 1}."
            )
        done = {name: stores[name] for name in SPLITS[1:] if name in stores}
        parts = _permutation(len(rest)).split([*sizes.values(), len(rest) - sum(sizes.values())])
        # Positions are sorted: a memory map is read fastest in the order of the file.
        cut = {name: rest.subset(part.sort().values) for name, part in zip(sizes, parts, strict=False)}
        train = rest.subset(parts[-1].sort().values) if sizes else rest
        return {"train": train, **{name: {**done, **cut}[name] for name in SPLITS[1:]}}

    def _check_classes(self, stores: Mapping[str, ArrayStore]) -> None:
        """Checks shapes and classes of the stores against the configuration and adds the classes found to the spec."""
        for store in stores.values():
            if store.shape != self._spec.x.stored_shape:
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
            self._spec = self._spec.with_field("y", Label(size=found, names=self.class_names))

    def _tell_classes(self, stores: Mapping[str, ArrayStore]) -> None:
        """Lists classes that were found with the files, and warns of samples that are of none."""
        names = self._spec.class_names
        labels = [store.y for store in stores.values() if store.y is not None]
        if type(self).class_names is not None or names is None or not labels:
            return
        y = torch.cat(labels)
        counts = torch.bincount(y[y >= 0], minlength=len(names)).tolist()
        told = listed([f"{name} {count}" for name, count in zip(names, counts, strict=True)])
        log.info("%s has %d classes: %s.", self.name, len(names), told)
        if sum(counts) < len(y):
            rest = "%d of the %d samples of %s have no class, such as files beside the folders of the classes."
            log.warning(rest, len(y) - sum(counts), len(y), self.name)

    def _found(self, name: str, **facts: Any) -> None:
        """Adds facts about a column that its files hold, such as `names` of words, to those that the config states.

        Raises:
            UserError: If the config states another value; names the one that was found.
        """
        field = self._spec.fields[name]
        for fact, value in facts.items():
            stated = getattr(field, fact)
            if stated not in (None, value):
                short = f"{value!r}"[:60]
                raise UserError(
                    f"data.columns.{name}.{fact} is {f'{stated!r}'[:60]}, and {self.name} has {short}. Try "
                    f"data.columns.{name}.{fact}={short}."
                )
        self._spec = self._spec.with_field(name, replace(field, **facts))

    def _check_columns(self, stores: Mapping[str, ArrayStore]) -> None:
        """Checks that each column is there and of the type that its field says."""
        for store in stores.values():
            for name in [*store.columns, *self._stated]:
                if name not in self._spec.fields:
                    raise UserError(f"{self.name} has a column {name}, and data.columns does not say of which kind.")
                if name not in store:
                    raise UserError(f"data.columns names {name}, and {self.name} has {', '.join(store.columns)}.")
                self._spec.fields[name].check_stored(store.columns[name].first)

    # --- Batches ------------------------------------------------------------------------------------------------

    def training_store(self) -> ArrayStore:
        """The training split with all labels, or with `num_labelled` of them and -1 for the others.

        Raises:
            UserError: If the split has fewer labels than `num_labelled`.
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
        return store.with_column("y", torch.full_like(store.y, -1).index_copy_(0, kept, store.y[kept]))

    def rows(self, split: str, names: Sequence[str], rows: Tensor) -> Batch:
        """Columns, stored or derived, of these rows [n] of a split as judges see it."""
        store = self.judged(split)
        needed = {*names, *(one.of for one in self.derive.values())}
        columns = {name: column.gather(rows) for name, column in store.columns.items() if name in needed}
        return derived(Batch(normalised(self._spec, columns)), self.derive, rows.tolist()).only(names)

    def given_rows(self, split: str, names: Sequence[str], n: int, rng: torch.Generator) -> Batch:
        """Columns [n] of rows of a split, drawn with replacement among those in which they are all known.

        Args:
            split: "train", "val" or "test".
            names: The columns, stored or derived.
            n: Number of rows.
            rng: Stream of the draws.

        Raises:
            UserError: If the data have no such column, or no row in which all are known.
        """
        store = self.judged(split)
        for name in names:
            if name not in self._spec.fields:
                raise UserError(f"{self.name} has no column {name}, only {', '.join(self._spec.fields)}.")
        known = torch.ones(len(store), dtype=torch.bool)
        for name in (name for name in names if name in store):
            field = self._spec.fields[name]
            if type(field).known is not Field.known:  # of other kinds all values are: none need be read
                known &= field.known(store.columns[name].gather(torch.arange(len(store))))
        places = known.nonzero().squeeze(1)
        if not len(places):
            raise UserError(f"{self.name} has no row of the {split} split in which {' and '.join(names)} is known.")
        return self.rows(split, names, places[torch.randint(len(places), (n,), generator=rng)])

    def stream(
        self, start: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str | None = None
    ) -> Stream:
        """The training batches from number `start` on."""
        where = {"start": start, "rank": rank, "world_size": world_size, "device": device}
        return self._made(Stream, self.training_store(), batches_per_step=self.batches_per_step, **where)

    def _made(self, kind: Callable[..., Stream], store: ArrayStore, **more: Any) -> Stream:
        """A stream of class `kind` with the configured batch size, seed, flips, binarisation and labels."""
        return kind(
            self._without_unread(store),
            self._spec,
            self.batch_size,
            self.seed,
            flip=self.flip,
            binarize=self.binarize == "dynamic",
            labelled=self._labelled(store),
            derive=self.derive,
            **more,
        )

    def _labelled(self, store: ArrayStore) -> int | None:
        """Number of samples with a label in each batch of a store; None: as they come."""
        if self.labelled_share is None or store.y is None or self.batch_size < 2:
            return None
        return min(max(1, round(self.labelled_share * self.batch_size)), self.batch_size - 1)

    def _without_unread(self, store: ArrayStore) -> ArrayStore:
        """The store without those of the config's `columns` that neither the model nor a derived column reads."""
        read = None if self.read is None else {*self.read, *(one.of for one in self.derive.values())}
        unread = [name for name in self._stated if read is not None and name not in read and name in store]
        for name in unread:
            store = store.with_column(name, None)
        return store

    def train_dataloader(self) -> Stream | MergedStreams:
        """The stream of this process from the trainer's iteration on, so that a resumed run continues its batches."""
        if self.trainer is None:
            return self.stream()
        trainer = self.trainer
        device = trainer.strategy.root_device
        return self.stream(trainer.global_step, trainer.global_rank, trainer.world_size, device)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch to `device`; streams make batches on the device, so usually nothing is left to do."""
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
        """The samples of a split in a fixed order, for metrics. The result has a length and can be iterated again."""
        store = self.split(split)
        size = batch_size or self.batch_size
        return FixedBatches(store, self._spec, size, device, limit, rank, world_size, self.derive)

    def first_batches(self, n: int | None = None, device: torch.device | str | None = None) -> Iterator[Batch]:
        """The first `n` training batches (None: endless) over all processes, the same in each.

        For `GenerativeModel.initialise`.
        """
        # For a few batches, copying the whole store to the device is not worth it.
        stream = self._made(Stream, self.training_store(), device=device, resident_bytes=0)
        return (stream.batch(i) for i in (count() if n is None else range(n)))

    # --- Checks of the arguments --------------------------------------------------------------------------------

    def _image_shape(
        self, shape: Sequence[int | None] | None, image_size: int | Sequence[int] | None, channels: int | None
    ) -> tuple[int, ...]:
        size = None if image_size is None else _as_size(image_size)
        if channels is not None and channels not in (1, 3):
            raise UserError(f"data.channels must be 1 (grey) or 3 (RGB), got {channels}.")
        if shape is None:
            if size is None or channels is None:
                raise UserError(f"{self.name} needs data.image_size and data.channels, e.g. 32 and 3.")
            return (channels, *size)
        given = tuple(int(n or 0) for n in shape)
        if len(given) != 3 or given[0] not in (1, 3):
            raise UserError(f"data.shape of images is [C, H, W] with C = 1 or 3, got {list(given)}.")
        if (size is not None and given[1:] != size) or (channels is not None and given[0] != channels):
            raise UserError(
                f"data.shape={list(given)} contradicts data.image_size={image_size} and data.channels={channels}; "
                "set only the latter two."
            )
        return given

    def _plain_shape(self, shape: Sequence[int | None] | None) -> tuple[int | None, ...]:
        own = self.own_shape
        given = own if shape is None else tuple(shape)
        if given is None:
            raise UserError(f"{self.name} needs data.shape, the shape of one sample.")
        if own is not None and given != own:
            raise UserError(f"{self.name} has samples of shape {list(own)}, got data.shape={list(given)}.")
        return given


def _check_numbers(
    batch_size: int, limit_train: int | None, num_labelled: int | None, labels: bool, num_workers: int | None
) -> None:
    """Refuses numbers of samples or threads that are not positive.

    Raises:
        UserError: Names the first.
    """
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
    """Positions of the known labels among y [N], in rounds: one of each class per round, in random order."""
    rng = torch.Generator().manual_seed(stable_seed(seed, "labelled"))
    order = torch.randperm(len(y), generator=rng)
    order = order[y[order] >= 0]
    first = torch.randperm(int(y.max()) + 1, generator=rng)  # the order of the classes, random for an incomplete round
    rounds = torch.empty_like(order)
    for label in y[order].unique():
        mine = y[order] == label
        rounds[mine] = torch.arange(int(mine.sum()))
    return order[(rounds * len(first) + first[y[order]]).argsort()]


def _binarised(store: ArrayStore, name: str) -> ArrayStore:
    """A copy with each pixel drawn as 0 or 255, the same in all runs."""
    generator = torch.Generator().manual_seed(stable_seed("binarize", name))
    x = torch.empty((len(store), *store.shape), dtype=torch.uint8)
    for idx in torch.arange(len(store)).split(4096):  # in parts: the uniform draws take four times a part's memory
        x[idx[0] : idx[-1] + 1] = binarise(store.gather(idx), generator)
    return store.with_column("x", x)
