"""Pools of earlier samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Pool:
    """Earlier fakes of the global batch, of which some are shown again.

    Shrivastava et al. (2017), arXiv:1612.07828, section 2.3: a share of each batch comes from the pool, and as many new
    samples take the place of those drawn. All processes hold the same pool, so that several of them do as one.

    Attributes:
        held: The fakes [M, ...]; empty [0] before the first batch.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.held = torch.empty(0)

    def mixed(
        self,
        x: Tensor,
        share: float,
        size: int,
        rand: Callable[[int, int], Tensor],
        whole: Tensor | None = None,
        rank: int = 0,
    ) -> Tensor:
        """Replaces some samples of a batch by earlier ones. They are spread evenly, so that each process has its share.

        Args:
            x: New samples [N, ...] of this process, without graph.
            share: Share of the batch that comes from the pool, in [0, 1].
            size: Capacity of the pool.
            rand: `rand(1, size)` gives uniform draws [1, size], the same on all processes.
            whole: New samples [W N, ...] of all W processes; x itself where there is one.
            rank: Number of this process.
        """
        whole = x if whole is None else whole
        count = round(share * len(whole))
        if not count:
            return x
        size = max(count, size)
        room = size - len(self.held) if self.held.dim() > 1 else size
        if room > 0:  # the pool fills up first
            kept = whole[:room].clone()
            self.held = kept if self.held.dim() == 1 else torch.cat([self.held, kept])
            return x
        rows = torch.arange(count, device=x.device) * len(whole) // count
        places = rand(1, size)[0].argsort()[:count]
        mixed = whole.index_copy(0, rows, self.held[places].to(whole.dtype))
        self.held[places] = whole[rows].to(self.held.dtype)
        return mixed[rank * len(x) : (rank + 1) * len(x)]

    def state(self) -> list[Tensor]:
        """The state for a checkpoint: the pool on the CPU; [] where it is empty."""
        return [self.held.cpu()] if len(self.held) else []

    def load(self, state: list[Tensor], device: torch.device) -> None:
        """Restores what `state` returned."""
        if state:
            self.held = state[0].to(device, copy=True)
