"""A run's record of its rollbacks."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback

from genlab.seeding import stable_seed


class Rollbacks(Callback):
    """Keeps the number of rollbacks in every checkpoint, as the seeds of the run depend on it."""

    def __init__(self, count: int = 0) -> None:
        """Sets the count.

        Args:
            count: Rollbacks of this run so far.
        """
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"count": self.count}

    @classmethod
    def count_in(cls, checkpoint: dict[str, Any]) -> int:
        """Number of rollbacks in a checkpoint; 0 if it holds none."""
        return int(checkpoint.get("callbacks", {}).get(cls.__qualname__, {}).get("count", 0))


def rollback_seed(seed: int, count: int) -> int:
    """The seed after `count` rollbacks: the run's own for 0, else a function of both, below 2^31."""
    return seed if count == 0 else stable_seed(seed, "rollback", count) % 2**31
