"""Training a resolved config: checks, building, fitting, and the report at the end."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.commands import command, short
from genlab.config import checks, numbers, speed
from genlab.config.instantiate import build_data, build_model, instantiate, targets
from genlab.errors import Interrupted, NotFinite, TrainingStopped, UserError
from genlab.files import FolderLock, free_mib, remove_temporaries
from genlab.journal import journal, note, say
from genlab.reports import report
from genlab.runs import folder, processes
from genlab.runs.stopping import interrupts, set_up

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from genlab.callbacks.checkpoints import Checkpoints
    from genlab.data.module import ArrayData
    from genlab.models.base import GenerativeModel

log = logging.getLogger("genlab")
ALWAYS = {  # arguments of every Trainer
    "max_epochs": -1,  # the stream of batches has no end: `max_steps` alone ends training
    "enable_progress_bar": False,  # genlab's is a callback
    "enable_model_summary": False,
    "enable_checkpointing": True,
    "use_distributed_sampler": False,  # the streams give each process its share
    "limit_val_batches": 0,  # a callback computes the scores, at its own interval
}
TINY_SAMPLE = 256  # values in a sample
HEALTH = {"on_nan": "stop", "max_rollbacks": 3}  # for configs that are older than these keys


@dataclass
class Parts:
    """The built parts of a config, for runs, benchmarks and tests."""

    config: dict[str, Any]
    data: ArrayData
    model: GenerativeModel
    judge: Any
    callbacks: dict[str, Any] = field(default_factory=dict)
    precision: str = "32-true"
    rollbacks: int = 0


@dataclass
class Result:
    """Result of a finished run.

    Attributes:
        model: The trained model.
        scores: Test scores by name, as in `run.json`.
        monitored: Best monitored score on validation data; None if nothing is monitored.
    """

    model: GenerativeModel
    scores: dict[str, float]
    monitored: float | None


def build(config: dict[str, Any], rollbacks: int = 0) -> Parts:
    """Checks a resolved config and builds its parts; no data are read.

    Args:
        config: Plain containers, as `genlab.config.composition.compose` and `runs.read_config` give them.
        rollbacks: Number of rollbacks of the run; each changes the seeds.

    Raises:
        UserError: If parts do not fit each other, or an argument is unknown.
    """
    _import_torchvision()
    checks.check(config)
    import pytorch_lightning as pl

    from genlab.callbacks.health import rollback_seed
    from genlab.engine.settings import Settings, Tricks
    from genlab.runs.first_stage import freeze_first_stage

    seed, data_config = rollback_seed(config["seed"], rollbacks), config["data"]
    if rollbacks and "seed" in data_config:
        data_config = {**data_config, "seed": rollback_seed(data_config["seed"], rollbacks)}
    with _mistakes_named(config):
        data = build_data({**config, "data": data_config})
        pl.seed_everything(seed, verbose=False)  # the same initial weights on every process
        model = build_model(config["model"], config.get("scheduler"))
    checks.check_columns(model, data.column_names, config["choices"])
    model.spec, model.run_config = data.spec, config
    freeze_first_stage(model)
    checks.warn_of_unbounded_critic(model, config["choices"])
    checks.check_accumulation(model, config)
    checks.check_batch_norm(model, data_config.get("batch_size", 0) // checks.accumulated(config))
    switches, precision = speed.resolve(config, model)
    asked = config.get("tricks") or {}
    model.settings = Settings(
        seed=seed,
        clip=config["optim"]["clip"],
        accumulate=checks.accumulated(config),
        lr_scale=config["optim"].get("lr_scale", 1.0),
        ema_decay=config["ema"]["decay"],
        log_every_n_steps=config["trainer"]["log_every_n_steps"],
        speed=switches,
        tricks=Tricks(**{f.name: asked[f.name] for f in dataclasses.fields(Tricks) if f.name in asked}),
    )
    model.moves.optimizers()  # those of the training are made later; their mistakes are told before any work
    data.read = _columns_read(model)
    data.batches_per_step = getattr(model, "batches_at", model.batches_per_step)
    data.labelled_share = model.labelled_share
    metrics = config.get("metrics") or {}
    judge = instantiate(metrics) if metrics and (metrics.get("scores", True) or metrics.get("more")) else None
    patience = config["checkpoint"].get("early_stop")
    if patience is not None and judge is None:
        raise UserError(f"checkpoint.early_stop={patience} needs scores on validation data, and metrics=none has none.")
    callbacks = {name: instantiate(c) for name, c in (config.get("callbacks") or {}).items() if c}
    return Parts(config, data, model, judge, callbacks, precision, rollbacks)


def make_trainer(
    parts: Parts,
    run_dir: Path,
    resume_step: int | None = None,
    random_states: bool = True,
    spent: float = 0.0,
    **overrides: Any,
) -> pl.Trainer:
    """Lightning's Trainer for these parts, with genlab's checkpoints, loggers and clean stop.

    Args:
        parts: From `build`.
        run_dir: The run folder.
        resume_step: Iteration of the checkpoint to resume from.
        random_states: Whether the random states of that checkpoint are restored; otherwise the seed sets them.
        spent: Seconds to subtract from `max_time`.
        **overrides: Arguments of the Trainer in place of the config's.
    """
    import pytorch_lightning as pl

    from genlab.callbacks.checkpoints import AtomicCheckpointIO, CleanStop
    from genlab.callbacks.health import Rollbacks
    from genlab.callbacks.profiler import Unprofiled

    config = parts.config
    _quiet()
    _stop_asking_for_gpus()
    for callback in parts.callbacks.values():
        if hasattr(callback, "judge"):
            callback.judge = parts.judge
    chosen = (config.get("logger") or {}).values()
    asked = {k: v for k, v in config["trainer"].items() if k not in ("strategy", "log_every_n_steps")}
    arguments: dict[str, Any] = {
        **asked,
        "strategy": _strategy(config["trainer"]),
        "precision": parts.precision,
        "plugins": [p for p in (AtomicCheckpointIO(random_states), processes.cluster_environment()) if p is not None],
        "logger": [instantiate(c, run_dir=str(run_dir), resume_step=resume_step) for c in chosen],
        "callbacks": [
            CleanStop(_seconds(config["max_time"], spent), _cpu_seconds(config)),
            Rollbacks(parts.rollbacks),
            *parts.callbacks.values(),
            _keeper(parts),
        ],
        "default_root_dir": str(run_dir),
        "profiler": Unprofiled(),
        **ALWAYS,
        **overrides,
    }
    try:
        return pl.Trainer(**arguments)
    except (pl.utilities.exceptions.MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"trainer={config['choices'].get('trainer')} cannot run here: {error}") from error


@contextmanager
def session(config: dict[str, Any], run_dir: Path, one_device: bool = False) -> Iterator[FolderLock]:
    """Holds a run's resources: number of threads, the folder's lock, signals as interrupts.

    Args:
        config: Plain containers.
        run_dir: The run folder.
        one_device: Whether this is one of several jobs of a sweep, which must not start processes of its own.

    Raises:
        UserError: If a job of a sweep asks for several devices, or another process trains in the folder.
    """
    import torch

    if one_device and config["trainer"]["devices"] not in (1, "1"):
        raise UserError("A sweep (-m) trains each run on one device. Try trainer=auto, or start the runs one by one.")
    torch.set_num_threads(config["threads"] or _default_threads(config))
    with FolderLock(run_dir) as lock, interrupts(), _errors_of_threads_elsewhere():
        if is_first_process() and not config["dry_run"] and run_dir.is_dir():
            folder.lock(run_dir, lock)
        yield lock


def train(
    config: dict[str, Any],
    run_dir: Path,
    resume: Path | None = None,
    one_device: bool = False,
    first_stage: Path | None = None,
) -> Result:
    """Trains a resolved config of one stage in a run folder. See `genlab.runs.start.train`.

    Args:
        config: Plain containers.
        run_dir: The run folder.
        resume: A checkpoint of the same run to resume from.
        one_device: Whether this is one of several jobs of a sweep.
        first_stage: The trained first stage of a model that brings its config along.
    """
    with session(config, run_dir, one_device) as lock:
        if resume is None and is_first_process():
            folder.check_unused(run_dir)
        with journal(run_dir) if is_first_process() else nullcontext():
            try:
                with set_up(run_dir):
                    prepared = _prepare(config, run_dir, resume, one_device, lock, first_stage)
                return _fit(*prepared, run_dir, resume)
            except (UserError, TrainingStopped) as error:
                note(str(error))
                raise


def ready(
    config: dict[str, Any], resume: Path | None = None, first_stage: Path | None = None
) -> tuple[Parts, dict[str, Any] | None]:
    """The parts of a run with their initial weights, and the checkpoint to resume from, if any; see `train`."""
    from genlab.callbacks.health import Rollbacks
    from genlab.runs.first_stage import attach_first_stage, load_first_stage

    if resume is None:
        config = attach_first_stage(config)
    checkpoint = None if resume is None else folder.read_checkpoint(resume)
    if checkpoint is not None:
        folder.check_resumable(checkpoint, resume or Path())
    parts = build(config, 0 if checkpoint is None else Rollbacks.count_in(checkpoint))
    if config["init_from"] and resume is None:
        _, source = folder.find_run(config["init_from"])
        folder.load_weights(parts.model, folder.read_checkpoint(source), source)
    first = config.get("first_stage") or first_stage
    if first and resume is None:
        own = [node["_target_"] for _, node in targets(config["model"])] if first_stage else []  # of the user's config
        load_first_stage(parts.model, str(first), (*config["allow_targets"], *own))
    return parts, checkpoint


def _prepare(
    config: dict[str, Any],
    run_dir: Path,
    resume: Path | None,
    one_device: bool,
    lock: FolderLock,
    first_stage: Path | None,
) -> tuple[Parts, pl.Trainer, folder.RunRecord | None]:
    """Prepares the first iteration: parts, initial weights, data, and last the run folder."""
    parts, checkpoint = ready(config, resume, first_stage)
    config = parts.config
    began = (run_dir / "config.yaml").is_file()  # by a start without a checkpoint, whose curves are then hidden
    resume_step = (0 if began else None) if checkpoint is None else int(checkpoint["global_step"])
    if checkpoint is not None:  # with clear errors for weights that do not fit
        folder.load_weights(parts.model, checkpoint, resume or Path())
        folder.load_averages(parts.model, checkpoint, resume or Path())
    trainer = make_trainer(parts, run_dir, resume_step)
    processes.check(trainer, config["data"].get("batch_size", 0), checks.accumulated(config))
    if resume_step is not None and resume_step >= trainer.max_steps:
        raise UserError(
            f"{short(run_dir)} has already been trained for its {resume_step} iterations. "
            f"To go on further: trainer.max_steps={2 * resume_step}"
        )
    _check_cpu_time_left(config, checkpoint, run_dir)
    _check_patience_left(config, checkpoint, run_dir)
    if trainer.is_global_zero:
        log.info(_headline(parts, run_dir, resume_step or None))
    processes.warn_of_separate_batches(parts.model, trainer, config)
    if not trainer.is_global_zero:
        return parts, trainer, None
    _prepare_data(parts, trainer)  # before anything is written: data files may be missing or broken
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder.lock(run_dir, lock)
        if resume is None:
            folder.check_unused(run_dir)  # again, now under the lock
        remove_temporaries(run_dir)
        record = folder.RunRecord(run_dir, config)
        folder.write_config(run_dir, config)
        if not one_device:
            folder.point_latest(run_dir)
        record.write(
            parameters={name: sum(p.numel() for p in ps) for name, ps in parts.model.players.items()},
            speed={**dataclasses.asdict(parts.model.settings.speed), "precision": parts.precision},
        )
    except OSError as error:
        raise TrainingStopped(_unwritable(error, run_dir)) from error
    return parts, trainer, record


def _prepare_data(parts: Parts, trainer: pl.Trainer) -> None:
    with _mistakes_named(parts.config):
        parts.data.prepare_data()
        parts.data.setup()
        if parts.judge is not None:
            parts.judge.prepare(parts.model, parts.data, trainer.strategy.root_device)


def _fit(
    parts: Parts, trainer: pl.Trainer, record: folder.RunRecord | None, run_dir: Path, resume: Path | None
) -> Result:
    """Trains to the end, with rollbacks on NaN if the config asks for them, and reports."""
    from genlab.floats import without_tf32

    status, started = "failed", time.monotonic()
    try:
        while True:
            try:
                with nullcontext() if parts.model.settings.speed.tf32 else without_tf32():
                    trainer.fit(parts.model, datamodule=parts.data, ckpt_path=resume, weights_only=True)
                break
            except NotFinite as error:
                good = folder.find_checkpoint(run_dir) if _checkpoints(trainer).saved else resume
                health = {**HEALTH, **(parts.config.get("health") or {})}
                if health["on_nan"] != "rollback" or good is None:
                    raise
                if parts.rollbacks >= health["max_rollbacks"]:
                    text = f"{error} The run was rolled back health.max_rollbacks={parts.rollbacks} times already."
                    raise NotFinite(text) from error
                resume = good
                parts, trainer = _rolled_back(parts, good, run_dir, record, error, time.monotonic() - started)
        parts.model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU; the judge comes next
        status = "done" if _is_finished(trainer) else "interrupted"
        return _finish(parts, trainer, run_dir, record)
    except Interrupted:  # a second signal while training, or a first one afterwards
        done = status == "done"
        status = status if done else "killed"
        if record and done:
            say(f"Training is done, but not its scores: {command('evaluate', run=run_dir)}")
        elif record:
            say(f"Stopped at once. Go on from the last checkpoint: {command('train', resume=run_dir)}")
        raise
    except (TrainingStopped, OSError) as error:
        reason = _unwritable(error, run_dir) if isinstance(error, OSError) else str(error)
        kept = folder.find_checkpoint(run_dir)
        tail = f" The last good checkpoint is {short(kept)}." if kept else " No checkpoint had been written yet."
        raise TrainingStopped(f"Training stopped: {reason}{tail}") from error
    finally:
        if record:
            with suppress(OSError):  # a full disk has been reported already
                record.write(status=status)


def _rolled_back(
    parts: Parts, good: Path, run_dir: Path, record: folder.RunRecord | None, error: NotFinite, spent: float
) -> tuple[Parts, pl.Trainer]:
    """Builds the run anew from its last good checkpoint, with other seeds for the data's order and the noise."""
    from genlab.callbacks.health import rollback_seed

    count, config = parts.rollbacks + 1, parts.config
    step = int(folder.read_checkpoint(good)["global_step"])
    parts = build(config, count)
    trainer = make_trainer(parts, run_dir, step, random_states=False, spent=spent)
    if record:
        most = {**HEALTH, **config["health"]}["max_rollbacks"]
        log.warning("%s Back to iteration %d with another seed (rollback %d of %d).", error, step, count, most)
        _prepare_data(parts, trainer)
        # A run that is killed and resumed repeats this rollback: the new note replaces the old one.
        past = record.content.get("rollbacks", [])[: count - 1]
        note = {"to_iteration": step, "seed": rollback_seed(config["seed"], count), "reason": str(error)}
        record.write(rollbacks=[*past, note])
    return parts, trainer


def _finish(parts: Parts, trainer: pl.Trainer, run_dir: Path, record: folder.RunRecord | None) -> Result:
    """Scores the test split, draws the pictures, prints the summary; for an interrupted run its resume command."""
    from genlab.callbacks.checkpoints import CleanStop
    from genlab.callbacks.scores import judged
    from genlab.runs import summary
    from genlab.runs.comparison import compare

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    stop = next(c for c in callbacks if isinstance(c, CleanStop))
    checkpoints = _checkpoints(trainer)
    progress = next((c for c in callbacks if hasattr(c, "images_per_second")), None)
    if record and checkpoints.exhausted:
        log.info("%s", summary.early(trainer.global_step, checkpoints.idle, checkpoints.monitor))
    if not _is_finished(trainer):
        if record:
            say(f"Stopped after iteration {trainer.global_step}. Go on with: {command('train', resume=run_dir)}")
        if stop.signal is not None:
            if record:
                record.write(status="interrupted")
            processes.hand_over(stop.signal, stop.before.get(stop.signal), trainer.is_global_zero)
            raise SystemExit(128 + stop.signal)
    scores: dict[str, float] = {}
    if parts.judge is not None and stop.signal is None:
        scores = judged(parts.judge.final, parts.model, trainer)
    if record:
        record.write(scores=scores, **(parts.judge.record() if scores else {}))  # before the best weights are scored
    compared = compare(parts, trainer, run_dir, checkpoints, scores, _is_finished(trainer))
    if trainer.is_global_zero:
        for logger in trainer.loggers if scores else ():
            logger.log_metrics(scores, step=trainer.global_step)
        summary.write_pictures(parts, run_dir)
        assert record is not None
        record.write(
            iterations=trainer.global_step,
            **({} if stop.max_cpu_seconds is None else {"cpu_seconds": round(stop.cpu_seconds, 2)}),
            **compared,
            images_per_second=round(getattr(progress, "images_per_second", 0.0), 1),
        )
        for logger in trainer.loggers:
            logger.finalize("success")
        summary.print_summary(parts, run_dir, record.content, scores)
    return Result(parts.model, scores, checkpoints.best_score)


def _is_finished(trainer: pl.Trainer) -> bool:
    """Whether the run has used up its iterations or its CPU time, or stopped early."""
    from genlab.callbacks.checkpoints import CleanStop

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    stop = next(c for c in callbacks if isinstance(c, CleanStop))
    used_up = stop.out_of_cpu_time or _checkpoints(trainer).exhausted
    return trainer.global_step >= trainer.max_steps or (used_up and stop.signal is None)


def _check_cpu_time_left(config: dict[str, Any], checkpoint: dict[str, Any] | None, run_dir: Path) -> None:
    """Refuses to resume a scored run that has used up its CPU time.

    Raises:
        UserError: If it has.
    """
    limit, spent = _cpu_seconds(config), 0.0 if checkpoint is None else folder.cpu_seconds(checkpoint)
    if limit is not None and spent >= limit and (folder.record_of(run_dir).get("scores") is not None):
        raise UserError(
            f"{short(run_dir)} has already been trained for its {spent:.0f} seconds of CPU time. "
            f"To go on further: max_cpu_time={2 * limit:g}"
        )


def _check_patience_left(config: dict[str, Any], checkpoint: dict[str, Any] | None, run_dir: Path) -> None:
    """Refuses to resume a scored run that stopped early.

    Raises:
        UserError: If it did.
    """
    patience = config["checkpoint"].get("early_stop")
    idle = int(((checkpoint or {}).get("callbacks", {}).get("Checkpoints") or {}).get("idle", 0))
    if patience is not None and idle >= patience and folder.record_of(run_dir).get("scores") is not None:
        raise UserError(
            f"{short(run_dir)} stopped early, after {idle} validations without a better score. "
            f"To go on further: checkpoint.early_stop=null, or a number above {idle}"
        )


def _keeper(parts: Parts) -> Checkpoints:
    """The callback that writes checkpoints, keeps the best and stops early.

    Raises:
        UserError: If it is to stop early, and no callback scores validation data.
    """
    from genlab.callbacks.checkpoints import Checkpoints

    keeping = parts.config["checkpoint"]
    patience = keeping.get("early_stop")
    if patience is not None and not any(hasattr(c, "judge") for c in parts.callbacks.values()):
        raise UserError(
            f"checkpoint.early_stop={patience} needs the callback that scores validation data. Leave it out, or take "
            "callbacks=default."
        )
    return Checkpoints(
        keeping["every_n_steps"],
        keeping["keep"],
        keeping["monitor"] or getattr(parts.judge, "monitor", None),
        parts.judge.mode if parts.judge is not None else "min",
        keeping.get("smooth", 1),  # configs older than the key
        patience,
    )


def _checkpoints(trainer: pl.Trainer) -> Checkpoints:
    from genlab.callbacks.checkpoints import Checkpoints

    return next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]


def _columns_read(model: GenerativeModel) -> set[str]:
    """The columns that training reads: the model's and those of its first stages."""
    read: set[str] = set()
    inner: Any = model
    while inner is not None:
        read |= {*inner.given, inner.gives, *inner.needs}
        inner = getattr(inner, "first_stage", None)
    return read


@contextmanager
def _mistakes_named(config: dict[str, Any]) -> Iterator[None]:
    """Adds the composition to the message of an error raised in the block."""
    try:
        yield
    except (UserError, FileNotFoundError, PermissionError) as error:
        choices = config["choices"]
        composed = " ".join(f"{k}={choices[k]}" for k in ("model", "data", "network") if k in choices)
        raise UserError(f"{str(error).rstrip()} (in: {composed})") from error


def _default_threads(config: dict[str, Any]) -> int:
    """All cores; one for tiny samples, for which threads cost more than they gain, above all beside other work."""
    import torch

    size = math.prod(n or 10**6 for n in config["data"].get("shape") or [None])  # null: of any length
    return 1 if size <= TINY_SAMPLE else torch.get_num_threads()


def _strategy(trainer: dict[str, Any]) -> Any:
    """Lightning's strategy; two players in one module need `find_unused_parameters` in data-parallel training."""
    many = trainer["devices"] not in (1, "1") or trainer["num_nodes"] > 1
    if not many or trainer["strategy"] not in ("auto", "ddp"):
        return trainer["strategy"] if trainer["strategy"] != "ddp" else "auto"
    return "ddp_find_unused_parameters_true"


def is_first_process() -> bool:
    """Whether this is the first process, the only one that writes; usable before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _unwritable(error: OSError, run_dir: Path) -> str:
    """The message for a file that could not be written (or read): its path, the reason, and the free space."""
    path = Path(error.filename or run_dir)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{str(error).rstrip('.')}."
    return f"{path} could not be written ({error.strerror}); {free_mib(path)} MiB are free there."


@contextmanager
def _errors_of_threads_elsewhere() -> Iterator[None]:
    """Hides the traceback of an OSError in a background writer, which raises it again in its next call."""
    before = threading.excepthook

    def hook(failed: Any) -> None:
        if not isinstance(failed.exc_value, OSError):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _seconds(max_time: str | None, spent: float = 0.0) -> float | None:
    """Seconds of a "HH:MM:SS" or "DD:HH:MM:SS", minus `spent`.

    Raises:
        UserError: If the text has neither form.
    """
    if max_time is None:
        return None
    return numbers.seconds(max_time) - spent


def _cpu_seconds(config: dict[str, Any]) -> float | None:
    """The limit on the run's CPU seconds; None without one, as in configs older than the key.

    Raises:
        UserError: If it is not positive.
    """
    limit = config.get("max_cpu_time")
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"max_cpu_time is a positive number of seconds, got {limit}. Try max_cpu_time=60.")
    return limit


def _headline(parts: Parts, run_dir: Path, resume_step: int | None) -> str:
    choices = parts.config["choices"]
    players = ", ".join(
        f"{name} {report.short(sum(p.numel() for p in ps))}" for name, ps in parts.model.players.items()
    )
    start = "" if resume_step is None else f" from iteration {resume_step}"
    return f"{choices['model']} on {choices['data']}{start} ({players} parameters), in {short(run_dir)}"


def _quiet() -> None:
    """Silences Lightning's messages about choices that genlab makes on purpose."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "Using ModelCheckpoint with manual optimization",
        ".*configure_optimizers` returned `None`.*",
        ".*does not have many workers.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*You have overridden `(transfer_batch_to_device|on_after_batch_transfer)`.*",
        ".*train_dataloader.*IterableDataset.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _stop_asking_for_gpus() -> None:
    """Without a GPU, unsets the variable by which Lightning makes torch look for GPUs through NVML.

    Adam of torch 2.15 looks for GPUs in each step, which makes a step of a small network a third longer. The purpose of
    NVML, to fork processes before CUDA starts, matters only with a GPU.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def _import_torchvision() -> None:
    """Explains the import error of a CPU-only torch beside torchvision's standard build.

    Raises:
        UserError: If the builds of torch and torchvision differ.
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
