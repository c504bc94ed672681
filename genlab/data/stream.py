"""Batches as pure functions of their number, so that a run can resume at any batch.

A batch needs no worker process and no PIL: it is an index, a copy, a normalisation to [-1, 1] and a flip, done on the
device if the data fit there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from genlab.batch import Batch, Column, Seq
from genlab.data.derive import Derivation, derived, with_columns
from genlab.data.spec import DataSpec
from genlab.data.store import ArrayStore
from genlab.errors import UserError
from genlab.fields.sequences import cut
from genlab.seeding import fixed_choice, stable_seed

_RESIDENT = 2 * 2**30  # bytes of samples kept on an accelerator that does not report its free memory


def binarise(x: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 images with pixels in {0, 255}: each pixel becomes 255 with probability value / 255."""
    return _threshold(x, torch.rand(x.shape, generator=generator, device=x.device))


def _threshold(x: Tensor, uniform: Tensor) -> Tensor:
    return (uniform.mul_(255.0) < x).to(torch.uint8).mul_(255)  # uniform < 1: 255 always stays 255, 0 always 0


def resident_limit(device: torch.device) -> int:
    """Bytes of samples that may be kept on a device: a quarter of its free memory."""
    if device.type != "cuda":
        return _RESIDENT
    free, _ = torch.cuda.mem_get_info(device)
    return free // 4


class Stream:
    """Endless, exactly resumable training batches.

    Batch `i` is a pure function of (seed, name, i). The samples are ordered by one random permutation per epoch, the
    permutations follow each other without gaps, and batch `i` takes the positions [i B n, (i + 1) B n). With two
    processes, each gets one half of each of the n chunks that a single process would get, with the same flips and
    binarisation. The global random state is neither read nor changed.

    Args:
        store: The samples.
        spec: The facts about them.
        batch_size: B, samples per chunk over all processes.
        seed: Seed of order, flips and binarisation.
        batches_per_step: n, chunks of fresh samples per batch (n_critic needs several); if n varies, a function that
            gives the n of batch number i.
        start: Number of the first batch when the stream is iterated.
        rank: Number of this process.
        world_size: Number of processes; must divide B.
        device: Device of the batches; None: the CPU.
        flip: Mirror each image left to right with probability 1/2.
        binarize: Draw each pixel anew from its grey value, as 0 or 255, in every batch.
        name: Streams with one seed and different names have independent orders.
        labelled: Number of samples with a label among the B of a chunk, 1 to B - 1. None: as they come. Has no effect
            where all samples have a label, or none has.
        derive: Columns that are made of the others in each batch, by name, in this order.
        resident_bytes: Largest store, in bytes, that is copied to a device other than the CPU; None:
            `resident_limit` of the device.

    Raises:
        UserError: If the store is empty or `world_size` does not divide `batch_size`.
    """

    def __init__(
        self,
        store: ArrayStore,
        spec: DataSpec,
        batch_size: int,
        seed: int,
        batches_per_step: int | Callable[[int], int] = 1,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
        flip: bool = False,
        binarize: bool = False,
        name: str = "train",
        labelled: int | None = None,
        derive: Mapping[str, Derivation] | None = None,
        resident_bytes: int | None = None,
    ) -> None:
        if len(store) == 0:
            raise UserError("The training split is empty; give more images or a larger data.limit_train.")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"data.batch_size={batch_size} is the batch over all processes and must be a positive multiple of "
                f"their number, {world_size}; try data.batch_size={max(1, batch_size // world_size) * world_size}."
            )
        self.spec = spec
        self.batch_size, self.chunks = batch_size, Chunks(batches_per_step)
        self.seed, self.name, self.start = seed, name, start
        self.rank, self.world_size = rank, world_size
        self.flip, self.binarize, self.derive = flip, binarize, dict(derive or {})
        if flip:
            check_mirrors(spec, store)
        self.device = torch.empty(0, device=device or "cpu").device  # "cuda" becomes "cuda:0"
        if self.device.type != "cpu":
            room = resident_limit(self.device) if resident_bytes is None else resident_bytes
            store = store.to(self.device) if store.nbytes <= room else store
        self.store = store
        self._place = store.device  # of the positions too
        self._noise_rng = torch.Generator(self.device)
        self._order = Order(torch.arange(len(store)), seed, name, self._place)
        self._strata = None if labelled is None else self._by_label(labelled)

    def __iter__(self) -> Iterator[Batch]:
        for i in itertools.count(self.start):
            yield self.batch(i)

    def batch(self, i: int) -> Batch:
        """Batch number `i`: this process's share, [n B / world_size, ...], on the device."""
        whole = self.indices(i)
        idx = self._share(whole)
        rows = {name: self._to_device(column) for name, column in self.store.rows(idx, whole).items()}
        return self._finished(i, rows).with_column("index", cast(Tensor, self._to_device(idx)))

    def _finished(self, i: int, rows: dict[str, Column]) -> Batch:
        """Stored rows of batch `i` as input of the model: binarised, mirrored, normalised, with derived columns."""
        if self.binarize:
            rows["x"] = _threshold(cast(Tensor, rows["x"]), self._draw("binarize", i, self.spec.shape))
        if self.flip:
            mirrored = self._draw("flip", i, ()) < 0.5
            places = torch.arange(len(mirrored), device=self.device) + mirrored * len(mirrored)
            for name, column in rows.items():
                values = column.values if isinstance(column, Seq) else column
                other = self.spec.fields[name].mirror(values)
                if other is values:
                    continue
                # Concatenating both versions and selecting rows is 7 times faster than torch.where on bytes.
                chosen = torch.cat((values, other)).index_select(0, places)
                rows[name] = Seq(chosen, column.length) if isinstance(column, Seq) else chosen
        return with_columns(Batch(normalised(self.spec, rows)), self.derive, lambda n: self.draws(f"derive {n}", i))

    def indices(self, i: int) -> Tensor:
        """Positions [n B] in the store of the samples of batch `i`, over all processes, chunk by chunk."""
        before, now = self.chunks.before(i), self.chunks.of(i)
        if self._strata is None:
            return self._order.take(before * self.batch_size, now * self.batch_size)
        parts = [order.take(before * n, now * n).view(now, n) for order, n in self._strata]
        return torch.cat(parts, dim=1)[:, self._places].flatten()

    def _by_label(self, labelled: int) -> list[tuple[Order, int]] | None:
        """The orders of samples with and without a label, and the number of each in a chunk; None if one is empty."""
        known = self.store.values("y").cpu() >= 0
        if not 0 < int(known.sum()) < len(known):
            return None
        spread = torch.arange(labelled) * self.batch_size // labelled  # over the chunk, and so over all processes
        mixed = torch.full((self.batch_size,), -1).index_copy_(0, spread, torch.arange(labelled))
        self._places = torch.where(mixed < 0, labelled - 1 + (mixed < 0).cumsum(0), mixed).to(self._place)
        sizes = {"labelled": labelled, "unlabelled": self.batch_size - labelled}
        return [
            (Order(rows.nonzero().squeeze(1), self.seed, f"{self.name} {part}", self._place), n)
            for rows, (part, n) in zip((known, ~known), sizes.items(), strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is the trainer's global step, passed as `start`.

        Lightning needs the method to treat the loader as one that can resume in the middle of an epoch.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load, see `state_dict`."""

    def _share(self, t: Tensor) -> Tensor:
        """This process's part of each chunk of a global tensor [n B, ...]."""
        if self.world_size == 1:
            return t
        chunks = t.view(-1, self.world_size, self.batch_size // self.world_size, *t.shape[1:])
        return chunks[:, self.rank].reshape(-1, *t.shape[1:])

    def _draw(self, purpose: str, i: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers [n B / world_size, *shape]: drawn for the global batch, sliced by rank."""
        self._noise_rng.manual_seed(stable_seed(self.seed, self.name, purpose, i))
        items = self.chunks.of(i) * self.batch_size
        return self._share(torch.rand((items, *shape), generator=self._noise_rng, device=self.device))

    def draws(self, purpose: str, i: int) -> Callable[..., Tensor]:
        """A function `rand(*shape)` for `_draw`, new numbers in each call."""
        calls = itertools.count()
        return lambda *shape: self._draw(f"{purpose} {next(calls)}", i, shape)

    def _to_device(self, t: Column) -> Column:
        if self._place == self.device:
            return t
        if isinstance(t, Seq):
            return Seq(cast(Tensor, self._to_device(t.values)), cast(Tensor, self._to_device(t.length)))
        if self.device.type == "cuda":  # pinned, so that the copy overlaps with the GPU's work
            return t.pin_memory().to(self.device, non_blocking=True)
        return t.to(self.device)


class Order:
    """An endless order of rows: one random permutation per epoch, which follow each other without gaps.

    Args:
        rows: Positions [n] in the store.
        seed: Seed of the permutations.
        name: Orders with one seed and different names are independent.
        device: Device of the result.
    """

    def __init__(self, rows: Tensor, seed: int, name: str, device: torch.device) -> None:
        self.rows, self.seed, self.name, self.device = rows, seed, name, device
        self._rng = torch.Generator()  # on the CPU: the same order for all devices
        self._epochs: dict[int, Tensor] = {}

    def take(self, start: int, items: int) -> Tensor:
        """The rows [items] at the places from `start` on."""
        epoch, offset = divmod(start, len(self.rows))
        order = self._of(epoch)
        if offset + items <= len(self.rows):
            return order[offset : offset + items]
        parts = [order[offset:]]
        missing = items - len(parts[0])
        while missing > 0:
            epoch += 1
            parts.append(self._of(epoch)[:missing])
            missing -= len(parts[-1])
        return torch.cat(parts)

    def _of(self, epoch: int) -> Tensor:
        order = self._epochs.get(epoch)
        if order is None:
            self._rng.manual_seed(stable_seed(self.seed, self.name, "order", epoch))
            order = self.rows[torch.randperm(len(self.rows), generator=self._rng)].to(self.device)
            if len(self._epochs) == 2:  # most batches span at most two epochs
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = order
        return order


class Chunks:
    """Numbers of chunks of fresh samples: in each batch of a stream, and in all batches before it."""

    def __init__(self, per_batch: int | Callable[[int], int]) -> None:
        self._fixed = per_batch if isinstance(per_batch, int) else None
        self._given = (lambda _: per_batch) if isinstance(per_batch, int) else per_batch
        self._known = (0, 0)  # number of the last batch asked for, and of the chunks before it; i mostly increases

    def of(self, i: int) -> int:
        """Chunks in batch `i`."""
        return self._given(i)

    def before(self, i: int) -> int:
        """Chunks in all batches before `i`."""
        if self._fixed is not None:
            return i * self._fixed
        start, total = self._known if self._known[0] <= i else (0, 0)
        total += sum(self._given(j) for j in range(start, i))
        self._known = (i, total)
        return total


class MergedStreams:
    """Several streams, each in an order of its own, as one: for unpaired or part-labelled data of several corpora.

    The samples of the stream `a` are the column `a`, its labels `a.y`, and so on.

    Args:
        streams: Streams by name, with equal first batches; different `Stream.name` make their orders independent.
        target: The stream whose columns have their plain names as well, `x`, `y`, ...; None: none.
        derive: Columns that are made of the others, by name, in this order.

    Raises:
        ValueError: If there are none.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        target: str | None = None,
        derive: Mapping[str, Derivation] | None = None,
    ) -> None:
        if not streams:
            raise ValueError("MergedStreams needs at least one stream.")
        self.streams, self.target, self.derive = dict(streams), target, dict(derive or {})

    def __iter__(self) -> Iterator[Batch]:
        for i in itertools.count(next(iter(self.streams.values())).start):
            yield self.batch(i)

    def batch(self, i: int) -> Batch:
        """Batch number `i` of all streams."""
        batches = {name: stream.batch(i) for name, stream in self.streams.items()}
        plain = batches[self.target].columns if self.target else {}
        batch = Batch({**plain, **merged(batches).columns})
        draws = next(iter(self.streams.values())).draws
        return with_columns(batch, self.derive, lambda name: draws(f"derive {name}", i))

    def state_dict(self) -> dict[str, Any]:
        """Empty, as `Stream.state_dict`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


def merged(batches: Mapping[str, Batch]) -> Batch:
    """One batch of several: x of batch `a` is the column `a`, y is `a.y`."""
    columns = [(stream, name, c) for stream, batch in batches.items() for name, c in batch.columns.items()]
    return Batch({stream if name == "x" else f"{stream}.{name}": c for stream, name, c in columns})


def normalised(spec: DataSpec, rows: Mapping[str, Column]) -> dict[str, Column]:
    """Stored columns as a model sees them; those without a field as they are."""
    done: dict[str, Column] = {}
    for name, column in rows.items():
        field = spec.fields.get(name)
        if field is None:
            done[name] = column
        elif isinstance(column, Seq):
            values = field.normalise(column.values.flatten(0, 1)).unflatten(0, column.values.shape[:2])
            done[name] = cut(values, column.length)
        else:
            done[name] = field.normalise(column)
    return done


def check_mirrors(spec: DataSpec, store: ArrayStore) -> None:
    """Refuses to mirror samples beside a column that would be wrong then.

    Raises:
        UserError: Names the column.
    """
    for name in store.columns:
        if not spec.fields[name].mirrors:
            raise UserError(
                f"data.flip mirrors samples, and the column {name} of kind {spec.fields[name].kind} cannot be mirrored "
                "with them. Try data.flip=false."
            )


class FixedBatches:
    """The samples of a store once, in order, for metrics and validation. Has a length and can be iterated again.

    Args:
        store: The samples.
        spec: The facts about them.
        batch_size: Samples per batch; the last may be smaller.
        device: Device of the batches.
        limit: Number of samples, chosen by `fixed_choice`; None: all.
        rank: Number of this process; it gets the batches `rank`, `rank + world_size`, ...
        world_size: Number of processes that share the batches.
        derive: Columns that are made of the others, by name, in this order; draws depend on a row alone.
    """

    def __init__(
        self,
        store: ArrayStore,
        spec: DataSpec,
        batch_size: int,
        device: torch.device | str | None = None,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        derive: Mapping[str, Derivation] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"A batch needs at least one sample, got batch_size={batch_size}.")
        self.store, self.batch_size, self.device = store, batch_size, torch.device(device or "cpu")
        self.spec, self.derive = spec, dict(derive or {})
        self._rows = fixed_choice(len(store), len(store) if limit is None else limit)
        self._starts = range(rank * batch_size, len(self._rows), world_size * batch_size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        for start in self._starts:
            idx = self._rows[start : start + self.batch_size]
            batch = Batch(normalised(self.spec, Batch(self.store.rows(idx)).to(self.device).columns))
            yield derived(batch, self.derive, idx.tolist()).with_column("index", idx.to(self.device))
