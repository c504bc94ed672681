"""Atomic checkpoints, and the clean stop of a run."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from genlab.errors import Interrupted, TrainingStopped
from genlab.files import free_mib, remove_temporaries, write_atomic
from genlab.models.base import GenerativeModel

log = logging.getLogger("genlab")
# Attributes of `Checkpoints` that its checkpoints hold.
REMEMBERED = ("score_name", "best_score", "best_value", "best_step", "last_value", "last_step", "idle")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name and renames them; reads them without executing code."""

    def __init__(self, random_states: bool = True) -> None:
        """Sets how random states are restored.

        Args:
            random_states: Whether to restore the random streams; else the run's seed restarts them.
        """
        super().__init__()
        self.random_states = random_states

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            TrainingStopped: If it cannot be written; an earlier file at `path` is then unchanged.
        """
        path = Path(path)
        try:
            write_atomic(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            raise TrainingStopped(
                f"The checkpoint {path} could not be written ({_reason(error)}); {free_mib(path.parent)} MiB are free "
                "there. The checkpoint before it is intact."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint of plain containers and tensors only."""
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        if not self.random_states:
            checkpoint["genlab"]["random"] = None
        return checkpoint


def _reason(error: Exception) -> str:
    """The reason of a failure on one line: the system's message, without torch's wrapper around it."""
    cause: BaseException = error
    while not isinstance(cause, OSError) and cause.__context__ is not None:
        cause = cause.__context__
    return (cause.strerror if isinstance(cause, OSError) else None) or str(error).partition("\n")[0][:200]


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` every n iterations and at the end, keeps a few older ones, and `best.ckpt` by a score.

    All are written at the end of an iteration, after every player's update, so that each can be resumed exactly.

    Attributes:
        best_score: Best monitored score, a mean of the last `smooth` validations; None before the first.
        best_value: The score of the validation at `best_step` alone.
        best_step: Iteration of `best.ckpt`.
        last_value: The score of the last validation alone.
        last_step: Its iteration.
        idle: Number of validations since the best one.
        score_name: Full name of the monitored score, such as "fid/inception".
    """

    def __init__(
        self,
        every_n_steps: int,
        keep: int,
        monitor: str | Sequence[str] | None,
        mode: str | Callable[[str], str] = "min",
        smooth: int = 1,
        early_stop: int | None = None,
    ) -> None:
        """Sets the schedule and the monitored score.

        Args:
            every_n_steps: Iterations between checkpoints.
            keep: Number of checkpoints to keep, the last one included.
            monitor: Name of the validation score that chooses `best.ckpt`; None for no such file. Of several names, the
                first that is among the scores is used.
            mode: The better direction of the score, "min" or "max", or a function from the score's name to it.
            smooth: Number of validations whose mean chooses `best.ckpt`; the first ones have fewer.
            early_stop: Number of validations without a better mean after which training ends; None for no end.
        """
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"checkpoint.every_n_steps and keep must be at least 1, got {every_n_steps} and {keep}.")
        self.every_n_steps, self.keep = every_n_steps, keep
        self._choices = (monitor,) if isinstance(monitor, str) else tuple(monitor or ())
        self.monitor = monitor if isinstance(monitor, str) else None  # of several names: set at the first scores
        self._mode = mode if callable(mode) else lambda _: mode
        self.smooth, self.early_stop = smooth, early_stop
        self.best_score: float | None = None
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.last_value: float | None = None
        self.last_step: int | None = None
        self.score_name: str | None = None
        self.idle = 0
        self._recent: list[float] = []  # scores of the last validations
        self._last_step: int | None = None  # of the existing `last.ckpt`, None if there is none or it is unreadable
        self.saved = False  # in this session
        self._warned = False

    @property
    def mode(self) -> str:
        """The better direction of the monitored score, "min" or "max"; "min" if there is none."""
        return self._mode(self.monitor) if self.monitor else "min"

    @staticmethod
    def folder(trainer: pl.Trainer) -> Path:
        """The checkpoint folder of a run."""
        return Path(trainer.default_root_dir) / "checkpoints"

    @property
    def exhausted(self) -> bool:
        """Whether `early_stop` validations have brought no better score."""
        return self.early_stop is not None and self.idle >= self.early_stop

    def state_dict(self) -> dict[str, Any]:
        """The best and the last scores so far, and their name."""
        kept = {name: getattr(self, name) for name in REMEMBERED}
        return {"monitor": self.monitor, **kept, "recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the scores, unless they are of another name: the two have no common scale."""
        name = state_dict.get("monitor")
        if name in self._choices:
            self.monitor = name
            for key in REMEMBERED:
                setattr(self, key, state_dict.get(key, getattr(self, key)))  # older checkpoints have the best alone
            self._recent = list(state_dict.get("recent", []))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the step of an earlier session's `last.ckpt`, which is then kept like any other checkpoint."""
        if self.exhausted:  # killed between its end and its scores
            trainer.should_stop = True
        last = self.folder(trainer) / "last.ckpt"
        if trainer.is_global_zero and last.is_file():
            remove_temporaries(last.parent)
            try:
                self._last_step = int(torch.load(last, mmap=True, map_location="cpu", weights_only=True)["global_step"])
            except Exception as error:  # any type, by the damage; the run then resumes from another one
                log.warning("%s cannot be read and will be replaced (%s).", last, _reason(error))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Saves when due: every n iterations, at the last one, and before a requested stop."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, model: Any) -> None:
        """Checks for NaN, writes `last.ckpt`, and deletes all but the newest `keep` checkpoints."""
        assert isinstance(model, GenerativeModel)
        model.check_finite()
        model.check_parameters()
        folder, step = self.folder(trainer), trainer.global_step
        last = folder / "last.ckpt"
        if self.keep > 1 and trainer.is_global_zero and self._last_step not in (None, step):
            _second_name(last, folder / f"step_{self._last_step:07d}.ckpt")
        trainer.save_checkpoint(last)
        self._last_step, self.saved = step, True
        if trainer.is_global_zero:
            # Oldest by modification time: after a rollback, newer checkpoints may have lower iterations.
            older = sorted(folder.glob("step_*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
            for path in older[: len(older) + 1 - self.keep]:
                path.unlink()

    def consider(self, trainer: pl.Trainer, scores: dict[str, float]) -> None:
        """Keeps this iteration's weights as `best.ckpt` if the monitored score, smoothed, is the best so far.

        After `early_stop` validations without a better one it ends training. The scoring callback calls it at the end
        of an iteration, before this callback's own hook.
        """
        # "fid" matches "fid/<extractor>" of any extractor.
        if self.monitor is None:
            there = {part for name in scores for part in (name, name.partition("/")[0])}
            self.monitor = next((choice for choice in self._choices if choice in there), None)
        name = next((n for n in scores if self.monitor in (n, n.partition("/")[0])), None)
        if name is None:
            self._warn(scores)
            return
        score, step = scores[name], trainer.global_step
        self.score_name, self.last_value, self.last_step = name, score, step
        sign = 1 if self.mode == "min" else -1
        self.idle += 1
        if math.isfinite(score):
            self._recent = [*self._recent, score][-self.smooth :]
            mean = sum(self._recent) / len(self._recent)
            if self.best_score is None or sign * mean < sign * self.best_score:
                self.best_score, self.best_value, self.best_step, self.idle = mean, score, step, 0
                trainer.save_checkpoint(self.folder(trainer) / "best.ckpt")
        if self.exhausted:
            trainer.should_stop = True

    def _warn(self, scores: dict[str, float]) -> None:
        """Says once that the monitored score is missing."""
        if self._warned or not scores or (self.monitor is None and self.early_stop is None):
            return
        self._warned = True
        asked = self.monitor or " or ".join(self._choices) or "null"
        lost = "best.ckpt" if self.early_stop is None else "best.ckpt and no early stop"
        log.warning("No %s: checkpoint.monitor=%s is not among the scores %s.", lost, asked, ", ".join(sorted(scores)))


def _second_name(path: Path, name: Path) -> None:
    """Gives a file a second name (a hard link), so that `path` exists at every moment while it is replaced.

    On file systems without hard links the file is renamed: only the second name exists until the next write.
    """
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        path.replace(name)


# Ctrl-C, the end of a job, and the signals that clusters send some minutes before they withdraw a job's machines.
STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, n)]


class CleanStop(Callback):
    """Ends a run after the current iteration, on a signal or a time limit; a checkpoint is then written.

    Attributes:
        signal: Number of the signal that ends the run, the same on all processes.
        cpu_seconds: CPU time of this process spent on the current weights, over all sessions of the run.
        before: Signal handlers before training.
    """

    def __init__(self, max_seconds: float | None = None, max_cpu_seconds: float | None = None) -> None:
        """Sets the limits.

        Args:
            max_seconds: Seconds of this session's training, None for no limit.
            max_cpu_seconds: Seconds of CPU time (all threads of a process together) of the whole run, None for no
                limit. Training after the checkpoint that a run resumes from does not count, as it is lost.
        """
        self.max_seconds, self.max_cpu_seconds = max_seconds, max_cpu_seconds
        self.cpu_seconds = 0.0
        self.signal: int | None = None
        self.out_of_time = self.out_of_cpu_time = False
        self._cpu_before = 0.0  # of earlier sessions
        self._cpu_started: float | None = None  # on this process's clock
        self.before: dict[int, Any] = {}
        self._received: int | None = None  # by this process
        self._held = False

    def state_dict(self) -> dict[str, Any]:
        """The CPU time so far, of runs with a limit."""
        return {} if self.max_cpu_seconds is None else {"cpu_seconds": self._cpu_time()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the CPU time."""
        self.cpu_seconds = self._cpu_before = float(state_dict["cpu_seconds"])

    def _cpu_time(self) -> float:
        started = time.process_time() if self._cpu_started is None else self._cpu_started
        return self._cpu_before + time.process_time() - started

    def _share_of_cpu_time(self, trainer: pl.Trainer) -> float:
        """The spent share of the run's CPU time limit, in [0, 1], which drives the model's schedules."""
        if self.max_cpu_seconds is None:
            return 0.0
        self.cpu_seconds = self._cpu_time()
        share = min(1.0, self.cpu_seconds / self.max_cpu_seconds)
        model = trainer.lightning_module
        if isinstance(model, GenerativeModel):
            model.time_share = share
        return share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Installs signal handlers: Lightning's would end or save in the middle of an iteration."""
        self._started, self._cpu_started = time.monotonic(), time.process_time()
        self._share_of_cpu_time(trainer)
        for number in STOPS:
            try:
                self.before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread, as in a notebook, whose kernel handles signals itself
                return
        self._held = True

    def _note(self, number: int, frame: Any) -> None:
        # A second Ctrl-C stops at once, not by KeyboardInterrupt, to which Lightning responds with exit(1). A second,
        # different signal does not: torchrun sends SIGTERM on a Ctrl-C that its processes have received as well.
        if number == self._received and number in (signal.SIGINT, signal.SIGTERM):
            raise Interrupted(number)
        self._received = self._received or number

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Asks the trainer to stop, all processes at the same iteration and for the same reason."""
        self.out_of_time = self.max_seconds is not None and time.monotonic() - self._started >= self.max_seconds
        self.out_of_cpu_time = self._share_of_cpu_time(trainer) >= 1
        self._agree(trainer)
        if self.signal is not None or self.out_of_time or self.out_of_cpu_time:
            trainer.should_stop = True

    def _agree(self, trainer: pl.Trainer) -> None:
        """Shares signals and time limits, which may have reached one process alone, with all processes."""
        self.signal = self._received
        if trainer.world_size > 1:
            own = [self.signal or 0, int(self.out_of_time), int(self.out_of_cpu_time)]
            asked = torch.tensor(own, device=trainer.strategy.root_device)
            number, *late = trainer.strategy.reduce(asked, reduce_op="max").tolist()
            self.signal, (self.out_of_time, self.out_of_cpu_time) = number or None, map(bool, late)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the earlier signal handlers, before Lightning does so with its own."""
        self._agree(trainer)  # a signal may come after the last iteration: then nothing is scored
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores the earlier signal handlers after an error."""
        self._restore()

    def _restore(self) -> None:
        held, self._held = self._held, False
        for number, handler in self.before.items() if held else ():
            signal.signal(number, handler or signal.SIG_DFL)
