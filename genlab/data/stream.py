"""Batches as pure functions of their number, so that a run can resume at any of them.

No worker processes and no PIL: a batch is an index, a copy, a normalisation to [-1, 1] and a flip, on the device where
the data fits there.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.data.spec import Batch, DataSpec
from genlab.data.store import ArrayStore
from genlab.errors import UserError
from genlab.seeding import fixed_choice

_RESIDENT = 2 * 2**30  # bytes of samples that an accelerator keeps if it does not say how much it has


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) from some numbers and names, the same in every process, version and machine."""
    h = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8)
    return int.from_bytes(h.digest(), "little") >> 1


def normalise(x: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1] (0 and 255 are reached exactly); floats (points) stay as they are."""
    return x.float().div_(127.5).sub_(1.0) if x.dtype == torch.uint8 else x


def binarise(x: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 images to {0, 255}: each pixel is 255 with probability value / 255."""
    return _threshold(x, torch.rand(x.shape, generator=generator, device=x.device))


def _threshold(x: Tensor, uniform: Tensor) -> Tensor:
    return (uniform.mul_(255.0) < x).to(torch.uint8).mul_(255)  # uniform < 1: value 255 always, 0 never


def resident_limit(device: torch.device) -> int:
    """Bytes of samples that a device may keep: a quarter of its free memory, the rest is for training."""
    if device.type != "cuda":
        return _RESIDENT
    free, _ = torch.cuda.mem_get_info(device)
    return free // 4


class Stream:
    """Endless, exactly resumable training batches.

    Batch `i` is a pure function of (seed, name, i): samples come in the order of one random permutation per epoch, one
    permutation after the other without gaps, and batch `i` takes the positions [i B n, (i + 1) B n). Two processes get
    the two halves of each of the n chunks that one process would get, flips and binarisation included. The global
    random state is neither read nor moved.

    Args:
        store: The samples.
        spec: What they are.
        batch_size: B, samples per chunk over all processes.
        seed: Seed of order, flips and binarisation.
        batches_per_step: n, chunks of fresh samples that one batch holds (n_critic needs several); or a function that
            gives the n of batch number i, where it changes.
        start: Number of the first batch of an iteration over the stream.
        rank: This process.
        world_size: Number of processes; must divide B.
        device: Where batches go; the CPU unless given.
        flip: Mirror each image left to right with probability 1/2.
        binarize: Draw each pixel anew from its grey value, as 0 or 255, in every batch.
        name: Streams of different names (and one seed) have independent orders.
        with_labels: Whether `Batch.y` is filled where the store has labels.
        resident_bytes: A store of at most so many bytes is kept on a device that is not the CPU; `resident_limit` of
            the device unless given.

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
        with_labels: bool = True,
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
        self.flip, self.binarize, self.with_labels = flip, binarize, with_labels
        self.device = torch.empty(0, device=device or "cpu").device  # "cuda" becomes "cuda:0"
        if self.device.type != "cpu":
            room = resident_limit(self.device) if resident_bytes is None else resident_bytes
            store = store.to(self.device) if store.nbytes <= room else store
        self.store = store
        self._size = len(store)
        self._place = store.x.device  # of the samples, thus of the indices
        self._order_rng = torch.Generator()  # on the CPU: one order on all devices
        self._noise_rng = torch.Generator(self.device)
        self._orders: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Batch]:
        for i in itertools.count(self.start):
            yield self.batch(i)

    def batch(self, i: int) -> Batch:
        """Batch number `i`: this process's share, [n B / world_size, ...], on the device."""
        idx = self._share(self.indices(i))
        x = self._to_device(self.store.gather(idx))
        y = self.store.labels(idx) if self.with_labels else None
        factor = self.store.factors(idx)
        x = self._finished(i, x)
        if self._place != self.device:
            y, factor = (None if t is None else self._to_device(t) for t in (y, factor))
            idx = self._to_device(idx)
        return Batch(x, y, factor=factor, index=idx)

    def _finished(self, i: int, x: Tensor) -> Tensor:
        """Stored samples of batch `i` as the model sees them: binarised, mirrored, in [-1, 1]."""
        if x.dtype == torch.uint8:
            if self.binarize:
                x = _threshold(x, self._draw("binarize", i, self.spec.shape))
            if self.flip:
                mirrored = self._draw("flip", i, ()) < 0.5
                # Both versions one after the other, then a choice of rows: 7 times faster than torch.where on bytes.
                rows = torch.arange(len(x), device=self.device) + mirrored * len(x)
                x = torch.cat((x, x.flip(-1))).index_select(0, rows)
            x = normalise(x)
        return x

    def indices(self, i: int) -> Tensor:
        """Positions [n B] in the store that batch `i` takes over all processes, chunk by chunk."""
        items = self.chunks.of(i) * self.batch_size
        epoch, offset = divmod(self.chunks.before(i) * self.batch_size, self._size)
        order = self._order(epoch)
        if offset + items <= self._size:
            return order[offset : offset + items]
        parts = [order[offset:]]
        missing = items - len(parts[0])
        while missing > 0:
            epoch += 1
            parts.append(self._order(epoch)[:missing])
            missing -= len(parts[-1])
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is the trainer's global step, given as `start`.

        That the method exists tells Lightning that the loader can resume in the middle of an epoch.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load, see `state_dict`."""

    def _order(self, epoch: int) -> Tensor:
        order = self._orders.get(epoch)
        if order is None:
            self._order_rng.manual_seed(stable_seed(self.seed, self.name, "order", epoch))
            order = torch.randperm(self._size, generator=self._order_rng).to(self._place)
            if len(self._orders) == 2:  # a batch seldom spans more than two epochs
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = order
        return order

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

    def _to_device(self, t: Tensor) -> Tensor:
        if t.device == self.device or self._place == self.device:
            return t
        if self.device.type == "cuda":  # pinned, so that the copy runs beside the GPU's work
            return t.pin_memory().to(self.device, non_blocking=True)
        return t.to(self.device)


class Chunks:
    """How many chunks of fresh samples each batch of a stream holds, and how many came before it."""

    def __init__(self, per_batch: int | Callable[[int], int]) -> None:
        self._fixed = per_batch if isinstance(per_batch, int) else None
        self._given = (lambda _: per_batch) if isinstance(per_batch, int) else per_batch
        self._known = (0, 0)  # a batch, and the chunks before it: batches are asked for one after the other

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


class NamedStreams:
    """Several streams side by side, for unpaired or part-labelled training: yields {name: Batch}.

    Args:
        streams: Streams by name; give each another `Stream.name`, so that their orders are independent.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        if not streams:
            raise ValueError("NamedStreams needs at least one stream.")
        self.streams = dict(streams)

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        for batches in zip(*self.streams.values(), strict=True):  # endless
            yield dict(zip(self.streams, batches, strict=True))

    def batch(self, i: int) -> dict[str, Batch]:
        """Batch number `i` of each stream."""
        return {name: stream.batch(i) for name, stream in self.streams.items()}

    def state_dict(self) -> dict[str, Any]:
        """Empty, as `Stream.state_dict`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


class FixedBatches:
    """The samples of a store once, in order: for metrics and validation. May be iterated again; has a length.

    Args:
        store: The samples.
        batch_size: Samples per batch; the last may be smaller.
        device: Where batches go.
        limit: Only so many samples, those that `fixed_choice` says.
        rank: This process; it takes the batches `rank`, `rank + world_size`, ...
        world_size: Number of processes that share the batches.
    """

    def __init__(
        self,
        store: ArrayStore,
        batch_size: int,
        device: torch.device | str | None = None,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"A batch needs at least one sample, got batch_size={batch_size}.")
        self.store, self.batch_size, self.device = store, batch_size, torch.device(device or "cpu")
        self._rows = fixed_choice(len(store), len(store) if limit is None else limit)
        self._starts = range(rank * batch_size, len(self._rows), world_size * batch_size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        for start in self._starts:
            idx = self._rows[start : start + self.batch_size]
            x = normalise(self.store.gather(idx).to(self.device))
            yield Batch(x, self.store.labels(idx), factor=self.store.factors(idx), index=idx).to(self.device)
