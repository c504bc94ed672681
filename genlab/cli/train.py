"""`python train.py`, `genlab-train`: trains a composition or resumes a run. Imports torch only to train."""

from __future__ import annotations

import logging
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from genlab.cli import app
from genlab.commands import short
from genlab.config import composition, numbers, schema
from genlab.config.arguments import expanded, take_path
from genlab.errors import TrainingStopped, UserError
from genlab.files import run_path
from genlab.journal import JOURNAL, journal
from genlab.launch import launch
from genlab.runs import stopping, sweeps
from genlab.runs.folder import check_unused, find_checkpoint, find_run, lock, read_config
from genlab.runs.paths import check_paths

log = logging.getLogger("genlab")


def main() -> None:
    """The command line. Exit codes: 0 done, 1 Hydra's own errors, 2 a user's mistake, 3 stopped, 128 + n signal n."""
    with app.errors_as_sentences():
        arguments = ["dry_run=true" if a == "--dry-run" else a for a in sys.argv[1:]]
        if "--list" in arguments:
            after = arguments[arguments.index("--list") + 1 :]
            return app.list_options(after[0] if after else "model")
        if {"-h", "--help"} & set(arguments):
            return app.print_help("train", arguments)
        if app.print_if_asked(None):
            return None
        resume, arguments = take_path(arguments, "resume")
        run_dir, _ = take_path(arguments, "hydra.run.dir")
        resume = str(run_path(resume)) if resume is not None else None
        if resume is not None and sweeps.is_sweep(resume):
            return _hydra(sweeps.command(resume, arguments))
        if resume == "auto":
            resume = _earlier_start(arguments, run_dir)
            if resume is not None:  # the run's own config holds the rest
                arguments = [a for a in arguments if a.partition("=")[0] in sweeps.RESUMABLE]
        if resume is not None and sweeps.is_set_up(resume):
            return _hydra(_begin_again(resume, [a for a in arguments if not a.startswith("hydra.run.dir=")]))
        if resume is not None:
            with app.log_lines():
                return _resume(resume, [a for a in arguments if not a.startswith("hydra.")])
        app.check_writable(Path(run_dir or "outputs"))
        if run_dir is not None and not any(a.startswith("-") for a in arguments):  # before Hydra writes to it
            check_unused(Path(run_dir))
            if Path(run_dir).is_dir():
                lock(Path(run_dir)).release()
        return _hydra(arguments)


def _begin_again(folder: str, arguments: list[str]) -> list[str]:
    """The command line of a run that was stopped in its set-up; refuses a run that another process is setting up."""
    command = sweeps.set_up_command(folder, arguments)
    started = launch()
    if started is None or started.rank == 0:
        lock(Path(folder)).release()
        print(f"{folder} was stopped in its set-up, so it starts from the beginning.")
    return command


def _hydra(arguments: list[str]) -> None:
    """Runs a command line under Hydra: one run, or the jobs of a sweep."""
    with stopping.sweep():
        app.hydra_app(_task, "train", arguments)


def _task(config: Any) -> float | None:
    """One job under Hydra. Returns the monitored score, which searches minimise or maximise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    many = hydra.mode == RunMode.MULTIRUN
    run_dir = Path(hydra.runtime.output_dir)
    try:
        resolved = composition.resolve(config, hydra)
        if not many:
            check_paths(resolved)
        if many:
            with stopping.job() as wanted:
                return _job(resolved, run_dir) if wanted else None
            return None  # stopped together with its sweep
        with stopping.set_up(run_dir):
            from genlab.runs.start import train

        monitored = train(resolved, run_dir).monitored
        if resolved["dry_run"]:
            _remove_empty(run_dir)
        return monitored
    except (UserError, TrainingStopped) as error:
        if many:  # the other jobs go on; Hydra reports the first that failed at the end, without a traceback
            with journal(run_dir):
                log.error("%s failed: %s", run_dir, error)
            raise CompactHydraException(str(error)) from None
        _remove_empty(run_dir)
        with app.errors_as_sentences():
            raise


def _remove_empty(run_dir: Path) -> None:
    """Removes a run folder, and `outputs/` around it, in which there is no more than Hydra and the journal wrote."""
    from genlab.runs.running import is_first_process

    if is_first_process() and {p.name for p in run_dir.iterdir()} <= {".hydra", ".lock", JOURNAL}:
        shutil.rmtree(run_dir, ignore_errors=True)
        if run_dir.parent.name == "outputs":
            with suppress(OSError):  # it holds other runs
                run_dir.parent.rmdir()


def _job(config: dict[str, Any], run_dir: Path) -> float | None:
    """One job of a sweep; continues an earlier start of the sweep, or of this job in a cluster's queue."""
    before = sweeps.earlier(run_dir, config)
    if before is not None and before.done:
        log.info("%s is done.", run_dir)
        return before.score
    if before is None or before.checkpoint is None:
        check_paths(config)
    from genlab.runs.start import train

    if before is not None:
        saved = config if before.checkpoint is None else sweeps.with_lengths(read_config(run_dir), config)
        return train(saved, run_dir, resume=before.checkpoint, one_device=True).monitored
    return train(config, run_dir, one_device=True).monitored


def _resume(path: str, overrides: list[str]) -> None:
    """Resumes a run in its folder with its own config; overrides may change only lengths and places."""
    folder = Path(path)
    if (folder / "config.yaml").is_file():
        config = read_config(folder)
        if config.get("stages") or find_checkpoint(folder) is None:
            _override(config, overrides)
            if not config.get("stages"):
                print(f"{short(folder)} holds no checkpoint yet, so it starts from the beginning.")
            _start(config, folder)  # skips finished stages
            return
    run_dir, checkpoint = find_run(path)
    config = read_config(run_dir)
    _override(config, overrides)
    _start(config, run_dir, checkpoint)


def _start(config: dict[str, Any], run_dir: Path, checkpoint: Path | None = None) -> None:
    check_paths(config if checkpoint is None else {**config, "init_from": None, "first_stage": None})
    with stopping.set_up(run_dir):
        from genlab.runs.start import train  # imports torch: only after the arguments are checked

    train(config, run_dir, resume=checkpoint)


def _override(config: dict[str, Any], overrides: list[str]) -> None:
    """Applies the overrides of a resumed run.

    Raises:
        UserError: If a key is not in `sweeps.RESUMABLE`: with another method it would be another run.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in sweeps.RESUMABLE:
            raise UserError(
                f"A resumed run keeps its own config, so {override!r} cannot be changed; it takes "
                f"{', '.join(sweeps.RESUMABLE)}. To start a new run from its weights: init_from=RUN."
            )
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = _typed(key, value)
    numbers.check(config)


def _typed(key: str, text: str) -> Any:
    """The value of a resumed run's key, of the schema's type.

    Raises:
        UserError: If it has another type.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if composition.PATH_KEYS.fullmatch(key):
        return expanded(text)
    try:
        config = OmegaConf.structured(schema.TrainConfig)
        OmegaConf.update(config, key, yaml.safe_load(text))
        return OmegaConf.select(config, key)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={text} cannot be: {str(error).partition(chr(10))[0]}.") from error


def _earlier_start(arguments: list[str], run_dir: str | None) -> str | None:
    """The run that `resume=auto` resumes, None for a new run.

    It is the run in `hydra.run.dir`, if that is given (by a requeued job of a cluster, for example), else the newest
    run under outputs/ with this composition. Configs are compared without lengths and places.

    Raises:
        UserError: If `hydra.run.dir` holds another run.
    """
    flags = [a for a in arguments if a.startswith("-")]
    if flags:
        raise UserError(f"resume=auto goes with overrides only, not with {flags[0]}.")
    wanted = sweeps.comparable(composition.compose([a for a in arguments if not a.startswith("hydra.")]))
    if run_dir is not None:
        if not (Path(run_dir) / "config.yaml").is_file():
            return None
        if sweeps.comparable(read_config(Path(run_dir))) != wanted:
            raise UserError(f"{run_dir} holds a run of another composition. Choose another hydra.run.dir=...")
        return run_dir
    found = [path for path in Path("outputs").glob("*/config.yaml") if not path.parent.is_symlink()]
    for path in sorted(found, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if find_checkpoint(path.parent) is not None and sweeps.comparable(read_config(path.parent)) == wanted:
            return str(path.parent)
    print("No run of this composition to resume under outputs/; starting a new one.")
    return None


if __name__ == "__main__":
    main()
