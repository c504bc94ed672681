"""Pools of earlier samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Pool:
    """Earlier fakes, of which some are shown again.

    Shrivastava et al. (2017), arXiv:1612.07828, section 2.3: a share of each batch comes from the pool, and as many of
    the new ones take the place of old ones.

    Attributes:
        held: The fakes [M, ...] of this process; empty [0] before the first came.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.held = torch.empty(0)

    def mixed(self, x: Tensor, share: float, size: int, rand: Callable[[int, int], Tensor]) -> Tensor:
        """The batch, with some samples replaced by earlier ones.

        Args:
            x: New samples [N, ...], without a graph.
            share: Of the batch that comes from the pool.
            size: How many the pool holds.
            rand: `rand(1, size)` gives uniform draws [1, size].
        """
        count = round(share * len(x))
        if not count:
            return x
        size = max(count, size)
        room = size - len(self.held) if self.held.dim() > 1 else size
        if room > 0:  # it fills up first
            kept = x[:room].clone()
            self.held = kept if self.held.dim() == 1 else torch.cat([self.held, kept])
            return x
        order = rand(1, size)[0].argsort()[:count]
        old = self.held[order]
        self.held[order] = x[:count].to(self.held.dtype)
        return torch.cat([old.to(x.dtype), x[count:]])

    def state(self, world: int) -> list[Tensor]:
        """The state for a checkpoint: the pool of each process, on the CPU; [] where it is empty."""
        if not len(self.held):
            return []
        if world == 1:
            return [self.held.cpu()]
        found: list[Any] = [None] * world
        torch.distributed.all_gather_object(found, self.held.cpu())
        return found

    def load(self, state: list[Tensor], rank: int, device: torch.device) -> None:
        """Takes back this process's share of what `state` gave."""
        if state:
            self.held = state[min(rank, len(state) - 1)].to(device, copy=True)
