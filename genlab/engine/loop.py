"""Lightning's loop, so that an iteration is an iteration, and the lock that keeps looks at a model out of it."""

from __future__ import annotations

import threading
from typing import Any, Protocol, cast

from pytorch_lightning.loops.optimization.manual import _ManualOptimization

# One thread at a time looks at a model whose weights or modes must be swapped for it, and not within an iteration.
SWAPPING = threading.RLock()


class Iterating(Protocol):
    """The methods of a model that the loop calls."""

    def begin_iteration(self) -> None:
        """Before each `training_step`."""
        ...

    def end_iteration(self) -> None:
        """After it."""
        ...


class IterationLoop(_ManualOptimization):
    """Lightning's manual loop, but one `training_step` is one `global_step`, however many optimizers stepped in it.

    Lightning counts every optimizer step (its issue 17958), so that `max_steps`, checkpoints and curves would mean
    something else for each method. `test_models_base.py` guards this use of a private class.
    """

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One iteration, which nobody else's look at the model may enter."""
        with SWAPPING:
            return super().run(*args, **kwargs)

    def on_run_start(self) -> None:
        """Leaves the optimizers' counting hooks silent."""
        cast(Iterating, self.trainer.lightning_module).begin_iteration()

    def on_run_end(self) -> Any:
        """Counts the iteration, before any callback sees its end."""
        self.optim_step_progress.increment_ready()
        self.optim_step_progress.increment_completed()
        cast(Iterating, self.trainer.lightning_module).end_iteration()
        output, self._output = self._output, {}
        return output
