"""Starts a resolved config: a training, a training in stages, or a dry run of either."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from genlab.journal import journal
from genlab.runs import folder, running
from genlab.runs.dry_run import describe
from genlab.runs.running import Result, is_first_process, ready, session
from genlab.runs.stages import describe_stages, train_first_stage, train_stages


def train(config: dict[str, Any], run_dir: Path, resume: Path | None = None, one_device: bool = False) -> Result:
    """Trains a resolved config in a run folder, or describes it (`dry_run`).

    Args:
        config: Plain containers.
        run_dir: The run folder.
        resume: A checkpoint of the same run to resume from.
        one_device: Whether this is one of several jobs of a sweep, which must not start processes of its own.

    Raises:
        UserError: If the config cannot be run.
        TrainingStopped: If training broke off; the last good checkpoint is intact.
        SystemExit: With 128 + n when signal n ended the run, after its checkpoint.
    """
    if not config.get("stages") and not config["dry_run"]:
        first = None if resume else train_first_stage(config, run_dir)
        return running.train(config, run_dir, resume, one_device, first)
    with session(config, run_dir, one_device):
        if config.get("stages"):
            if config["dry_run"]:
                return describe_stages(config)
            with journal(run_dir) if is_first_process() else nullcontext():
                return train_stages(config, run_dir)
        if resume is None and is_first_process():
            folder.check_unused(run_dir)
        return describe(ready(config, resume)[0])
