"""Random draws: whole numbers from uniform ones, and the stream of a module inside a model, which processes share."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn


class Drawing(nn.Module):
    """Base of networks and objectives that draw random numbers, or change, in the course of training.

    The model that they are part of adopts them when training starts. The reference is weak, so that copying or saving
    such a module never takes the model along.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owner: weakref.ref[Any] | None = None

    def adopt(self, owner: Any) -> None:
        """Takes the model whose stream and clock count: something with `rand(n, *shape)` and `progress`."""
        self._owner = weakref.ref(owner)

    @property
    def owner(self) -> Any:
        """The model, None outside of training."""
        return None if self._owner is None else self._owner()

    def rand(self, n: int, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), [n, *shape], from the model's stream."""
        draws: Tensor = self.owner.rand(n, *shape)
        return draws

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owner": None}


def whole_below(u: Tensor, n: int) -> Tensor:
    """Uniform draws [N] in [0, 1] as whole numbers [N] below n, all equally likely.

    A draw of 1 belongs to the last of them: a normal's distribution function reaches it, from 5.4 on in float32.
    """
    return (u * n).long().clamp_max(n - 1)
