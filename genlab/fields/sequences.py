"""Values of ragged columns one by one, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genlab.batch import Column, Seq

MOST = 8  # longest random sequence where a field names no longest one


def apart(values: Column) -> list[Tensor]:
    """Each value [T_i, ...] without what follows its end, on the CPU."""
    if isinstance(values, Seq):
        return [v[:t] for v, t in zip(values.values.cpu(), values.length.tolist(), strict=True)]
    return list(values.cpu())


def together(sequences: Sequence[Tensor]) -> Seq:
    """Sequences [T_i, ...] padded with zeros to the longest."""
    return Seq(pad_sequence(list(sequences), batch_first=True), torch.tensor([len(s) for s in sequences]))


def flattened(values: Seq) -> tuple[Tensor, Tensor]:
    """The steps of all sequences joined [S, ...], and where each starts, with S at the end: int64 [N + 1]."""
    return values.values[values.mask], torch.cat([values.length.new_zeros(1), values.length.cumsum(0)])


def cut(values: Tensor, length: Tensor) -> Seq:
    """Steps [N, T, ...] of which `length` [N] belong to each sequence; zero after its end."""
    mask = Seq(values, length).mask
    return Seq(values * mask.view(*mask.shape, *[1] * (values.dim() - 2)).to(values.dtype), length)


def random_lengths(n: int, most: int | None, rng: torch.Generator) -> Tensor:
    """Lengths [n] from 1 to `most`, all equally likely."""
    return torch.randint(1, (most or MOST) + 1, (n,), generator=rng)
