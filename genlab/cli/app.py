"""Shared by all commands: error messages, log lines, Hydra, help and lists. Imports no torch."""

from __future__ import annotations

import locale
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import genlab
from genlab.commands import named
from genlab.config import composition
from genlab.config.composition import check_plugins, first_line, quote_paths
from genlab.config.shipped import config_dir, options
from genlab.errors import TrainingStopped, UserError
from genlab.runs import processes

LEAST_ROOM = 2**18  # bytes; less does not even hold the records of a run


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Prints a `UserError` and exits with code 2, a `TrainingStopped` with code 3.

    HYDRA_FULL_ERROR=1 shows the traceback instead, as it does for Hydra's own errors.
    """
    try:
        check_locale()
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


def check_locale() -> None:
    """Refuses a locale without UTF-8, in which names of files and texts could be neither read nor written.

    Windows is exempt: its names of files do not depend on the locale.

    Raises:
        UserError: If the locale has another encoding.
    """
    encoding = locale.getpreferredencoding(False)
    if os.name != "nt" and encoding.lower().replace("-", "") not in ("utf8",):
        raise UserError(
            f"The locale writes texts in {encoding}, and genlab's files are in UTF-8. Set PYTHONUTF8=1, or "
            "LC_ALL=C.UTF-8."
        )


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
    check_line(config_name, arguments)
    logging.raiseExceptions = False  # a log file on a full disk: the run itself reports it
    sys.argv = [sys.argv[0], *quote_paths([*arguments, *processes.quiet_overrides()])]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)()


def print_if_asked(help_text: str | None) -> bool:
    """Prints the help or the version, if the command line asks for it. Returns whether it did."""
    asked = set(sys.argv[1:])
    if "--version" in asked:
        print(f"genlab {genlab.__version__}")
    elif asked & {"-h", "--help"}:
        print(help_text and named(help_text))
    return bool(asked & {"-h", "--help", "--version"})


def check_line(config_name: str, arguments: Sequence[str]) -> None:
    """Composes the arguments before Hydra does, and creates nothing.

    Of a sweep the first and the last job are composed; it is refused if both have the same mistake. Other mistakes are
    left to the jobs, and those in Hydra's grammar and in the names of options to Hydra, whose messages are clear.

    Raises:
        UserError: If nothing reads a key, a number is out of range, or an interpolation fails.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    asked = get_args_parser().parse_args(list(arguments))
    if asked.shell_completion or asked.info or asked.hydra_help or asked.config_name or asked.config_path:
        return
    own = [f"hydra.searchpath=[file://{Path(asked.config_dir).absolute()}]"] if asked.config_dir else []
    jobs = [asked.overrides]
    try:
        if asked.multirun:
            jobs = [composition.job_of(asked.overrides, i) for i in (0, -1)]
        errors = []
        for job in jobs:
            try:
                config = composition.composed([*job, *own], config_name)
                composition.resolve(config, config.hydra)
            except UserError as error:
                errors.append(error)
    except HydraException:
        return
    if len(errors) == len(jobs) and len({str(error) for error in errors}) == 1:
        if "HydraConfig was not set" not in str(errors[0]):  # a key of the running job, as in ${hydra:job.num}
            raise errors[0]


def print_help(config_name: str, arguments: Sequence[str]) -> None:
    """Prints the help of a primary config: its template with the config groups and the composed config.

    Hydra's own `--help` reads all groups, its own included, once per group, which takes seconds.

    Raises:
        UserError: If Hydra cannot compose the arguments.
    """
    from string import Template

    from hydra.errors import CompactHydraException
    from omegaconf import OmegaConf

    try:
        config = composition.composed([a for a in arguments if not a.startswith("-")], config_name)
    except CompactHydraException as error:
        raise UserError(str(error)) from error
    template = Template(config.hydra.help.template)
    keys = OmegaConf.to_yaml({key: config._get_node(key) for key in config if key != "hydra"})
    folders = sorted({path.parent for path in config_dir().rglob("*.yaml")} - {config_dir()})
    names = [folder.relative_to(config_dir()).as_posix() for folder in folders]
    groups = [f"{name}: {', '.join(options(name))}" for name in names if name.partition("/")[0] != "hydra"]
    print(named(template.substitute(APP_CONFIG_GROUPS="\n".join(groups), CONFIG=keys)))


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
