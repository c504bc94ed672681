"""The progress bar."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from genlab.journal import note

WIDE = 110  # columns of a terminal from which on there is room for a long bar and the elapsed time


class _Line(ProgressColumn):
    """Iteration and time left, then the task's text; on one line, cut at its end."""

    def __init__(self, wide: bool) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self.max_refresh, self.wide = None, wide

    def render(self, task: Task) -> Text:
        left = "-:--:--" if task.time_remaining is None else str(timedelta(seconds=int(task.time_remaining)))
        clock = f"{timedelta(seconds=int(task.elapsed or 0))}, " if self.wide else ""
        line = Text(f"{task.completed:.0f}/{task.total:.0f}  {clock}{left} left  ", no_wrap=True, overflow="ellipsis")
        return line.append_text(Text.from_markup(task.description))


class Progress(Callback):
    """Shows iterations, time left, images per second, losses and the latest scores.

    On a terminal it is a bar; elsewhere there are occasional lines. `train.log` gets a line every n iterations.
    """

    def __init__(
        self, refresh_seconds: float = 0.2, lines_every_seconds: float = 15.0, log_every_n_steps: int = 100
    ) -> None:
        """Sets the refresh intervals.

        Args:
            refresh_seconds: Seconds between updates of the bar.
            lines_every_seconds: Seconds between lines if output goes to a file.
            log_every_n_steps: Iterations between lines of `train.log`.

        Raises:
            ValueError: If `log_every_n_steps` is below 1.
        """
        if log_every_n_steps < 1:
            raise ValueError(f"callbacks.progress.log_every_n_steps must be at least 1, got {log_every_n_steps}.")
        self.refresh_seconds, self.lines_every_seconds = refresh_seconds, lines_every_seconds
        self.log_every_n_steps = log_every_n_steps
        self.images_per_second = 0.0
        self._bar: Bar | None = None
        self._handlers: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar on the first process."""
        self._first_step = trainer.global_step
        self._started = self._shown = time.monotonic()
        if not trainer.is_global_zero:
            return
        self._console = Console()
        self._every = self.refresh_seconds if self._console.is_terminal else self.lines_every_seconds
        if self._console.is_terminal:
            wide = self._console.width >= WIDE
            self._bar = Bar(BarColumn(24 if wide else 8), _Line(wide), console=self._console, auto_refresh=False)
            self._task: TaskID = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            before = sys.stdout
            self._bar.start()
            # Hydra's handler keeps the standard output that it started with; rich's prints above the bar.
            self._handlers = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is before]
            self._move(sys.stdout)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Updates the bar and the journal when due."""
        if not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        last = step >= trainer.max_steps
        due, noted = now - self._shown >= self._every or last, step % self.log_every_n_steps == 0 or last
        if not (due or noted):
            return
        per_step = trainer.datamodule.batch_size * pl_module.batches_per_step  # type: ignore[attr-defined]
        self.images_per_second = (step - self._first_step) * per_step / max(now - self._started, 1e-9)
        text = f"{self.images_per_second:,.0f} img/s  {_values(trainer)}"
        line = f"iteration {step}/{trainer.max_steps}  {Text.from_markup(text).plain}"
        if noted:
            note(line)
        if not due:
            return
        self._shown = now
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            self._bar.refresh()
        else:
            print(line, flush=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the bar, which restores the terminal."""
        self._close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._move(sys.stdout)

    def _move(self, stream: Any) -> None:
        """Makes the log lines of the terminal go to a stream."""
        for handler in self._handlers:
            handler.setStream(stream)


def _values(trainer: pl.Trainer) -> str:
    """Losses first, then scores, as last written; scores in bold."""
    shown = []
    for name, value in trainer.callback_metrics.items():
        phase, _, rest = name.partition("/")
        if phase == "train" and (rest.endswith("loss") or rest in ("kl", "gp", "m_global")):
            shown.append(f"{rest} {float(value):.3g}")
        elif phase == "val" and not rest.partition("/")[0].endswith("_std"):
            shown.append(f"[bold]{rest.partition('/')[0]} {float(value):.3g}[/]")
    return "  ".join(shown)
