"""Composition of configs: overrides, groups and their options, resolution. Imports no torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from genlab.config import conditioning, guesses, numbers, schema, speed, tricks, unread
from genlab.config.arguments import expanded
from genlab.config.schema import PARTS
from genlab.config.shipped import config_dir, options, read_option
from genlab.errors import UserError, install

# Keys whose values are paths. Hydra's grammar takes only ASCII letters, digits and a few signs, so others are quoted.
# A background is no path, but may be "#ffffff".
PATH_KEYS = re.compile(
    r"resume|init_from|first_stage|data(\.\w+)*\.(root|background)|metrics\.inception_weights|hydra\.(run|sweep)\.dir"
)
OPEN_KEYS = re.compile(r"metrics\.more\.\w+(\.\w+)*")  # where one gives names, so that Hydra needs no plus
GROUPS = ("model", *PARTS, "conditioning", "data", "derive", "metrics")


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Puts the values of path keys into quotes where Hydra's grammar needs it, with `~` as the home folder.

    Keys with a name of one's own, as in `metrics.more.NAME`, need no plus.

    Raises:
        UserError: If a key is missing, or the value of a group is no name (Hydra would show a traceback).
    """
    quoted = []
    for argument in arguments:
        # Several data sets in one are chosen as one is; Hydra has their options in a group without networks and scores.
        argument = re.sub(r"^data@(?=data\.)", f"{schema.PARTS_OF_DATA}@", argument)
        key, equals, value = argument.partition("=")
        if equals and not key.lstrip("+~"):
            raise UserError(f"{argument!r} names no key; overrides are written key=value.")
        group = key.lstrip("+~").partition("@")[0]
        if equals and ("/" in group or (config_dir() / group).is_dir()) and not _chooses(argument):
            known = options(group)
            none = f"{group}=none" if "none" in known else f"leave {group} out"
            raise UserError(f"{argument} names no option; choose one of {', '.join(known) or 'the group'}, or {none}.")
        if equals and PATH_KEYS.fullmatch(key.lstrip("+")) and value[:1] not in ("'", '"', "$"):
            value = _quoted(expanded(value))
        plus = "++" if equals and OPEN_KEYS.fullmatch(key) else ""
        quoted.append(f"{plus}{key}{equals}{value}")
    _check_parts(quoted)
    return quoted


def _quoted(path: str) -> str:
    """A path as Hydra's grammar reads it: a backslash is one character, but before a quote it stands for two."""
    if not re.search(r"[^\w./\-]", path, re.ASCII):
        return path
    return "'" + re.sub(r"\\+(?='|$)", lambda found: 2 * found.group(), path).replace("'", "\\'") + "'"


def _check_parts(arguments: Sequence[str]) -> None:
    """Refuses a data set of several without one of them."""
    chosen = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    name = chosen.get("data")
    if name not in options("data"):
        return
    lines = [line for line in read_option("data", name)["defaults"] if isinstance(line, dict)]
    places = [key.partition("@")[2] for line in lines for key, value in line.items() if value == "???"]
    missing = [place for place in places if f"{schema.PARTS_OF_DATA}@data.{place}" not in chosen]
    if missing:
        example = " ".join(f"data@data.{place}=digits" for place in places)
        raise UserError(f"data={name} is made of others: choose each, as in {example}.")


def _chooses(argument: str) -> bool:
    """Whether an override gives a group a value that Hydra accepts: a name, a list of names, or keys to merge."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
        value = override.value()
    except HydraException:  # no valid override; Hydra's own message is clear
        return True
    if override.is_delete():
        return isinstance(value, str)
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    return all(
        isinstance(c, (str, dict, QuotedString)) or (isinstance(c, list) and all(isinstance(i, str) for i in c))
        for c in choices
    )


PLUGINS = {  # pattern of an override -> the Hydra plugin's module, its name, and the extra that installs it
    r"\+?search=optuna\w*|hydra/sweeper=optuna": ("hydra_optuna_sweeper", "Optuna's sweeper", "optuna"),
    r"hydra/launcher=joblib": ("hydra_joblib_launcher", "the joblib launcher", "sweep"),
    r"hydra/launcher=(slurm|submitit_\w+)": ("hydra_submitit_launcher", "the submitit launcher", "slurm"),
}


def check_plugins(arguments: Sequence[str]) -> None:
    """Checks that the Hydra plugins and the SLURM commands that a sweep needs are installed.

    Raises:
        UserError: If one is missing.
    """
    from importlib.util import find_spec

    for pattern, (module, what, extra) in PLUGINS.items():
        asked = [a for a in arguments if re.fullmatch(pattern, a)]
        try:
            missing = bool(asked) and find_spec(f"hydra_plugins.{module}") is None
        except ModuleNotFoundError:  # no plugin is installed
            missing = True
        if missing:
            raise UserError(f"{asked[0]} needs {what} for Hydra: {install(extra)}")
    slurm = [a for a in arguments if a in ("hydra/launcher=slurm", "hydra/launcher=submitit_slurm")]
    if slurm and shutil.which("sbatch") is None:
        raise UserError(f"{slurm[0]} hands jobs to SLURM, and there is no sbatch here. Type it on a login node.")


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> dict[str, Any]:
    """Composes and resolves a config without running anything, for tests, tools and notebooks.

    Args:
        overrides: As on the command line, `["model=began", "trainer.max_steps=100"]`.
        config_name: The primary config.

    Returns:
        Plain containers, see `resolve`.
    """
    config = composed(overrides, config_name)
    return resolve(config, config.hydra)


def composed(overrides: Sequence[str] = (), config_name: str = "train") -> Any:
    """A config as Hydra composes it, with Hydra's own section and the interpolations.

    Raises:
        UserError: If a key does not exist (says where the thing is set), or a value has the wrong type.
        hydra.errors.CompactHydraException: For other mistakes, with messages of Hydra's that need no help.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import CompactHydraException, ConfigCompositionException

    schema.register()
    typed = quote_paths(overrides)
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra_compose(config_name, typed, return_hydra_config=True)
    except ConfigCompositionException as error:
        found = re.match(r"Could not override '([^']+)'\.\nTo append to your config", str(error))
        if found is None:
            raise _of_wrong_type(error) or error from None
        key = found.group(1)
        value = next((a.partition("=")[2] for a in typed if a.partition("=")[0] == key), "...")
        try:
            config = _composed_once(config_name, *(a for a in typed if a.partition("=")[0] != key))
        except CompactHydraException:
            config = _composed_once(config_name)
        raise unread.refusal(key, value, config) from error


KINDS = {"Integer": "a whole number", "Float": "a number"}  # by Hydra's names


def _of_wrong_type(error: Exception) -> UserError | None:
    """The error for a value of the wrong type; None for other errors of Hydra's."""
    from omegaconf.errors import ValidationError

    found = re.match(r"Error merging override \+*([^=]+)=(.*)", str(error))
    if found is None or not isinstance(error.__cause__, ValidationError):
        return None
    (key, value), reason = found.groups(), str(error.__cause__).partition("\n")[0]
    kind = re.search(r"converted to (\w+)|valid (bool)", reason)
    if kind is None:
        return UserError(f"{key}={value} cannot be: {reason.rstrip('.')}.")
    number = float(value) if re.fullmatch(r"\d+(\.\d+)?e\+?\d+", value) else 0.5
    hint = f" Try {key}={int(number)}." if kind.group(1) == "Integer" and number.is_integer() else ""
    return UserError(f"{key} must be {KINDS.get(kind.group(1), 'true or false')}, got {value}.{hint}")


@cache
def _composed_once(config_name: str, *overrides: str) -> Any:
    """A composed config to look at, the same object each time."""
    return composed(overrides, config_name)


def job_of(overrides: Sequence[str], position: int) -> list[str]:
    """The overrides of one job of a sweep: of each sweep the value at a position (0: the first, -1: the last).

    Raises:
        hydra.errors.OverrideParseException: If an override is none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    chosen = []
    for override in OverridesParser.create().parse_overrides(quote_paths(overrides)):
        if not override.is_sweep_override():
            chosen.append(str(override.input_line))
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
            chosen.append(f"{override.get_key_element()}={values[position]}")
    return chosen


def resolve(config: Any, hydra: Any) -> dict[str, Any]:
    """Converts a composed config to plain containers without interpolations, as runs save it.

    `PARTS` are left out: their resolved values stand in `model`. `choices` holds the chosen option of each group.

    Args:
        config: As Hydra composed it.
        hydra: Hydra's own section.

    Raises:
        UserError: If nothing reads a key, an interpolation fails (the chosen network may lack a part that the model
            needs), a section is missing or no mapping, or a number is out of its range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    unread.check(config, hydra)
    choices = dict(hydra.runtime.choices)
    left_out = {*PARTS, "hydra"}
    resolved: dict[str, Any] = {"choices": {k: v for k, v in choices.items() if "/" not in k and k != "hydra"}}
    for key in config:
        if key in left_out:
            continue
        try:
            value = config[key]  # resolves a node that is an interpolation itself
            resolved[str(key)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise UserError(_missing_role(str(error), resolved["choices"]) or str(error)) from error
    for node in ("data", "model"):
        if resolved.get(node) in (None, "???"):
            raise UserError(f"{node} is empty. Choose one: {', '.join(options(node))}.")
    for key, value in resolved.items():
        if key in ("data", "model", *schema.SECTIONS) and not isinstance(value, dict):
            raise UserError(f"{key} holds keys of its own, {key}.KEY=..., and cannot be {value!r} itself.")
    _expand_paths(resolved)
    numbers.check({"network": unread.containers(config).get("network")})  # under the keys that are typed
    numbers.check(resolved)
    speed.check(resolved["speed"])
    if isinstance(resolved.get("metrics"), dict) and "_target_" not in resolved["metrics"]:
        resolved["metrics"] = None  # metrics=none; other keys are an experiment's, for a judge
    typed = any(re.match(r"[+~]*conditioning\b", override) for override in hydra.overrides.task)
    resolved = conditioning.told(resolved, typed)
    if resolved.get("tricks"):
        resolved["model"] = tricks.wrapped(resolved["model"], resolved["tricks"])
    chosen = {k: v for k, v in resolved["choices"].items() if v is not None}
    resolved["choices"] = {k.removesuffix(f"@_global_.{k.partition('@')[0]}"): v for k, v in chosen.items()}
    return resolved


def _expand_paths(config: dict[str, Any]) -> None:
    """Puts the home folder in place of `~` in the paths of a resolved config, which may come from files."""
    for path in [path for path in guesses.dotted(config) if PATH_KEYS.fullmatch(path)]:
        *above, last = path.split(".")
        node = config
        for key in above:
            node = node[key]
        if isinstance(node[last], str):
            node[last] = expanded(node[last])


def _missing_role(message: str, choices: dict[str, str]) -> str | None:
    """The message for a model that needs a part which the network family lacks; None for other errors."""
    found = re.search(r"(?:key '|trying to access )network\.(\w+)", message)
    if not found:
        return None
    role = found.group(1)
    fits = [name for name in options("network") if role in read_option("network", name)]
    network = next((v for k, v in choices.items() if k.startswith("network")), None)
    return (
        f"model={choices.get('model')} needs a network with a part '{role}', which network={network} does not have. "
        f"It fits: {', '.join(f'network={name}' for name in fits)}."
    )


def insisted(model: str, group: str) -> str | None:
    """The option of another group that a model's config, or its base config, chooses; None if neither does.

    The command line overrides it, but the model may then lack the data that it needs.
    """
    for line in read_option("model", model).get("defaults", []):
        found = line.get(f"override /{group}@_global_.{group}") if isinstance(line, dict) else None
        if found is None and isinstance(line, str) and line != "_self_":
            found = insisted(line, group)
        if found is not None:
            return str(found)
    return None


def first_line(group: str, name: str) -> str:
    """An option's description: the first line of its yaml (after Hydra's `@package`) if that is a comment, else ""."""
    lines = (config_dir() / group / f"{name}.yaml").read_text().splitlines()
    first = next((line for line in lines if not line.startswith("# @package")), "")
    return first.lstrip("# ").removeprefix(f"configs/{group}/{name}.yaml: ") if first.startswith("#") else ""
