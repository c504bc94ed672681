"""Hydra's callback by which a sweep's folder is known outside of Hydra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from genlab import launch


class SweepFolder(Callback):
    """Announces the folder of a sweep to its main process and its worker processes, see `genlab.runs.stopping`."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Before the first job."""
        launch.announce_sweep(Path(config.hydra.sweep.dir))
