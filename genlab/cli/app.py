"""Shared by all commands: error messages, log lines, Hydra, help and lists. Imports no torch."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import genlab
from genlab.config import schema
from genlab.config.composition import check_plugins, first_line, options, quote_paths
from genlab.config.shipped import config_dir
from genlab.errors import TrainingStopped, UserError
from genlab.runs import processes

LEAST_ROOM = 2**18  # bytes; less does not even hold the records of a run


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Prints a `UserError` and exits with code 2, a `TrainingStopped` with code 3.

    HYDRA_FULL_ERROR=1 shows the traceback instead, as it does for Hydra's own errors.
    """
    try:
        yield
    except BrokenPipeError:  # the reader has closed the pipe: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # outside of training, which handles signals itself
        print("\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except (UserError, TrainingStopped) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 3) from None


class _ToStderr(logging.Handler):
    """Looks up `sys.stderr` for each line, as notebooks and tests replace and close it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Prints genlab's log lines within the block; for commands without Hydra, which sets up logging otherwise."""
    logger, handler = logging.getLogger("genlab"), _ToStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def bars() -> Iterator[Callable[[str, float], None]]:
    """Gives a function that shows on a terminal, as one bar per name, the share of a task that is done, in [0, 1]."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(24), TaskProgressColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def show(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        yield show


def hydra_app(task: Callable[[Any], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Runs `task` under Hydra (composition, run folders, sweeps, completion) on these arguments."""
    import hydra

    check_plugins(arguments)
    logging.raiseExceptions = False  # a log file on a full disk: the run itself reports it
    sys.argv = [sys.argv[0], *quote_paths([*arguments, *processes.quiet_overrides()])]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)()


def print_if_asked(help_text: str | None) -> bool:
    """Prints the help or the version, if the command line asks for it. Returns whether it did."""
    asked = set(sys.argv[1:])
    if "--version" in asked:
        print(f"genlab {genlab.__version__}")
    elif asked & {"-h", "--help"}:
        print(help_text)
    return bool(asked & {"-h", "--help", "--version"})


def print_help(config_name: str, arguments: Sequence[str]) -> None:
    """Prints the help of a primary config: its template with the config groups and the composed config.

    Hydra's own `--help` reads all groups, its own included, once per group, which takes seconds.

    Raises:
        UserError: If Hydra cannot compose the arguments.
    """
    from string import Template

    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import CompactHydraException
    from omegaconf import OmegaConf

    schema.register()
    overrides = quote_paths([a for a in arguments if not a.startswith("-")])
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            config = hydra_compose(config_name, overrides, return_hydra_config=True)
        except CompactHydraException as error:
            raise UserError(str(error)) from error
    template = Template(config.hydra.help.template)
    keys = OmegaConf.to_yaml({key: config._get_node(key) for key in config if key != "hydra"})
    folders = sorted({path.parent for path in config_dir().rglob("*.yaml")} - {config_dir()})
    names = [folder.relative_to(config_dir()).as_posix() for folder in folders]
    groups = [f"{name}: {', '.join(options(name))}" for name in names if name.partition("/")[0] != "hydra"]
    print(template.substitute(APP_CONFIG_GROUPS="\n".join(groups), CONFIG=keys))


def list_options(group: str) -> None:
    """Prints the options of a group with the first line of each yaml: for models, the method and its paper.

    Raises:
        UserError: If there is no such group.
    """
    from rich.console import Console
    from rich.table import Table

    groups = sorted({path.parent.name for path in config_dir().glob("*/*.yaml")})
    asked, group = group, next((g for g in (group, group[:-1], group[:-2]) if g in groups), group)
    if group not in groups:
        raise UserError(f"There is no group {asked!r} to list; choose from {', '.join(groups)}.")
    table = Table(title=f"{group}=...", title_justify="left")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("method and source" if group == "model" else "description")
    for name in options(group):
        table.add_row(name, first_line(group, name))
    Console().print(table)


def check_writable(folder: Path) -> None:
    """Checks that a run folder can be created, before Hydra tries.

    Raises:
        UserError: If a file is in the way, the nearest existing folder is not writable, or its disk is full.
    """
    folder = folder.absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is in the way of the run folder: it is a file. Try hydra.run.dir=OTHER_FOLDER.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} may not be written to. Choose another place: hydra.run.dir=OTHER_FOLDER.")
    if shutil.disk_usage(existing).free < LEAST_ROOM:
        raise UserError(f"There is no room left at {existing}. Make some, or try hydra.run.dir=OTHER_FOLDER.")
