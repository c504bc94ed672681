"""Scores while training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.checkpoints import Checkpoints
from genlab.models.base import GenerativeModel
from genlab.seeding import preserved_random_states


class Scores(Callback):
    """Judges the averaged weights on validation data every n iterations, and keeps the best ones.

    What judges is the `metrics` group; training's random streams, weights and buffers are left as they were.
    """

    judge: Any = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Scores when due: on all processes, since they share the work, or the first alone."""
        step = trainer.global_step
        if self.judge is None or not (step % self.judge.every_n_steps == 0 or step == trainer.max_steps):
            return
        assert isinstance(pl_module, GenerativeModel)
        with preserved_random_states():
            scores = self.judge.validate(pl_module, trainer.datamodule) if trainer.is_global_zero else {}  # type: ignore[attr-defined]
        if trainer.world_size > 1:
            scores = trainer.strategy.broadcast(scores)
        pl_module.report(scores)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.consider(trainer, {name.removeprefix("val/"): value for name, value in scores.items()})
