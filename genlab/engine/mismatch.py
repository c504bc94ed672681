"""Mismatched conditions: for each row of a batch those of another row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genlab.batch import Batch, Column, Seq


def different(rows: Batch, others: Batch, names: Sequence[str]) -> Tensor:
    """Whether rows [N] and others [M] differ in one of the named columns, bool [N, M]; of sequences padded alike."""
    found = [_unequal(ours, theirs) for name in names for ours, theirs in _parts(rows[name], others[name])]
    return torch.stack(found).any(dim=0)


def _parts(ours: Column, theirs: Column) -> list[tuple[Tensor, Tensor]]:
    if isinstance(ours, Seq) and isinstance(theirs, Seq):
        return [(ours.values, theirs.values), (ours.length, theirs.length)]
    assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
    return [(ours, theirs)]


def _unequal(ours: Tensor, theirs: Tensor) -> Tensor:
    """Whether values [N, ...] and [M, ...] differ, bool [N, M]."""
    return (ours.reshape(len(ours), 1, -1) != theirs.reshape(1, len(theirs), -1)).any(dim=2)


def mismatched(
    rows: Batch, names: Sequence[str], gathered: Callable[[Tensor], Tensor], rand: Callable[..., Tensor]
) -> tuple[Batch, Tensor]:
    """For each row another row of the whole batch that differs in the named columns, all such rows equally likely.

    Args:
        rows: The columns of this process's rows [N].
        names: The columns that must differ, in one value at least.
        gathered: The tensors of the whole batch, over processes and chunks.
        rand: Uniform draws, as `GenerativeModel.rand`.

    Returns:
        The other rows [N], and whether there is one for each, bool [N]; where not, the other row is a matching one.
    """
    whole = Batch({name: _gathered(column, gathered) for name, column in rows.columns.items()})
    apart = different(rows, whole, names)
    places = torch.where(apart, rand(len(rows), len(whole)), -1).argmax(dim=1)
    return whole.rows(places), apart.any(dim=1)


def _gathered(column: Column, gathered: Callable[[Tensor], Tensor]) -> Column:
    if isinstance(column, Seq):
        return Seq(gathered(column.values), gathered(column.length))
    return gathered(column)
