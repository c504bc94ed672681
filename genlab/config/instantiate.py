"""Builds objects from configs: the only call of Hydra's `instantiate`, and the checks before it."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import logging
import re
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from genlab.config import guesses
from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.data.derive import Derivation
    from genlab.data.module import ArrayData
    from genlab.models.base import GenerativeModel

# Modules whose classes a stranger's config may build. Not `torch.*` (torch.load and torch.hub execute code), and no
# judges, loggers or callbacks: they read and write files, and no loaded run needs them.
ALLOWED_TARGETS = (
    "genlab.data.*",
    "genlab.engine.schedules.*",
    "genlab.losses.*",
    "genlab.models.*",
    "genlab.networks.*",
    "genlab.sampling.*",
    "torch.nn.*",
    "torch.optim.*",
    "torchvision.transforms.*",
    "zuko.*",
)
ALLOWED_FUNCTIONS = ("genlab.networks.init.spectrally_normalised",)  # named by shipped configs
RESERVED = {"_partial_": bool, "_recursive_": bool, "_args_": list, "_convert_": str}  # Hydra's keys beside `_target_`
PLAYERS = re.compile(r"(\w+_)?(optimizer|scheduler)")  # keys of a model that belong to its players
MOST_NODES, MOST_LEVELS = 100_000, 100  # of a stranger's config; shipped ones have hundreds of nodes and ten levels


def targets(config: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes with a `_target_` in a plain config, each with its dotted path, outermost first."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, (list, tuple)):
        for i, value in enumerate(config):
            yield from targets(value, f"{path}[{i}]")


def check_allowed(config: Any, allow: Sequence[str] = ()) -> None:
    """Refuses a foreign config with a target outside the allow-list, or with an interpolation that could add one.

    A target is tested before any import, and the imported object's own name afterwards; otherwise
    `torch.nn.modules.module.torch.hub.load` would pass as `torch.nn.*`. By default classes are allowed, and functions
    only if listed by name: other functions of these modules write files.

    Args:
        config: Plain containers.
        allow: Patterns that widen the list, such as "mypackage.*"; they allow functions too.

    Raises:
        UserError: Names the first target that is refused.
    """
    check_plain(config)

    def refuse(path: str, target: str, identity: str) -> UserError:
        alias = "" if identity == target else f" (which is {identity})"
        return UserError(
            f"The run's config names {target!r}{alias} at {path or 'the top'}, which a loaded run may not build. "
            f"If you trust it: allow_targets=[{','.join(sorted({target, identity}))}]"
        )

    nodes = [(path, node["_target_"]) for path, node in targets(config)]
    for path, target in nodes:
        if not isinstance(target, str) or not matches(target, (*ALLOWED_TARGETS, *allow)):
            raise refuse(path, str(target), str(target))
    for path, target in nodes:
        found = locate(target, path)
        identity = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', '?')}"
        ours = matches(identity, ALLOWED_TARGETS if inspect.isclass(found) else ALLOWED_FUNCTIONS)
        if not ours and not matches(identity, allow):
            raise refuse(path, target, identity)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted name fits one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_plain(config: Any) -> None:
    """Refuses a foreign config that is not plain and resolved.

    Saved configs are resolved. A `${...}` in one would be resolved when the config is built, after the check of its
    targets: `${oc.create:...}` creates new targets, `${oc.env:...}` reads secrets. Shared or circular containers can
    make a traversal endless.

    Raises:
        UserError: If it holds an interpolation, values other than containers, texts, numbers and null, or too many
            nodes or levels.
    """
    nodes = 0
    left: list[tuple[Any, int]] = [(config, 0)]
    while left:
        value, level = left.pop()
        nodes += 1
        if nodes > MOST_NODES or level > MOST_LEVELS:
            raise UserError("The run's config has too many nodes or levels for a saved config.")
        if isinstance(value, dict):
            left += [(part, level + 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple)):
            left += [(part, level + 1) for part in value]
        elif isinstance(value, str):
            if "${" in value:
                raise UserError(f"The run's config holds the interpolation {value[:80]!r}; saved configs hold none.")
        elif not isinstance(value, (int, float, type(None))):
            raise UserError(f"The run's config holds a {type(value).__name__}, and saved configs hold plain values.")


def locate(target: str, path: str) -> Any:
    """The class or function that a `_target_` names.

    Raises:
        UserError: If it cannot be imported.
    """
    from hydra.utils import get_object

    logger = logging.getLogger("hydra.utils")  # logs the same error again
    logging_before, logger.disabled = logger.disabled, True
    try:
        return get_object(target)
    except Exception as error:  # importing foreign code may raise anything
        cause = error.__cause__ or error
        raise UserError(f"{path}{'.' if path else ''}_target_={target} cannot be imported: {cause}") from error
    finally:
        logger.disabled = logging_before


def check_signatures(config: Any, path: str = "", known: Sequence[str] = ()) -> None:
    """Checks the keys of every `_target_` against its signature, before any data are read.

    Args:
        config: Plain containers.
        path: Its key in the config of the run.
        known: All keys of that config, among which an unknown one may be meant.

    Raises:
        UserError: Names the first unknown key (with the closest known one) or the first missing key.
    """
    for place, node in targets(config, path):
        for flag, kind in RESERVED.items():
            if flag in node and not isinstance(node[flag], kind):
                raise UserError(f"{place}.{flag} must be a {kind.__name__}, got {node[flag]!r}.")
        found = locate(str(node["_target_"]), place)
        try:
            parameters = parameters_of(found)
        except (TypeError, ValueError):  # some built-ins have no signature
            continue
        given = {k for k in node if not k.startswith("_") and not _is_of_every_model(k, place)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key in sorted(given - parameters.keys()):
                near = difflib.get_close_matches(key, parameters, n=1)
                takes = f"; it takes {', '.join(parameters) or 'nothing'}."
                cure = guesses.cure(f"{place}.{key}", str(node[key]), known, ())
                hint = f", did you mean {near[0]!r}?" if near else f"{takes} {cure}".rstrip()
                raise UserError(f"{place}: {node['_target_']} takes no {key!r}{hint}")
        _check_values(node, found, place)
        if not node.get("_partial_") and "_args_" not in node:
            required = {k for k, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            for key in sorted(required - given):
                raise UserError(f"{place}: {node['_target_']} needs {key!r}. Set {place}.{key}=...")


SIMPLE = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def _check_values(node: dict[str, Any], found: Any, place: str) -> None:
    """Checks the plain values of a node against the annotations of what it builds, where those are plain types.

    Null passes: constructors say themselves what is missing.

    Raises:
        UserError: Names the first value of another type.
    """
    for key, hint in constructor_hints(found).items():
        kinds = typing.get_args(hint) or (hint,)
        if isinstance(node.get(key), (dict, list, type(None))) or not all(kind in SIMPLE for kind in kinds):
            continue
        value = node[key]
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits:
            words = " or ".join(SIMPLE[kind] for kind in kinds)
            raise UserError(f"{place}.{key} must be {words}, got {value!r}.")


def parameters_of(found: Any) -> dict[str, inspect.Parameter]:
    """What a class or function takes, by name. A constructor with `**more` hands it to its base's, which is read too.

    Raises:
        TypeError: If it has no signature.
        ValueError: Likewise.
    """
    taken = dict(inspect.signature(found).parameters)
    bases = found.__mro__[1:] if inspect.isclass(found) else ()
    for constructor in (vars(base)["__init__"] for base in bases if "__init__" in vars(base)):
        rest = next((name for name, p in taken.items() if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            break
        del taken[rest]
        _, *others = inspect.signature(constructor).parameters.items()  # without self
        taken = {**dict(others), **taken}
    return taken


def constructor_hints(found: Any) -> dict[str, Any]:
    """Type hints of a class's constructor; empty if they cannot be resolved."""
    try:
        return typing.get_type_hints(found.__init__)
    except (AttributeError, NameError, TypeError):
        return {}


def _is_of_every_model(key: str, place: str) -> bool:
    """Whether a key of the node at a dotted path is read for every model, and is no argument of its constructor."""
    if place.startswith("metrics.more."):
        return key in ("feeds", "download")
    if key == "given":
        return place.rpartition(".")[2] in ("model", "first_stage")
    return place.partition(".")[0] == "model" and PLAYERS.fullmatch(key) is not None


def build_model(config: dict[str, Any], scheduler: dict[str, Any] | None = None) -> GenerativeModel:
    """Builds a model from its config, and gives its players their optimizers.

    Keys such as `g_optimizer` and `g_scheduler`, at any depth below `model`, are no arguments of constructors: they go
    to `use_optimizers`. Those of a `first_stage`, which is frozen, are left out.

    Args:
        config: The section `model` of a run's config.
        scheduler: The learning-rate schedule of all players that have none of their own.

    Raises:
        UserError: If the config describes no genlab model, a player has no optimizer, or the schedule has no player.
    """
    from genlab.models.base import GenerativeModel

    found: dict[str, Any] = {}

    def parts(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node
        own = {key: value for key, value in node.items() if PLAYERS.fullmatch(key) and "_target_" in node}
        if not path.startswith("first_stage"):
            found.update({f"{path}{key}": value for key, value in own.items()})
        left_out = {*own, "given"} if not path or path.endswith("first_stage.") else own
        return {key: parts(value, f"{path}{key}.") for key, value in node.items() if key not in left_out}

    model = instantiate(parts(config, ""))
    if not isinstance(model, GenerativeModel):
        raise UserError(f"model._target_ must name a genlab model, got {config['_target_']}.")
    inner: Any = model
    node: Any = config
    while node:  # of the model and its first stages
        inner.given = tuple(node.get("given") or inner.given)
        inner, node = getattr(inner, "first_stage", None), node.get("first_stage")
    model.use_optimizers({key: instantiate(value) for key, value in _scheduled(found, scheduler).items()})
    return model


def _scheduled(found: dict[str, Any], scheduler: dict[str, Any] | None) -> dict[str, Any]:
    """The optimizers and schedules of players by config key, with a schedule for those that have none.

    Raises:
        UserError: If all of them have one, or there are no players; or a player's schedule is no node of a config.
    """
    from genlab.engine.players import schedule_of

    own = [key for key in found if not key.endswith("optimizer")]
    for key in own:
        if not isinstance(found[key], (dict, type(None))):
            raise UserError(
                f"model.{key} must be a schedule with a _target_, got {found[key]!r}. For an option of the group "
                f"scheduler: +scheduler@model.{key}=cosine. For none: ~model.{key}"
            )
    if not scheduler:
        return found
    free = {schedule_of(key): scheduler for key in found if key.endswith("optimizer")}.keys() - found.keys()
    if not free:
        cure = f" Leave out those of the players: {' '.join(f'~model.{key}' for key in own)}." if own else ""
        raise UserError(f"scheduler has no effect: no player of this model is without a schedule of its own.{cure}")
    return {**found, **dict.fromkeys(sorted(free), scheduler)}


def build_data(config: dict[str, Any]) -> ArrayData:
    """Builds the data of a run's config, with its derived columns."""
    data: ArrayData = instantiate(config["data"])
    data.derive_columns(derivations(config))
    return data


def derivations(config: dict[str, Any]) -> dict[str, Derivation]:
    """The derived columns of a run's config, by name."""
    return {name: instantiate(node) for name, node in (config.get("derive") or {}).items() if node}


def instantiate(config: Any, **extra: Any) -> Any:
    """Builds the object of a plain, resolved config.

    Args:
        config: Plain containers with `_target_` nodes, checked beforehand.
        **extra: Further arguments of the outermost target.

    Returns:
        The object; containers come as lists and dicts.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate(config, _convert_="all", **extra)
    except InstantiationException as error:
        # Our own constructors explain the error in their arguments; Hydra's wrapping adds only noise.
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise UserError(str(error.__cause__)) from error
        raise
