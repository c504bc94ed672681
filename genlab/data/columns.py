"""Columns in the store: arrays that are read by index, and sequences joined end to end."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Column, Seq
from genlab.fields.sequences import cut

_COPY_LIMIT = 256 * 2**20  # bytes; a smaller subset is copied, a larger one indexes its parent's array


class Stored(Protocol):
    """A column of N stored values."""

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of these values, without the other rows of an indexed array."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the values, and of the positions that they are asked for."""
        ...

    @property
    def first(self) -> Tensor:
        """The first value [1, ...] as it is stored; of sequences their first step."""
        ...

    def gather(self, idx: Tensor) -> Column:
        """A copy of the values at the positions `idx` [n], in the type of the store."""
        ...

    def subset(self, idx: Tensor) -> Stored:
        """The values at `idx`: a copy if small, else an index into the same array."""
        ...

    def to(self, device: torch.device | str) -> Stored:
        """A copy of these values on `device`."""
        ...

    def parts(self) -> list[bytes]:
        """Bytes that tell these values, in their order, from all others."""
        ...


class Rows:
    """Values of one shape.

    Args:
        array: [R, ...]; may be a memory map.
        index: Rows that are this column's values, [N] int64; None: all, in order.
        digest: Hash of the array's bytes where it is known, so that it need not be read for it.
    """

    def __init__(self, array: Tensor, index: Tensor | None = None, digest: str | None = None) -> None:
        self.array, self.index, self._digest = array, index, digest

    def __len__(self) -> int:
        return len(self.array) if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value."""
        return tuple(self.array.shape[1:])

    @property
    def nbytes(self) -> int:
        """See `Stored`."""
        return len(self) * self.array[:1].numel() * self.array.element_size()

    @property
    def device(self) -> torch.device:
        """See `Stored`."""
        return self.array.device

    @property
    def first(self) -> Tensor:
        """See `Stored`."""
        return self.array[:1]

    @property
    def values(self) -> Tensor:
        """All values, [N, ...]."""
        return self.array if self.index is None else self.array.index_select(0, self.index)

    def gather(self, idx: Tensor) -> Tensor:
        """See `Stored`."""
        return self.array.index_select(0, idx if self.index is None else self.index.index_select(0, idx))

    def subset(self, idx: Tensor) -> Rows:
        """See `Stored`."""
        rows = idx if self.index is None else self.index.index_select(0, idx)
        if len(idx) <= len(self) and len(idx) * self.array[:1].numel() * self.array.element_size() <= _COPY_LIMIT:
            return Rows(self.array.index_select(0, rows))
        return Rows(self.array, rows, self._array_digest())

    def to(self, device: torch.device | str) -> Rows:
        """See `Stored`."""
        return Rows(self.values.to(device))

    def parts(self) -> list[bytes]:
        """See `Stored`."""
        return [self._array_digest().encode(), *([] if self.index is None else [self.index.numpy().tobytes()])]

    def _array_digest(self) -> str:
        if self._digest is None:
            self._digest = array_digest(self.array.numpy())
        return self._digest


class Ragged:
    """Sequences of different lengths, joined end to end.

    Args:
        flat: The steps of all sequences, [S, ...].
        offsets: Where each sequence starts in `flat`, and at the end S: [N + 1] int64.

    Raises:
        ValueError: If the offsets do not cut `flat` into sequences.
    """

    def __init__(self, flat: Tensor, offsets: Tensor) -> None:
        if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 1 or bool((offsets.diff() < 0).any()):
            raise ValueError(f"Offsets must be rising int64 [N + 1], got {offsets.dtype} {list(offsets.shape)}.")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(flat):
            raise ValueError(f"Offsets must run from 0 to the {len(flat)} steps, got {offsets[0]} to {offsets[-1]}.")
        self.flat, self.offsets = flat, offsets

    @classmethod
    def of(cls, sequences: list[Tensor]) -> Ragged:
        """The column of these sequences [T_i, ...]."""
        lengths = torch.tensor([0, *(len(s) for s in sequences)])
        return cls(torch.cat(sequences), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one step."""
        return tuple(self.flat.shape[1:])

    @property
    def nbytes(self) -> int:
        """See `Stored`."""
        return self.flat.numel() * self.flat.element_size() + self.offsets.numel() * 8

    @property
    def device(self) -> torch.device:
        """See `Stored`."""
        return self.flat.device

    @property
    def first(self) -> Tensor:
        """See `Stored`."""
        return self.flat[:1]

    @property
    def lengths(self) -> Tensor:
        """Steps of each sequence, [N] int64."""
        return self.offsets.diff()

    def gather(self, idx: Tensor, steps: int | None = None) -> Seq:
        """Sequences at the positions `idx` [n], padded with zeros to the longest of them, or to `steps`."""
        start, length = self.offsets[idx], self.offsets[idx + 1] - self.offsets[idx]
        most = int(length.max()) if steps is None else steps
        place = torch.arange(most, device=self.flat.device)
        # A place past the end reads some step of the column, and is set to zero.
        values = self.flat[(start[:, None] + place).clamp_max(len(self.flat) - 1)]
        return cut(values, length)

    def subset(self, idx: Tensor) -> Ragged:
        """See `Stored`; always a copy."""
        length = self.offsets[idx + 1] - self.offsets[idx]
        offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
        ends = zip(self.offsets[idx].tolist(), self.offsets[idx + 1].tolist(), strict=True)
        return Ragged(torch.cat([self.flat[:0], *(self.flat[start:end] for start, end in ends)]), offsets)

    def to(self, device: torch.device | str) -> Ragged:
        """See `Stored`."""
        return Ragged(self.flat.to(device), self.offsets.to(device))

    def parts(self) -> list[bytes]:
        """See `Stored`."""
        return [array_digest(self.flat.numpy()).encode(), self.offsets.numpy().tobytes()]


def array_digest(array: np.ndarray) -> str:
    """Hash of an array's type, shape and bytes; reads slices, because the array may be a memory map."""
    h = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    rows = max(1, 2**24 // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        h.update(np.ascontiguousarray(array[start : start + rows]).data)
    return h.hexdigest()
