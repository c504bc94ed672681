"""Checkpoints that are written whole or not at all, and a run that stops cleanly."""

from __future__ import annotations

import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from genlab.errors import TrainingStopped
from genlab.files import write_atomic
from genlab.models.base import GenerativeModel


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name and renames them; reads them without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            TrainingStopped: If it cannot be written; the file at `path` is then the one that was there before.
        """
        path = Path(path)
        try:
            write_atomic(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
            raise TrainingStopped(
                f"The checkpoint {path} could not be written ({error}); {free:.0f} MiB are free there. "
                "The one before it is whole."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint, plain containers and tensors only."""
        return torch.load(path, map_location=map_location, weights_only=True)


class Checkpoints(Checkpoint):
    """`last.ckpt` every n iterations and at the end, a few older ones, and `best.ckpt` by a validation score.

    All are written at the end of an iteration, when every player has moved, so that each can be resumed exactly.
    """

    def __init__(self, every_n_steps: int, keep: int, monitor: str | None, mode: str = "min") -> None:
        """Sets when and what.

        Args:
            every_n_steps: Iterations between checkpoints.
            keep: How many of them stay, the last one included.
            monitor: Name of the score that chooses the best, None for no best one.
            mode: "min" or "max": which of its values are good.
        """
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"checkpoint.every_n_steps and keep must be at least 1, got {every_n_steps} and {keep}.")
        self.every_n_steps, self.keep, self.monitor, self.mode = every_n_steps, keep, monitor, mode
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._saved_step = -1

    @staticmethod
    def folder(trainer: pl.Trainer) -> Path:
        """Where the checkpoints of a run lie."""
        return Path(trainer.default_root_dir) / "checkpoints"

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Saves when due: every n iterations, at the last one, and before a requested stop."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, model: Any) -> None:
        """Writes `last.ckpt`, after a look for NaN, and drops what is older than `keep`."""
        assert isinstance(model, GenerativeModel)
        model.check_finite()
        model.check_parameters()
        folder, step = self.folder(trainer), trainer.global_step
        last = folder / "last.ckpt"
        if self.keep > 1 and trainer.is_global_zero and last.is_file() and self._saved_step >= 0:
            last.replace(folder / f"step_{self._saved_step:07d}.ckpt")
            for old in sorted(folder.glob("step_*.ckpt"))[: -(self.keep - 1)]:
                old.unlink()
        trainer.save_checkpoint(last)
        self._saved_step = step

    def consider(self, trainer: pl.Trainer, scores: dict[str, float]) -> None:
        """Keeps this iteration's weights as `best.ckpt` if the monitored score is the best so far.

        It is called at the end of an iteration, by the callback that scores, before this callback's own turn.
        """
        # "fid" means "fid/<extractor>", whatever the extractor is.
        name = next((n for n in scores if self.monitor in (n, n.partition("/")[0])), None)
        if name is None:
            return
        score = scores[name]
        sign = 1 if self.mode == "min" else -1
        if not math.isfinite(score):
            return
        if self.best_score is None or sign * score < sign * self.best_score:
            self.best_score, self.best_step = score, trainer.global_step
            trainer.save_checkpoint(self.folder(trainer) / "best.ckpt")


class CleanStop(Callback):
    """Ends a run after the iteration at hand, when a signal comes or the time is up; the checkpoint follows."""

    def __init__(self, max_seconds: float | None = None) -> None:
        """Sets the limit.

        Args:
            max_seconds: Seconds of this session's training, None for no limit.
        """
        self.max_seconds = max_seconds
        self.signal: int | None = None
        self.out_of_time = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over SIGINT and SIGTERM: Lightning would end in the middle of an iteration."""
        self._started = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: a notebook's kernel, say, handles signals itself
                return

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is not None:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.signal = number

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Asks the trainer to stop, all processes at the same iteration."""
        self.out_of_time = self.max_seconds is not None and time.monotonic() - self._started >= self.max_seconds
        stop = self.signal is not None or self.out_of_time
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back, before Lightning does the same with its own handlers."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the signals back when training breaks off, too."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
