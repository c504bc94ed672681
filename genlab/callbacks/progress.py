"""The progress bar."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress(Callback):
    """Shows iterations, images per second, losses and the latest scores; without a terminal in occasional lines."""

    def __init__(self, refresh_seconds: float = 0.2, lines_every_seconds: float = 15.0) -> None:
        """Sets the refresh intervals.

        Args:
            refresh_seconds: Seconds between updates of the bar.
            lines_every_seconds: Seconds between lines if output goes to a file.
        """
        self.refresh_seconds, self.lines_every_seconds = refresh_seconds, lines_every_seconds
        self.images_per_second = 0.0
        self._bar: Bar | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar on the first process."""
        self._first_step = trainer.global_step
        self._started = self._shown = time.monotonic()
        if not trainer.is_global_zero:
            return
        self._console = Console()
        if not self._console.is_terminal:
            self._console = Console(width=160)
        self._every = self.refresh_seconds if self._console.is_terminal else self.lines_every_seconds
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.description}"), console=self._console, auto_refresh=False)
            self._task: TaskID = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Updates the bar when due."""
        now = time.monotonic()
        if not trainer.is_global_zero or (now - self._shown < self._every and trainer.global_step < trainer.max_steps):
            return
        self._shown = now
        done = trainer.global_step - self._first_step
        per_step = trainer.datamodule.batch_size * pl_module.batches_per_step  # type: ignore[attr-defined]
        self.images_per_second = done * per_step / max(now - self._started, 1e-9)
        text = f"{self.images_per_second:,.0f} img/s  {self._values(trainer)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, description=text)
            self._bar.refresh()
        else:
            self._console.print(f"iteration {trainer.global_step}/{trainer.max_steps}  {text}", highlight=False)

    @staticmethod
    def _values(trainer: pl.Trainer) -> str:
        """Losses first, then scores, as last written."""
        shown = []
        for name, value in trainer.callback_metrics.items():
            phase, _, rest = name.partition("/")
            if phase == "train" and (rest.endswith("loss") or rest in ("kl", "gp", "m_global")):
                shown.append(f"{rest} {float(value):.3g}")
            elif phase == "val" and not rest.partition("/")[0].endswith("_std"):
                shown.append(f"[bold]{rest.partition('/')[0]} {float(value):.3g}[/]")
        return "  ".join(shown)

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
