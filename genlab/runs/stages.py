"""Runs in several stages: `stages` in a config lists them, one command trains them in turn, each in its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.commands import quoted, short
from genlab.config.instantiate import targets
from genlab.config.stages import stage_configs
from genlab.errors import UserError
from genlab.runs import folder as runs
from genlab.runs.dry_run import describe
from genlab.runs.running import Result, build, train
from genlab.runs.sweeps import is_done


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
        checkpoint = runs.find_checkpoint(folder)
        if checkpoint is not None:
            if not is_done(folder, stage):
                result = train(runs.read_config(folder), folder, resume=checkpoint)
        else:
            (folder / "config.yaml").unlink(missing_ok=True)  # of a start that broke off before its first checkpoint
            result = train(stage, folder)
        before = folder
    if result is None:
        raise UserError(
            f"All stages in {short(run_dir)} are done. Lengthen one: run it alone with "
            f"resume={quoted(before or run_dir)}."
        )
    runs.point_latest(run_dir)
    return result
