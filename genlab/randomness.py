"""Random draws: a base class of modules that draw from their model's stream, and integers from uniform draws."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn


class Drawing(nn.Module):
    """Base of networks and objectives that draw random numbers, or follow a schedule, in training.

    The model that contains such a module calls `adopt` when training starts. The reference to the model is weak:
    copying or saving the module does not copy or save the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owner: weakref.ref[Any] | None = None

    def adopt(self, owner: Any) -> None:
        """Sets the model that gives random stream and clock: an object with `rand(n, *shape)` and `progress`."""
        self._owner = weakref.ref(owner)

    @property
    def owner(self) -> Any:
        """The model; None outside of training."""
        return None if self._owner is None else self._owner()

    def rand(self, n: int, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), [n, *shape], from the model's stream."""
        draws: Tensor = self.owner.rand(n, *shape)
        return draws

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owner": None}


def whole_below(u: Tensor, n: int) -> Tensor:
    """Uniform draws [N] in [0, 1] as whole numbers [N] below n, all equally likely.

    A draw of exactly 1 gives n - 1: the normal distribution function rounds to 1 from 5.4 on in float32.
    """
    return (u * n).long().clamp_max(n - 1)
