"""Scores during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.checkpoints import Checkpoints
from genlab.journal import note
from genlab.models.base import GenerativeModel
from genlab.seeding import preserved_random_states


class Scores(Callback):
    """Scores the averaged weights on validation data every n iterations, and keeps the best ones.

    The config group `metrics` chooses the judge. Training's random streams, weights and buffers do not change.
    """

    judge: Any = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Scores when due; all processes share the work."""
        step = trainer.global_step
        if self.judge is None or not (step % self.judge.every_n_steps == 0 or step == trainer.max_steps):
            return
        assert isinstance(pl_module, GenerativeModel)
        scores = judged(self.judge.validate, pl_module, trainer)
        pl_module.report(scores)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.consider(trainer, {name.removeprefix("val/"): value for name, value in scores.items()})
        if trainer.is_global_zero and scores:
            note(f"iteration {step}: {', '.join(f'{name} {value:.4g}' for name, value in scores.items())}")


def judged(
    score: Callable[[GenerativeModel, Any], dict[str, float]], model: GenerativeModel, trainer: pl.Trainer
) -> dict[str, float]:
    """A judge's scores, computed by all processes together without effect on training; the first one's count.

    Args:
        score: `validate` or `final` of a judge.
        model: Model to score.
        trainer: Its Trainer; every process must call this.
    """
    with preserved_random_states():
        if trainer.world_size > 1:
            # Running statistics of batch norm, and their averages, differ between processes. All score the first
            # one's, which the checkpoint holds and the next iteration would start from anyway.
            for tensor in (*model.state_dict().values(), *model.averages.values.values()):
                torch.distributed.broadcast(tensor, src=0)
        scores = score(model, trainer.datamodule)  # type: ignore[attr-defined]
    return scores if trainer.world_size == 1 else trainer.strategy.broadcast(scores)
