"""Runs in several stages: `stages` in a config lists them, one command trains them in turn, each in its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.commands import command, quoted, short
from genlab.config.instantiate import targets
from genlab.config.stages import stage_configs
from genlab.errors import UserError
from genlab.journal import say
from genlab.runs import folder as runs
from genlab.runs.dry_run import describe
from genlab.runs.running import Result, build, train
from genlab.runs.sweeps import comparable, is_done


def describe_stages(config: dict[str, Any]) -> Result:
    """Describes each stage, on the untrained model of the stage before it."""
    before: dict[str, Any] | None = None
    results = []
    for name, stage in stage_configs(config):
        if before is not None:
            stage["model"] = {**stage["model"], "first_stage": before}
        before = stage["model"]
        print(f"# stage {name}")
        results.append(describe(build(stage)))
    return results[-1]


def train_stages(config: dict[str, Any], run_dir: Path) -> Result:
    """Trains the stages in turn in `run_dir/<name>`, each on the one before as its `first_stage`.

    Finished stages are skipped and an interrupted one is resumed, so this also resumes the run as a whole.
    """
    runs.write_config(run_dir, config)
    result: Result | None = None
    before: Path | None = None
    # The targets of the user's own config are trusted.
    own = [node["_target_"] for part in ("model", "stages") for _, node in targets(config[part])]
    for name, stage in stage_configs(config):
        folder = run_dir / name
        stage["allow_targets"] = [*config["allow_targets"], *own]
        if before is not None:
            stage["first_stage"] = str(before)
        result = _trained(stage, folder) or result
        before = folder
    if result is None:
        raise UserError(
            f"All stages in {short(run_dir)} are done. Lengthen one: run it alone with "
            f"resume={quoted(before or run_dir)}."
        )
    runs.point_latest(run_dir)
    return result


def train_first_stage(config: dict[str, Any], run_dir: Path) -> Path | None:
    """Trains the first stage that a model brings along, its `first_stage`, in `run_dir/first_stage`.

    It has the run's settings, and may bring one along itself. A finished one is taken as it is, an interrupted one is
    resumed.

    Returns:
        Its folder; None if the model brings none, or one was given by `first_stage=RUN`.

    Raises:
        UserError: If the folder holds a run, or the first stage of another one.
    """
    own = config["model"].get("first_stage")
    if not own or config.get("first_stage"):
        return None
    folder, stage = run_dir / runs.FIRST_STAGE, {**config, "model": own}
    runs.check_unused(run_dir)
    if runs.find_checkpoint(folder) and comparable(runs.read_config(folder)) != comparable(stage):
        raise UserError(f"{short(folder)} holds the first stage of another run. Choose another hydra.run.dir=...")
    try:
        _trained(stage, folder)
    except SystemExit:
        say(f"This was the first stage. Go on with the whole run: {command('train', resume=run_dir)}")
        raise
    return folder


def _trained(stage: dict[str, Any], folder: Path) -> Result | None:
    """Trains a stage in its folder, or goes on with it there; None if it is done."""
    checkpoint = runs.find_checkpoint(folder)
    if checkpoint is None:
        (folder / "config.yaml").unlink(missing_ok=True)  # of a start that broke off before its first checkpoint
        return train(stage, folder, first_stage=train_first_stage(stage, folder))
    return None if is_done(folder, stage) else train(runs.read_config(folder), folder, resume=checkpoint)
