"""What every command shares: arguments before Hydra sees them, errors as sentences, composition. Free of torch."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genlab.cli import processes, schema, tricks
from genlab.errors import TrainingStopped, UserError

# Values of these keys are paths. Hydra's grammar breaks on `=`, `(` or `[` in a path, so they reach it quoted.
PATH_KEYS = (
    "resume",
    "init_from",
    "first_stage",
    "data.root",
    "metrics.inception_weights",
    "hydra.run.dir",
    "hydra.sweep.dir",
)
LEAST_ROOM = 2**18  # bytes: less does not hold the records of a run, let alone a checkpoint
PARTS = (
    "loss",
    "likelihood",
    "prior",
    "posterior",
    "kl",
    "penalty",
    "adversary",
    "network",
)  # what a model is composed of, each a group
GROUPS = ("model", *PARTS, "data", "metrics")


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Puts the values of path keys into quotes where Hydra's grammar needs it.

    Raises:
        UserError: If a group is set to what is no name, which Hydra answers with a traceback.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not key.lstrip("+~"):
            raise UserError(f"{argument!r} names no key; overrides are written key=value.")
        group = key.lstrip("+~").partition("@")[0]
        if equals and ("/" in group or (config_dir() / group).is_dir()) and not _chooses(argument):
            known = options(group)
            none = f"{group}=none" if "none" in known else f"leave {group} out"
            raise UserError(f"{argument} means nothing; choose one of {', '.join(known) or 'the group'}, or {none}.")
        if equals and key.lstrip("+") in PATH_KEYS and re.search(r"[^\w./\-~]", value) and value[0] not in "'\"$":
            value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        quoted.append(f"{key}{equals}{value}")
    return quoted


def _chooses(argument: str) -> bool:
    """Whether an override of a group gives what Hydra takes for one: a name, a list of names, or keys to merge."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
        value = override.value()
    except HydraException:  # no override at all, which Hydra itself has words for
        return True
    if override.is_delete():
        return isinstance(value, str)
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    return all(
        isinstance(c, (str, dict, QuotedString)) or (isinstance(c, list) and all(isinstance(i, str) for i in c))
        for c in choices
    )


def take_path(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value` as it was typed, and the other arguments."""
    values = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == key]
    return (values[-1] if values else None), [a for a in arguments if a.partition("=")[0] != key]


def config_dir() -> Path:
    """The folder of the shipped configs, in a checkout as in an installed wheel."""
    import genlab.configs  # a folder of yaml files with an empty __init__.py

    return Path(genlab.configs.__file__).parent


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Prints a user's mistake in a sentence and leaves with code 2; what stops training leaves with code 3.

    HYDRA_FULL_ERROR=1 shows the traceback instead, as it does for Hydra's own errors.
    """
    try:
        yield
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # before or after the part of a run that knows what to do with it
        print("\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except (UserError, TrainingStopped) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 3) from None


class _ToStderr(logging.Handler):
    """Writes to whatever `sys.stderr` is when a line comes: notebooks and tests replace and close it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Shows genlab's own log lines inside; for the commands that Hydra does not set up."""
    logger, handler = logging.getLogger("genlab"), _ToStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def hydra_app(task: Callable[[Any], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Runs `task` under Hydra (composition, run folders, sweeps, completion) on these arguments."""
    import hydra

    check_plugins(arguments)
    logging.raiseExceptions = False  # a log file on a full disk: the run itself says so, in a sentence
    sys.argv = [sys.argv[0], *quote_paths([*arguments, *processes.quiet_overrides()])]
    hydra.main(version_base="1.3", config_path="pkg://genlab.configs", config_name=config_name)(task)()


def print_help(config_name: str, arguments: Sequence[str]) -> None:
    """The help of a primary config: its template with the groups there are and the config that is composed.

    Hydra's own `--help` reads all groups, its own among them, again for each of them: seconds, where there are many.

    Raises:
        UserError: If the arguments compose to nothing.
    """
    from string import Template

    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import CompactHydraException
    from omegaconf import OmegaConf

    schema.register()
    overrides = quote_paths([a for a in arguments if not a.startswith("-")])
    with initialize_config_module("genlab.configs", version_base="1.3"):
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


PLUGINS = {  # what asks for one of Hydra's plugins, the plugin's module, what it is, and the extra that brings it
    r"\+?search=optuna\w*|hydra/sweeper=optuna": ("hydra_optuna_sweeper", "Optuna's sweeper", "optuna"),
    r"hydra/launcher=joblib": ("hydra_joblib_launcher", "the joblib launcher", "sweep"),
    r"hydra/launcher=(slurm|submitit_\w+)": ("hydra_submitit_launcher", "the submitit launcher", "slurm"),
}


def check_plugins(arguments: Sequence[str]) -> None:
    """Says how to get a plugin of Hydra, or where to find the cluster, that a sweep asks for and that is missing.

    Raises:
        UserError: If one is missing.
    """
    from importlib.util import find_spec

    for pattern, (module, what, extra) in PLUGINS.items():
        asked = [a for a in arguments if re.fullmatch(pattern, a)]
        try:
            missing = bool(asked) and find_spec(f"hydra_plugins.{module}") is None
        except ModuleNotFoundError:  # no plugin at all
            missing = True
        if missing:
            raise UserError(f'{asked[0]} needs {what} for Hydra: pip install "genlab[{extra}]"')
    slurm = [a for a in arguments if a in ("hydra/launcher=slurm", "hydra/launcher=submitit_slurm")]
    if slurm and shutil.which("sbatch") is None:
        raise UserError(f"{slurm[0]} hands jobs to SLURM, and there is no sbatch here. Type it on a login node.")


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> dict[str, Any]:
    """Composes and resolves a config without running anything: what tests, tools and notebooks use.

    Args:
        overrides: As on the command line, `["model=began", "trainer.max_steps=100"]`.
        config_name: The primary config.

    Returns:
        Plain containers, see `resolve`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    schema.register()
    with initialize_config_module("genlab.configs", version_base="1.3"):
        config = hydra_compose(config_name, quote_paths(overrides), return_hydra_config=True)
        return resolve(config, dict(config.hydra.runtime.choices))


def resolve(config: Any, choices: dict[str, str]) -> dict[str, Any]:
    """A composed config as plain containers without interpolations: what is trained, saved and resumed.

    `PARTS` are left out: they stand, resolved, where the model uses them. What was chosen in each group is kept under
    `choices`.

    Raises:
        UserError: If a part that the model asks for is not offered by what was chosen.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    left_out = {*PARTS, "hydra"}
    resolved: dict[str, Any] = {"choices": {k: v for k, v in choices.items() if "/" not in k and k != "hydra"}}
    for key in config:
        if key in left_out:
            continue
        try:
            value = config[key]  # follows an interpolation in place of the whole node
            resolved[str(key)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except InterpolationKeyError as error:
            raise UserError(_missing_role(str(error), resolved["choices"]) or str(error)) from error
        except OmegaConfBaseException as error:
            raise UserError(str(error)) from error
    for node in ("data", "model"):
        if resolved.get(node) in (None, "???"):
            raise UserError(f"{node} is empty. Choose one: {', '.join(options(node))}.")
    for key, value in resolved.items():
        if key in ("data", "model", *schema.SECTIONS) and not isinstance(value, dict):
            raise UserError(f"{key} holds keys of its own, {key}.KEY=..., and cannot be {value!r} itself.")
    if isinstance(resolved.get("metrics"), dict) and "_target_" not in resolved["metrics"]:
        resolved["metrics"] = None  # metrics=none, and keys that an experiment has for the judge that is not there
    if resolved.get("tricks"):
        resolved["model"] = tricks.wrapped(resolved["model"], resolved["tricks"])
    resolved["choices"] = {k.partition("@")[0]: v for k, v in resolved["choices"].items() if v is not None}
    return resolved


def _missing_role(message: str, choices: dict[str, str]) -> str | None:
    """A sentence for a model that asks a network family for a role it does not have."""
    found = re.search(r"Interpolation key 'network\.(\w+)' not found", message)
    if not found:
        return None
    role = found.group(1)
    fits = [name for name in options("network") if role in read_option("network", name)]
    network = next((v for k, v in choices.items() if k.startswith("network")), None)
    return (
        f"model={choices.get('model')} needs a network with a part '{role}', which network={network} does not have. "
        f"It fits: {', '.join(f'network={name}' for name in fits)}."
    )


def options(group: str) -> list[str]:
    """The shipped options of a config group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def read_option(group: str, name: str) -> dict[str, Any]:
    """One option's yaml as it stands, without composition."""
    import yaml

    return yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text()) or {}


def insisted(model: str, group: str) -> str | None:
    """The option of another group that a model's config, or one that it extends, chooses itself; None if it does not.

    What the command line says wins over it, except that a model may then have nothing to train on.
    """
    for line in read_option("model", model).get("defaults", []):
        found = line.get(f"override /{group}@_global_.{group}") if isinstance(line, dict) else None
        if found is None and isinstance(line, str) and line != "_self_":
            found = insisted(line, group)
        if found is not None:
            return str(found)
    return None


def first_line(group: str, name: str) -> str:
    """What an option says of itself, the comment that its yaml begins with; "" without one."""
    first = (config_dir() / group / f"{name}.yaml").read_text().partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


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
        raise UserError(f"There is no group {asked!r} to list; there are {', '.join(groups)}.")
    table = Table(title=f"{group}=...", title_justify="left")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("method and source" if group == "model" else "what it is")
    for name in options(group):
        table.add_row(name, first_line(group, name))
    Console().print(table)


def check_writable(folder: Path) -> None:
    """Makes sure that a run folder can be made, before Hydra tries.

    Raises:
        UserError: If something in the way is not a folder, or may not be written to.
    """
    folder = folder.absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is in the way of the run folder: it is a file. Try hydra.run.dir=OTHER_FOLDER.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} may not be written to. Choose another place: hydra.run.dir=OTHER_FOLDER.")
    if shutil.disk_usage(existing).free < LEAST_ROOM:
        raise UserError(f"There is no room left at {existing}. Make some, or try hydra.run.dir=OTHER_FOLDER.")
