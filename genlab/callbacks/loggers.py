"""Loggers of curves: TensorBoard, and `metrics.csv` for all other tools."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """TensorBoard's event files in the run folder, so that `tensorboard --logdir outputs` shows runs by name."""

    def __init__(self, run_dir: str, resume_step: int | None = None) -> None:
        """Opens `run_dir/tb`.

        Args:
            run_dir: The run folder.
            resume_step: Iteration that a resumed run starts from: later points of the interrupted run are hidden.
        """
        purge: dict[str, Any] = {} if resume_step is None else {"purge_step": resume_step + 1}
        super().__init__(save_dir=run_dir, name="tb", version="", default_hp_metric=False, **purge)


class CSVLog(Logger):
    """`metrics.csv` with one row `step,seconds,metric,value` per value, appended so that nothing is lost.

    `pandas.read_csv(path).pivot(index="step", columns="metric", values="value")` gives a table of curves.
    """

    FIELDS = ("step", "seconds", "metric", "value")

    def __init__(self, run_dir: str, resume_step: int | None = None) -> None:
        """Opens `run_dir/metrics.csv`.

        Args:
            run_dir: The run folder.
            resume_step: Iteration that a resumed run starts from: later rows of the interrupted run are dropped.
        """
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._offset = 0.0
        self._started = time.monotonic()
        self._resume_step = resume_step
        self._file: Any = None
        self._reopened = False

    @property
    def name(self) -> str:
        """Lightning's name for this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Unused: a run folder is one version."""
        return ""

    def _open(self) -> Any:
        rows: list[list[str]] = []
        if self._resume_step is not None and self.path.is_file():
            with self.path.open(newline="") as file:
                for row in list(csv.reader(file))[1:]:
                    if len(row) == len(self.FIELDS) and int(row[0]) <= self._resume_step:
                        rows.append(row)
            if not self._reopened:
                self._offset = max((float(row[1]) for row in rows), default=0.0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("w", newline="")
        csv.writer(file).writerows([self.FIELDS, *rows])
        return file

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends values at an iteration."""
        if self._file is None:
            self._file = self._open()
        seconds = round(self._offset + time.monotonic() - self._started, 2)
        csv.writer(self._file).writerows([step, seconds, name, f"{value:.8g}"] for name, value in metrics.items())
        self._file.flush()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `config.yaml` holds the hyperparameters."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._resume_step, self._reopened = 10**12, True  # a later write keeps all rows
