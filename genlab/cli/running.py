"""Training a resolved config: checks, building, fitting, and the report at the end."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli import preflight, runs
from genlab.cli.instantiate import instantiate
from genlab.errors import TrainingStopped, UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from genlab.data.module import ArrayData
    from genlab.models.base import GenerativeModel

log = logging.getLogger("genlab")
TINY_SAMPLE = 256  # numbers in a sample


@dataclass
class Parts:
    """What a config describes, built: all that a run, a benchmark or a test needs."""

    config: dict[str, Any]
    data: ArrayData
    model: GenerativeModel
    judge: Any
    callbacks: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What a finished run leaves in memory.

    Attributes:
        model: The trained model.
        scores: Test scores by name, as in `run.json`.
        monitored: The monitored score on validation data at its best, None where nothing is monitored.
    """

    model: GenerativeModel
    scores: dict[str, float]
    monitored: float | None


def build(config: dict[str, Any]) -> Parts:
    """Checks a resolved config and builds its parts; no data are read.

    Args:
        config: Plain containers, as `genlab.cli.app.compose` and `runs.read_config` give them.

    Raises:
        UserError: If parts do not fit each other or take no such arguments.
    """
    _import_torchvision()
    preflight.check(config)
    import pytorch_lightning as pl

    from genlab.cli.stages import freeze_first_stage
    from genlab.models.base import GenerativeModel, Settings

    with _mistakes_named(config):
        data: ArrayData = instantiate(config["data"])
        pl.seed_everything(config["seed"], verbose=False)  # the same first weights on every process
        model = instantiate(config["model"])
    if not isinstance(model, GenerativeModel):
        raise UserError(f"model._target_ must name a genlab model, got {config['model']['_target_']}.")
    model.spec, model.run_config = data.spec, config
    freeze_first_stage(model)
    model.settings = Settings(
        seed=config["seed"],
        clip=config["optim"]["clip"],
        ema_decay=config["ema"]["decay"],
        log_every_n_steps=config["trainer"]["log_every_n_steps"],
    )
    data.batches_per_step = model.batches_per_step
    judge = instantiate(config["metrics"]) if config.get("metrics") else None
    callbacks = {name: instantiate(c) for name, c in (config.get("callbacks") or {}).items() if c}
    return Parts(config, data, model, judge, callbacks)


def make_trainer(parts: Parts, run_dir: Path, resume_step: int | None = None, **overrides: Any) -> pl.Trainer:
    """Lightning's Trainer for these parts, with genlab's checkpoints, loggers and clean stop.

    Args:
        parts: From `build`.
        run_dir: The run folder.
        resume_step: Iteration that the checkpoint to resume from was written at.
        **overrides: Arguments of the Trainer that win over the config's.
    """
    import pytorch_lightning as pl

    from genlab.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, CleanStop

    config = parts.config
    _quiet()
    for callback in parts.callbacks.values():
        if hasattr(callback, "judge"):
            callback.judge = parts.judge
    monitor = config["checkpoint"]["monitor"] or getattr(parts.judge, "monitor", None)
    mode = parts.judge.mode(monitor) if parts.judge is not None and monitor else "min"
    checkpoints = Checkpoints(
        config["checkpoint"]["every_n_steps"],
        config["checkpoint"]["keep"],
        monitor,
        mode,
    )
    loggers = [
        instantiate(c, run_dir=str(run_dir), resume_step=resume_step) for c in (config.get("logger") or {}).values()
    ]
    asked = {k: v for k, v in config["trainer"].items() if k not in ("strategy", "log_every_n_steps")}
    arguments: dict[str, Any] = {
        **asked,
        "strategy": _strategy(config["trainer"]),
        "plugins": [AtomicCheckpointIO()],
        "max_epochs": -1,  # the stream of batches has no end: `max_steps` alone ends training
        "logger": loggers,
        "callbacks": [CleanStop(_seconds(config["max_time"])), *parts.callbacks.values(), checkpoints],
        "default_root_dir": str(run_dir),
        "enable_progress_bar": False,  # ours is a callback
        "enable_model_summary": False,
        "enable_checkpointing": True,
        "use_distributed_sampler": False,  # streams take their process's share themselves
        "limit_val_batches": 0,  # scores are taken by a callback, on its own clock
        **overrides,
    }
    try:
        return pl.Trainer(**arguments)
    except (pl.utilities.exceptions.MisconfigurationException, RuntimeError) as error:
        raise UserError(f"trainer={config['choices'].get('trainer')} cannot run here: {error}") from error


def train(config: dict[str, Any], run_dir: Path, resume: Path | None = None, one_device: bool = False) -> Result:
    """Trains a resolved config in a run folder.

    Args:
        config: Plain containers.
        run_dir: Where everything goes.
        resume: A checkpoint of the same run to go on from.
        one_device: Whether this is one of several jobs of a sweep, which must not start processes of its own.

    Raises:
        UserError: If something the user asked for cannot be done.
        TrainingStopped: If training broke off; the last good checkpoint is whole.
        SystemExit: With 128 + n when signal n ended the run, after its checkpoint.
    """
    import torch

    from genlab.cli.stages import attach_first_stage, load_first_stage, train_stages

    if one_device and config["trainer"]["devices"] not in (1, "1"):
        raise UserError("A sweep (-m) trains each run on one device. Try trainer=auto, or start the runs one by one.")
    torch.set_num_threads(config["threads"] or _default_threads(config))
    fresh = resume is None and not config.get("stages")
    if fresh and _first_process() and (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir} already holds a run. Go on with it: resume={run_dir}, or choose hydra.run.dir=...")
    if config.get("stages"):
        return train_stages(config, run_dir)
    if resume is None:
        config = attach_first_stage(config)
    parts = build(config)
    checkpoint = None if resume is None else runs.read_checkpoint(resume)
    if config["init_from"] and resume is None:
        _, source = runs.find_run(config["init_from"])
        runs.load_weights(parts.model, runs.read_checkpoint(source), source)
    if config.get("first_stage") and resume is None:
        load_first_stage(parts.model, config["first_stage"], tuple(config["allow_targets"]))
    if config["dry_run"]:
        from genlab.cli.dry_run import describe

        return describe(parts)

    resume_step = None if checkpoint is None else int(checkpoint["global_step"])
    if checkpoint is not None:
        runs.load_weights(parts.model, checkpoint, resume or Path())  # says in a sentence what does not fit
    trainer = make_trainer(parts, run_dir, resume_step)
    if resume_step is not None and resume_step >= trainer.max_steps:
        raise UserError(
            f"{run_dir} has already been trained for its {resume_step} iterations. "
            f"To go on further: trainer.max_steps={2 * resume_step}"
        )
    main_process = trainer.is_global_zero
    if main_process:
        log.info(_headline(parts, run_dir, resume_step))
        with _mistakes_named(config):  # before anything is written: files may be missing or broken
            parts.data.prepare_data()
            parts.data.setup()
            if parts.judge is not None:
                parts.judge.prepare(parts.data, trainer.strategy.root_device)
    record = runs.RunRecord(run_dir, config) if main_process else None
    if record:
        run_dir.mkdir(parents=True, exist_ok=True)
        runs.write_config(run_dir, config)
        if not one_device:
            runs.point_latest(run_dir)
        record.write(parameters={name: sum(p.numel() for p in ps) for name, ps in parts.model.players.items()})
    status = "failed"
    try:
        trainer.fit(parts.model, datamodule=parts.data, ckpt_path=resume, weights_only=True)
        parts.model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU, and it is still to be judged
        status = "interrupted" if trainer.global_step < trainer.max_steps else "done"
        return _finish(parts, trainer, run_dir, record)
    except KeyboardInterrupt:
        status = "killed"
        raise
    except TrainingStopped as error:
        kept = runs.find_checkpoint(run_dir)
        tail = f" The last good checkpoint is {kept}." if kept else " No checkpoint had been written yet."
        raise TrainingStopped(f"Training stopped: {error}{tail}") from error
    finally:
        if record:
            record.write(status=status)


def _finish(parts: Parts, trainer: pl.Trainer, run_dir: Path, record: runs.RunRecord | None) -> Result:
    """Scores the test split, draws the pictures, prints the summary; or says how to resume what was interrupted."""
    from genlab.callbacks.checkpoints import Checkpoints, CleanStop
    from genlab.cli import summary

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    stop = next(c for c in callbacks if isinstance(c, CleanStop))
    checkpoints = next(c for c in callbacks if isinstance(c, Checkpoints))
    progress = next((c for c in callbacks if hasattr(c, "images_per_second")), None)
    if trainer.global_step < trainer.max_steps:
        if record:
            print(f"Stopped after iteration {trainer.global_step}. Go on with: python train.py resume={run_dir}")
        if stop.signal is not None:
            if record:
                record.write(status="interrupted")
            raise SystemExit(128 + stop.signal)
    scores: dict[str, float] = {}
    if trainer.is_global_zero:
        if parts.judge is not None and stop.signal is None:
            started = time.monotonic()
            scores = parts.judge.final(parts.model, parts.data)
            log.debug("test scores took %.1f s", time.monotonic() - started)
            for logger in trainer.loggers:
                logger.log_metrics(scores, step=trainer.global_step)
        summary.write_pictures(parts, run_dir)
        assert record is not None
        record.write(
            scores=scores,
            cards=getattr(parts.judge, "cards", {}),
            iterations=trainer.global_step,
            best={"monitor": checkpoints.monitor, "score": checkpoints.best_score, "iteration": checkpoints.best_step},
            images_per_second=round(getattr(progress, "images_per_second", 0.0), 1),
        )
        for logger in trainer.loggers:
            logger.finalize("success")
        summary.print_summary(parts, run_dir, record.content, scores)
    return Result(parts.model, scores, checkpoints.best_score)


@contextmanager
def _mistakes_named(config: dict[str, Any]) -> Iterator[None]:
    """Adds to a mistake found while building which composition it was found in."""
    try:
        yield
    except (UserError, FileNotFoundError, PermissionError) as error:
        choices = config["choices"]
        composed = " ".join(f"{k}={choices[k]}" for k in ("model", "data", "network") if k in choices)
        raise UserError(f"{str(error).rstrip()} (in: {composed})") from error


def _default_threads(config: dict[str, Any]) -> int:
    """All cores, but one for tiny samples, where threads cost more than they bring, most of all beside other work."""
    import torch

    size = math.prod(config["data"].get("shape") or [10**6])
    return 1 if size <= TINY_SAMPLE else torch.get_num_threads()


def _strategy(trainer: dict[str, Any]) -> Any:
    """Lightning's strategy; two players in one module need `find_unused_parameters` in data-parallel training."""
    many = trainer["devices"] not in (1, "1") or trainer["num_nodes"] > 1
    if not many or trainer["strategy"] not in ("auto", "ddp"):
        return trainer["strategy"] if trainer["strategy"] != "ddp" else "auto"
    return "ddp_find_unused_parameters_true"


def _first_process() -> bool:
    """Whether this is the process that writes, before any process group exists (the others find its files there)."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _seconds(max_time: str | None) -> float | None:
    """Seconds of a "HH:MM:SS" or "DD:HH:MM:SS".

    Raises:
        UserError: If it is neither.
    """
    if max_time is None:
        return None
    parts = str(max_time).split(":")
    if not 3 <= len(parts) <= 4 or not all(p.isdigit() for p in parts):
        raise UserError(f"max_time is written HH:MM:SS or DD:HH:MM:SS, got {max_time!r}. Try max_time=00:30:00.")
    weights = (1, 60, 3600, 86400)
    return float(sum(int(p) * w for p, w in zip(reversed(parts), weights, strict=False)))


def _headline(parts: Parts, run_dir: Path, resume_step: int | None) -> str:
    choices = parts.config["choices"]
    players = ", ".join(f"{name} {sum(p.numel() for p in ps) / 1e6:.2f}M" for name, ps in parts.model.players.items())
    start = "" if resume_step is None else f" from iteration {resume_step}"
    return f"{choices['model']} on {choices['data']}{start} ({players} parameters), in {run_dir}"


def _quiet() -> None:
    """Silences what Lightning says about things that genlab does on purpose."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "Using ModelCheckpoint with manual optimization",
        ".*configure_optimizers` returned `None`.*",
        ".*does not have many workers.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*You have overridden `transfer_batch_to_device`.*",
        ".*train_dataloader.*IterableDataset.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _import_torchvision() -> None:
    """Says in a sentence what a CPU-only torch beside the registry's torchvision fails with.

    Raises:
        UserError: If torch and torchvision do not belong together.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise UserError(
            "torch and torchvision do not belong together: a CPU-only torch was installed beside torchvision's "
            "standard build. Install both alike: pip install --force-reinstall torch torchvision"
        ) from error
