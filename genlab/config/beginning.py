"""Hydra's callback at the beginning of a run or a sweep: its command and its folder are known outside of Hydra."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from genlab import launch
from genlab.config.arguments import COMMAND_FILE
from genlab.files import write_text


class Beginning(Callback):
    """Saves the command of a run, and announces the folder of a sweep to its worker processes."""

    def on_run_start(self, config: Any, **kwargs: Any) -> None:
        """Makes the run folder with the command in it; Hydra's own record, made later, takes a tenth of a second."""
        if config.hydra.output_subdir is None:  # not the first process of the run
            return
        sources = OmegaConf.to_container(config.hydra.runtime.config_sources)
        hydra = {
            "overrides": OmegaConf.to_container(config.hydra.overrides),
            "runtime": {"config_sources": sources},
        }
        run_dir = Path(config.hydra.run.dir)
        made = run_dir if run_dir.exists() else run_dir.with_name(f".{run_dir.name}.tmp")
        with suppress(OSError):  # the run itself reports a folder that cannot be written to
            write_text(made / COMMAND_FILE, yaml.safe_dump({"hydra": hydra}))
            made.rename(run_dir)

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Before the first job; see `genlab.runs.stopping`."""
        launch.announce_sweep(Path(config.hydra.sweep.dir))
