"""Lightning's loop with one step per iteration, and the lock between iterations and inference."""

from __future__ import annotations

import threading
from typing import Any, Protocol, cast

from pytorch_lightning.loops.optimization.manual import _ManualOptimization

from genlab.engine.lockstep import in_strand
from genlab.engine.players import Players
from genlab.engine.settings import Settings


class _Swapping:
    """A reentrant lock that a chunk's thread need not take: the iteration that it belongs to holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not in_strand():
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if not in_strand():
            self._lock.release()


# Held by an iteration, and by inference that must swap weights or modes: one thread at a time.
SWAPPING = _Swapping()


class Iterating(Protocol):
    """The parts of a model that the loop uses."""

    settings: Settings
    moves: Players

    @property
    def progress(self) -> float:
        """The share of training that is done, in [0, 1]."""
        ...

    def begin_iteration(self) -> None:
        """Before each `training_step`."""
        ...

    def end_iteration(self) -> None:
        """After it."""
        ...


class IterationLoop(_ManualOptimization):
    """Lightning's manual loop, but one `training_step` is one `global_step`, however many optimizers stepped in it.

    Lightning counts every optimizer step (its issue 17958), so `max_steps`, checkpoints and curves would count
    differently for each method. `test_models_base.py` guards this use of a private class.
    """

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One iteration, under the lock."""
        with SWAPPING:
            return super().run(*args, **kwargs)

    def advance(self, kwargs: Any) -> None:
        """The step: on the whole batch, or on its chunks."""
        model = cast(Iterating, self.trainer.lightning_module)
        if model.settings.accumulate == 1:
            return super().advance(kwargs)
        with model.moves.lockstep.installed():
            super().advance(kwargs)

    def on_run_start(self) -> None:
        """Begins the iteration, without Lightning's hooks that count optimizer steps."""
        model = cast(Iterating, self.trainer.lightning_module)
        model.begin_iteration()
        if model.moves.schedulers:
            model.moves.follow(model.progress)

    def on_run_end(self) -> Any:
        """Counts the iteration, before any callback sees its end."""
        self.optim_step_progress.increment_ready()
        self.optim_step_progress.increment_completed()
        cast(Iterating, self.trainer.lightning_module).end_iteration()
        output, self._output = self._output, {}
        return output
