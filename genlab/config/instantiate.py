"""From config to objects: the one place that calls Hydra's `instantiate`, and the checks before it."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import logging
import re
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.models.base import GenerativeModel

# What a stranger's config may build: classes of these modules. Never `torch.*` (torch.load and torch.hub execute what
# they are given), and nothing that no loaded run needs: judges, loggers and callbacks read and write files.
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
    """Refuses a foreign config that names anything outside the allow-list, or could name it later.

    The name is tested before any import, the identity of what it leads to afterwards: else
    `torch.nn.modules.module.torch.hub.load` would pass as `torch.nn.*`. What is allowed by default are classes, and
    single functions by name: others of the same modules write files.

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
        if not isinstance(target, str) or not _matches(target, (*ALLOWED_TARGETS, *allow)):
            raise refuse(path, str(target), str(target))
    for path, target in nodes:
        found = locate(target, path)
        identity = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', '?')}"
        ours = _matches(identity, ALLOWED_TARGETS if inspect.isclass(found) else ALLOWED_FUNCTIONS)
        if not ours and not _matches(identity, allow):
            raise refuse(path, target, identity)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_plain(config: Any) -> None:
    """Refuses a foreign config that is not what it looks like.

    Saved configs are resolved. A `${...}` left in one would be resolved when it is built, after the look at its
    targets: `${oc.create:...}` makes new ones, `${oc.env:...}` reads secrets. Shared or circular containers can keep a
    walk busy for ever.

    Raises:
        UserError: If it holds anything but containers, texts and numbers, an interpolation, or far too much.
    """
    nodes = 0
    left: list[tuple[Any, int]] = [(config, 0)]
    while left:
        value, level = left.pop()
        nodes += 1
        if nodes > MOST_NODES or level > MOST_LEVELS:
            raise UserError("The run's config is nested or repeated without end, which no saved config is.")
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

    logger = logging.getLogger("hydra.utils")  # says the same once more, on three lines
    logging_before, logger.disabled = logger.disabled, True
    try:
        return get_object(target)
    except Exception as error:  # whatever importing foreign code raises
        cause = error.__cause__ or error
        raise UserError(f"{path}{'.' if path else ''}_target_={target} cannot be imported: {cause}") from error
    finally:
        logger.disabled = logging_before


def check_signatures(config: Any, path: str = "") -> None:
    """Holds every `_target_`'s keys against what it takes, before any data are read.

    Raises:
        UserError: Names the first key that is unknown (with the nearest that is not) or missing.
    """
    for place, node in targets(config, path):
        for flag, kind in RESERVED.items():
            if flag in node and not isinstance(node[flag], kind):
                raise UserError(f"{place}.{flag} must be a {kind.__name__}, got {node[flag]!r}.")
        found = locate(str(node["_target_"]), place)
        try:
            parameters = inspect.signature(found).parameters
        except (TypeError, ValueError):  # some built-ins have none
            continue
        given = {k for k in node if not k.startswith("_") and not _is_of_a_player(k, place)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key in sorted(given - parameters.keys()):
                near = difflib.get_close_matches(key, parameters, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f"; it takes {', '.join(parameters)}."
                raise UserError(f"{place}: {node['_target_']} takes no {key!r}{hint}")
        if not node.get("_partial_") and "_args_" not in node:
            required = {k for k, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            for key in sorted(required - given):
                raise UserError(f"{place}: {node['_target_']} needs {key!r}. Set {place}.{key}=...")


def constructor_hints(found: Any) -> dict[str, Any]:
    """The types that a class's constructor is annotated with; empty where they cannot be resolved."""
    try:
        return typing.get_type_hints(found.__init__)
    except (AttributeError, NameError, TypeError):
        return {}


def _is_of_a_player(key: str, place: str) -> bool:
    """Whether a key of the node at a dotted place is an optimizer or a schedule of the model's."""
    return place.partition(".")[0] == "model" and PLAYERS.fullmatch(key) is not None


def build_model(config: dict[str, Any]) -> GenerativeModel:
    """Builds a method of its config, and gives its players their optimizers.

    A method says what its players are; `g_optimizer`, `g_scheduler` and their like, wherever they stand below `model`,
    are no arguments of its constructor. Those of a `first_stage`, which is frozen, are left out.

    Raises:
        UserError: If the config describes no method, or a player has no optimizer.
    """
    from genlab.models.base import GenerativeModel

    found: dict[str, Any] = {}

    def parts(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node
        own = {key: value for key, value in node.items() if PLAYERS.fullmatch(key) and "_target_" in node}
        if not path.startswith("first_stage"):
            found.update({f"{path}{key}": value for key, value in own.items()})
        return {key: parts(value, f"{path}{key}.") for key, value in node.items() if key not in own}

    model = instantiate(parts(config, ""))
    if not isinstance(model, GenerativeModel):
        raise UserError(f"model._target_ must name a genlab model, got {config['_target_']}.")
    model.use_optimizers({key: instantiate(value) for key, value in found.items()})
    return model


def instantiate(config: Any, **extra: Any) -> Any:
    """Builds what a plain, resolved config describes.

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
        # Our own constructors explain what is wrong with their arguments; Hydra's wrapping adds only noise.
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise UserError(str(error.__cause__)) from error
        raise
