"""The input of a training step: named columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from genlab.errors import UserError


@dataclass(slots=True)
class Seq:
    """Sequences of different lengths, one to a row.

    Attributes:
        values: [N, T, ...], zero after the end of each sequence.
        length: Steps of each, [N] int64, at most T.
    """

    values: Tensor
    length: Tensor

    def __len__(self) -> int:
        return len(self.length)

    @property
    def mask(self) -> Tensor:
        """Whether a step lies within its sequence, [N, T] bool."""
        return torch.arange(self.values.shape[1], device=self.length.device) < self.length[:, None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Seq:
        """The sequences on `device`."""
        return Seq(self.values.to(device, non_blocking=non_blocking), self.length.to(device, non_blocking=non_blocking))

    def rows(self, idx: Tensor | slice) -> Seq:
        """The rows at the positions `idx`."""
        return Seq(self.values[idx], self.length[idx])


Column = Tensor | Seq


def joined(parts: Sequence[Column]) -> Column:
    """The rows of several columns of one kind, one after the other; sequences are padded to the longest."""
    if not isinstance(parts[0], Seq):
        return torch.cat([cast(Tensor, part) for part in parts])
    sequences = cast("Sequence[Seq]", parts)
    steps = max(part.values.shape[1] for part in sequences)
    values = torch.cat([_padded(part.values, steps) for part in sequences])
    return Seq(values, torch.cat([part.length for part in sequences]))


def _padded(values: Tensor, steps: int) -> Tensor:
    """Sequences [N, T, ...] with zeros up to `steps`."""
    return torch.cat([values, values.new_zeros(len(values), steps - values.shape[1], *values.shape[2:])], dim=1)


@dataclass(slots=True)
class Batch:
    """Named columns of N rows each. What a data set does not have is not there.

    Attributes:
        columns: By name. `x` are the samples [N, ...] (images in [-1, 1]), `y` labels [N] int64, -1 where one is
            missing, `factor` known factors of variation [N, F] in [-1, 1], `index` positions in the split [N],
            `group` the number of the only factor that varies in this batch, the same in all rows [N].
    """

    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Column:
        """A column.

        Raises:
            UserError: If the batch does not have it; names those that it has.
        """
        if name not in self.columns:
            raise UserError(f"The data have no column {name!r}, only {', '.join(self.columns)}.")
        return self.columns[name]

    def tensor(self, name: str) -> Tensor:
        """A column without sequences, [N, ...]; see `__getitem__`."""
        return cast(Tensor, self[name])

    @property
    def x(self) -> Tensor:
        """The samples [N, ...]."""
        return self.tensor("x")

    @property
    def y(self) -> Tensor | None:
        """The labels [N], None without labels."""
        return cast("Tensor | None", self.columns.get("y"))

    def only(self, names: Iterable[str]) -> Batch:
        """These columns alone, in this order."""
        return Batch({name: self[name] for name in names})

    def with_column(self, name: str, values: Column) -> Batch:
        """The batch with a column added or replaced."""
        return replace(self, columns={**self.columns, name: values})

    def rows(self, idx: Tensor | slice) -> Batch:
        """The rows at the positions `idx`."""
        return Batch({name: c.rows(idx) if isinstance(c, Seq) else c[idx] for name, c in self.columns.items()})

    def chunk(self, n: int) -> list[Batch]:
        """The rows in n parts, one after the other, as `Tensor.chunk` cuts them."""
        size = -(-len(self) // n)
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def read(self, by: Callable[[Batch], Tensor]) -> Tensor:
        """What `by` makes of the columns, [N, ...]: for networks that are told rows, or what lies between rows."""
        return by(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`; the batch itself where it already is there."""
        if all(is_on(c.values if isinstance(c, Seq) else c, device) for c in self.columns.values()):
            return self
        return Batch({name: c.to(device, non_blocking=non_blocking) for name, c in self.columns.items()})


@dataclass(slots=True)
class Between:
    """Conditions between two rows each, for networks that read vectors or maps of them: those of rows have no middle.

    Attributes:
        first: N rows.
        second: As many.
        share: Of the second, in [0, 1].
    """

    first: Batch
    second: Batch
    share: float

    def __len__(self) -> int:
        return len(self.first)

    def read(self, by: Callable[[Batch], Tensor]) -> Tensor:
        """(1 - share) by(first) + share by(second), [N, ...]; exactly by(first) where both are equal."""
        return torch.lerp(by(self.first), by(self.second), self.share)


def is_on(tensor: Tensor, device: torch.device | str) -> bool:
    """Whether `tensor` lies on `device`; a device without a number ("cuda") stands for the current one."""
    device = torch.device(device)
    here = tensor.device
    if here == device:
        return True
    if here.type != device.type or device.index is not None:
        return False
    return here.type != "cuda" or here.index == torch.cuda.current_device()
