"""A run's record of its rollbacks."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback

from genlab.data.stream import stable_seed


class Rollbacks(Callback):
    """Keeps in every checkpoint how often the run was rolled back, since its seeds follow from that."""

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
        """Rollbacks before a checkpoint; 0 for those of runs that knew none."""
        return int(checkpoint.get("callbacks", {}).get(cls.__qualname__, {}).get("count", 0))


def rollback_seed(seed: int, count: int) -> int:
    """The seed after so many rollbacks: the run's own at first, then others that are functions of both, below 2^31."""
    return seed if count == 0 else stable_seed(seed, "rollback", count) % 2**31
