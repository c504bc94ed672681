"""A profiler without cost."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from pytorch_lightning.profilers import PassThroughProfiler

_NOTHING = nullcontext()


class Unprofiled(PassThroughProfiler):
    """A no-op profiler without the generator that Lightning's makes for each of a hundred hooks per iteration."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return _NOTHING
