"""`python train.py`, `genlab-train`: trains a composition, or goes on with a run. Torch is imported only to train."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from genlab.cli import app
from genlab.errors import TrainingStopped, UserError


def main() -> None:
    """The command line. Exit codes: 0 done, 1 Hydra's own errors, 2 a user's mistake, 3 stopped, 128 + n signal n."""
    with app.errors_as_sentences():
        arguments = ["dry_run=true" if a == "--dry-run" else a for a in sys.argv[1:]]
        if "--list" in arguments:
            after = arguments[arguments.index("--list") + 1 :]
            return app.list_options(after[0] if after else "model")
        resume, arguments = app.take_path(arguments, "resume")
        if resume == "auto":
            resume = _newest_of_same_composition(arguments)
            if resume is not None:  # what made the composition is the run's own already
                arguments = [a for a in arguments if a.partition("=")[0] in RESUMABLE]
        if resume is not None:
            return _resume(resume, [a for a in arguments if not a.startswith("hydra.")])
        run_dir, _ = app.take_path(arguments, "hydra.run.dir")
        app.check_writable(Path(run_dir or "outputs"))
        return app.hydra_app(_task, "train", arguments)


def _task(config: Any) -> float | None:
    """One job under Hydra. Returns the score that searches minimise or maximise (the monitored one)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    many = hydra.mode == RunMode.MULTIRUN
    try:
        resolved = app.resolve(config, dict(hydra.runtime.choices))
        from genlab.cli.running import train

        run_dir = Path(hydra.runtime.output_dir)
        monitored = train(resolved, run_dir, one_device=many).monitored
        if resolved["dry_run"] and {p.name for p in run_dir.iterdir()} <= {".hydra", "train.log"}:
            shutil.rmtree(run_dir, ignore_errors=True)  # Hydra made it, but there is no run
        return monitored
    except (UserError, TrainingStopped) as error:
        if many:  # the other jobs go on; Hydra reports this one at the end, without a traceback
            raise CompactHydraException(str(error)) from None
        with app.errors_as_sentences():
            raise


def _resume(path: str, overrides: list[str]) -> None:
    """Goes on with a run, in its folder and on its own config; only lengths and places may be changed."""
    from genlab.cli.running import train
    from genlab.cli.runs import find_run, read_config

    folder = Path(path)
    if (folder / "config.yaml").is_file() and read_config(folder).get("stages"):
        config = read_config(folder)
        _override(config, overrides)
        train(config, folder)  # passes over what is done
        return
    run_dir, checkpoint = find_run(path)
    config = read_config(run_dir)
    _override(config, overrides)
    train(config, run_dir, resume=checkpoint)


RESUMABLE = (
    "trainer.max_steps",
    "max_time",
    "threads",
    "data.root",
    "checkpoint.every_n_steps",
    "checkpoint.keep",
    "dry_run",
    "trainer.accelerator",
    "trainer.log_every_n_steps",
)


def _override(config: dict[str, Any], overrides: list[str]) -> None:
    """Applies the few overrides that a resumed run may take.

    Raises:
        UserError: If another key is given: a run that goes on with another method is another run.
    """
    import yaml

    for override in overrides:
        key, _, value = override.partition("=")
        if key not in RESUMABLE:
            raise UserError(
                f"A resumed run keeps its own config, so {override!r} cannot be changed; it takes "
                f"{', '.join(RESUMABLE)}. To start a new run from its weights: init_from=RUN."
            )
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = yaml.safe_load(value)


def _newest_of_same_composition(arguments: list[str]) -> str | None:
    """The newest run folder whose config is the one that these arguments compose, lengths aside; None without one."""
    from genlab.cli.runs import find_checkpoint, read_config

    flags = [a for a in arguments if a.startswith("-")]
    if flags:
        raise UserError(f"resume=auto goes with overrides only, not with {flags[0]}.")

    def comparable(config: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in config.items() if k not in ("max_time", "threads", "dry_run")}
        return {**kept, "trainer": {k: v for k, v in kept["trainer"].items() if k != "max_steps"}}

    wanted = comparable(app.compose([a for a in arguments if not a.startswith("hydra.")]))
    for folder in sorted(Path("outputs").glob("*"), reverse=True):
        if folder.is_symlink() or not (folder / "config.yaml").is_file() or find_checkpoint(folder) is None:
            continue
        if comparable(read_config(folder)) == wanted:
            return str(folder)
    print("No run of this composition to resume under outputs/; starting a new one.")
    return None


if __name__ == "__main__":
    main()
