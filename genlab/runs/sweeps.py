"""Resuming of sweeps, and of runs that were stopped in their set-up: the command that made them, each job's state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from genlab import commands
from genlab.commands import quoted, short
from genlab.config.arguments import COMMAND_FILE
from genlab.config.stages import stage_configs
from genlab.errors import UserError
from genlab.runs import folder as runs

# Keys that may change when a run is resumed: lengths and places.
RESUMABLE = (
    "trainer.max_steps",
    "max_time",
    "max_cpu_time",
    "threads",
    "data.root",
    "checkpoint.every_n_steps",
    "checkpoint.keep",
    "checkpoint.early_stop",
    "dry_run",
    "trainer.accelerator",
    "trainer.log_every_n_steps",
)
SWEEP_FILE = "multirun.yaml"  # Hydra's own, written before the first job starts


@dataclass(frozen=True)
class Earlier:
    """The state in which an earlier start left a job.

    Attributes:
        done: Whether nothing is left to train.
        checkpoint: Checkpoint to resume from; None for a run in stages, which finds its own.
        score: Monitored score; None if there is none yet.
    """

    done: bool
    checkpoint: Path | None
    score: float | None


def is_sweep(path: str) -> bool:
    """Whether this is the folder of a sweep."""
    return (Path(path) / SWEEP_FILE).is_file()


def command(folder: str, arguments: Sequence[str]) -> list[str]:
    """The arguments that made a sweep, with its folder as the target, so that each job is resumed.

    Args:
        folder: Folder of the sweep.
        arguments: Further arguments: lengths and places, and keys of Hydra such as `hydra.launcher.n_jobs=4`.

    Raises:
        UserError: If there are other arguments, or the sweep is a search, whose later jobs depend on earlier scores.
    """
    hydra = _hydra_of(Path(folder) / SWEEP_FILE)
    if hydra is None:
        raise UserError(_unknown(folder, "hydra.sweep.dir"))
    if not str(hydra["sweeper"]["_target_"]).endswith(".BasicSweeper"):
        raise UserError(
            f"{folder} is a search, whose later trials depend on the scores of the earlier ones. To continue it, "
            "repeat its command with hydra.sweeper.storage=sqlite:///study.db hydra.sweeper.study_name=NAME."
        )
    typed = [a for a in arguments if a not in ("-m", "--multirun")]
    _check_resumable(typed, "sweep keeps its own jobs")
    kept = [a for a in hydra["overrides"]["hydra"] if not a.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    place = f"hydra.sweep.dir={Path(folder).absolute()}"
    return ["-m", *_own_configs(hydra), *hydra["overrides"]["task"], *kept, *typed, place]


def is_set_up(path: str) -> bool:
    """Whether this is the folder of a run that was stopped in its set-up, before its config was written."""
    folder = Path(path)
    begun = (folder / COMMAND_FILE).parent.is_dir() or (folder / "train.log").is_file()
    return begun and not (folder / "config.yaml").is_file() and runs.find_checkpoint(folder) is None


def set_up_command(folder: str, arguments: Sequence[str]) -> list[str]:
    """The arguments that started a run which was stopped in its set-up, with its folder as the target.

    Args:
        folder: Folder of the run, or of one job of a sweep.
        arguments: Further arguments: lengths and places, and keys of Hydra.

    Raises:
        UserError: If there are other arguments, or the run was stopped before its command was saved.
    """
    _check_resumable(arguments, "run keeps its own config")
    file = Path(folder) / COMMAND_FILE
    hydra = _hydra_of(file) or _hydra_of(file.with_name("hydra.yaml"))  # a job of a sweep has Hydra's record only
    if hydra is None:
        raise UserError(_unknown(folder, "hydra.run.dir"))
    others = ("hydra.mode=", "hydra.run.dir=", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
    kept = [a for a in hydra["overrides"]["hydra"] if not a.startswith(others)]
    placed = [*arguments, "hydra.mode=RUN", f"hydra.run.dir={folder}"]
    return [*_own_configs(hydra), *hydra["overrides"]["task"], *kept, *placed]


def _hydra_of(path: Path) -> dict[str, Any] | None:
    """Hydra's own config in a file; None if the file is missing or cut off (Hydra writes its own in place)."""
    try:
        hydra = yaml.safe_load(path.read_text())["hydra"]
        complete = {"task", "hydra"} <= hydra["overrides"].keys() and "config_sources" in hydra["runtime"]
        return hydra if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _own_configs(hydra: dict[str, Any]) -> list[str]:
    """The folders of configs that were given on the command line, as arguments."""
    sources = hydra["runtime"]["config_sources"]
    return [a for s in sources if s["provider"] == "command-line" for a in ("--config-dir", s["path"])]


def _unknown(folder: str, key: str) -> str:
    return f"{folder} was stopped before its command was saved. Give the command again, with {key}={folder}"


def _check_resumable(arguments: Sequence[str], reason: str) -> None:
    for argument in arguments:
        key = argument.partition("=")[0]
        if key not in RESUMABLE and not key.startswith(("hydra.", "hydra/")):
            raise UserError(
                f"A resumed {reason}, so {argument!r} cannot be changed; it takes "
                f"{', '.join(RESUMABLE)}, and keys of hydra."
            )


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that identifies a run: without lengths, places and the config of a first stage."""
    kept = copy.deepcopy(config)
    for key in RESUMABLE:
        *path, last = key.split(".")
        node: Any = kept
        for part in path:
            node = (node or {}).get(part)
        (node or {}).pop(last, None)
    if kept.get("first_stage") and isinstance(kept.get("model"), dict):
        kept["model"].pop("first_stage", None)  # put there when the run started, see `stages.attach_first_stage`
    return yaml.safe_load(yaml.safe_dump(kept))


def with_lengths(saved: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """A run's own config with the lengths and places of a newly composed one."""
    config = copy.deepcopy(saved)
    for key in RESUMABLE:
        *path, last = key.split(".")
        node, source = config, asked
        for part in path:
            node, source = node[part], source[part]
        if last in source:
            node[last] = source[last]
    return config


def earlier(run_dir: Path, config: dict[str, Any]) -> Earlier | None:
    """The state of a job's folder after an earlier start, None if there is nothing to resume.

    Args:
        run_dir: Folder of the job.
        config: Its newly composed config, resolved.

    Raises:
        UserError: If the folder holds a run of another composition.
    """
    if not (run_dir / "config.yaml").is_file():
        return None
    if comparable(runs.read_config(run_dir)) != comparable(config):
        raise UserError(
            f"{short(run_dir)} holds a run of another composition. Go on with that one alone: "
            f"resume={quoted(run_dir)}, or sweep into "
            "another folder: hydra.sweep.dir=..."
        )
    if config.get("stages"):
        done = all(is_done(run_dir / name, c) for name, c in stage_configs(config))
        return Earlier(done, None, None)
    checkpoint, record = runs.find_checkpoint(run_dir), runs.record_of(run_dir)
    if checkpoint is None:
        return None
    done = is_done(run_dir, config)
    return Earlier(done, checkpoint, (record.get("best") or {}).get("score"))


def is_done(run_dir: Path, config: dict[str, Any]) -> bool:
    """Whether a run has used up its iterations or its CPU time or stopped early, by `run.json` or its checkpoint.

    A run that has used up its CPU time but has no scores is not done: it trains one more iteration and is then scored.
    """
    record, steps, seconds = runs.record_of(run_dir), config["trainer"]["max_steps"], config.get("max_cpu_time")
    if (record.get("sessions") or [{}])[-1].get("status") == "done":
        in_time = seconds is not None and float(record.get("cpu_seconds") or 0) >= seconds
        patience, idle = config["checkpoint"].get("early_stop"), (record.get("best") or {}).get("idle", 0)
        if in_time or (patience is not None and idle >= patience) or int(record.get("iterations") or 0) >= steps:
            return True
    checkpoint = runs.find_checkpoint(run_dir)
    if checkpoint is None or int(runs.read_checkpoint(checkpoint)["global_step"]) < steps:
        return False
    print(f"{short(run_dir)} is trained and not scored: {commands.command('evaluate', run=run_dir)}")
    return True
