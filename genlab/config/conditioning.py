"""`conditioning=...`: the networks of a model that is given columns are told them. Rewrites the config, once.

A model's yaml names the columns (`given`) and the networks that are told them, with the role of each (`told`: draws,
judges, encodes or reads). An option of the group names the wrappers for each role, first choice first; its other keys
are arguments of those wrappers that take them. The rewritten config holds the wrappers, the widened inputs and the
fields of the columns as plain numbers, so that a checkpoint is loaded without data, and a resumed run wraps nothing
twice.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from genlab.config.shipped import options, read_option
from genlab.config.stages import merged
from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.data.spec import DataSpec

ROLES = ("draws", "judges", "encodes", "reads")  # the last reads the conditions alone
USUAL = {"generator": "draws", "decoder": "draws", "discriminator": "judges", "critic": "judges", "encoder": "encodes"}


def told(config: dict[str, Any]) -> dict[str, Any]:
    """The config with wrappers around the networks that are told, without the keys `conditioning` and `told`.

    Args:
        config: Resolved.

    Raises:
        UserError: If there is nothing to tell, a network has no place for it, or the data do not say what a column is.
    """
    rest = {key: value for key, value in config.items() if key != "conditioning"}
    listed = config.get("stages")
    stages = [_told_stage(config, stage) for stage in listed] if isinstance(listed, list) else []
    if stages:
        rest["stages"] = [stage for stage, _ in stages]
    model, option = dict(config["model"]), config.get("conditioning")
    given, networks = list(model.get("given") or ()), model.pop("told", None)
    name, chosen = (config["choices"].get(group) for group in ("model", "conditioning"))
    tells: tuple[str, ...] = ()
    if networks or (given and option):
        tells = _checked_tells(model, networks or {}, name)
    if bool(networks) != bool(given) and (networks or option):
        lacks = "model.told names no network" if given else "model.given names no column"
        roles = ", ".join(f"{network}: {USUAL.get(network, ROLES[-1])}" for network in tells)
        cure = f"model.told={{{roles}}}" if given else "model.given=[y]"
        raise UserError(f"{lacks}, so that model={name} has nothing to tell. Try '{cure}', or leave both out.")
    if not given or not networks:
        if option and not any(told for _, told in stages):
            raise UserError(
                f"conditioning={chosen} has nothing to tell: model={name} is given no column. Leave it out."
            )
        return {**rest, "model": model}
    if not option:
        raise UserError(f"model={name} is given {', '.join(given)}: say how with conditioning=concat, or another.")
    facts = _facts(given, config, name)
    shared = {key: value for key, value in option.items() if key not in ROLES}
    _check_keys(option, shared, chosen)
    for network, role in networks.items():
        if role not in ROLES:
            raise UserError(f"model.told.{network} must be one of {', '.join(ROLES)}, got {role!r}.")
        wrappers = [_with(wrapper, shared, f"conditioning={chosen}") for wrapper in _list(option.get(role))]
        model[network] = _wrapped(model[network], wrappers, facts, f"conditioning={chosen}", f"model.{network}")
    return {**rest, "model": model}


def _told_stage(config: dict[str, Any], stage: Any) -> tuple[Any, bool]:
    """A stage with its networks told, as `told` does it for the run's own model, and whether it names any.

    A stage may have a `conditioning` of its own, with the keys of an option; else the run's holds for it.
    """
    model = stage.get("model") if isinstance(stage, dict) else None
    if not isinstance(model, dict) or not model.get("told"):
        return stage, False
    own = {key: value for key, value in stage.items() if key in ("data", "derive", "conditioning")}
    rewritten = told({**config, "stages": None, **merged(config, own), "model": model})
    return {**{key: value for key, value in stage.items() if key != "conditioning"}, "model": rewritten["model"]}, True


def _checked_tells(model: dict[str, Any], networks: dict[str, str], name: Any) -> tuple[str, ...]:
    """The networks that the method's training step tells.

    Raises:
        UserError: If it tells none, a named network is not among them, or one among them is not named and takes no
            conditions by itself.
    """
    from genlab.config.instantiate import locate

    tells = getattr(locate(model["_target_"], "model"), "tells", ())
    if not tells:
        raise UserError(
            f"model={name} is trained without conditions, so model.given and model.told do not go with it. Try one of "
            f"{', '.join(f'model={option}' for option in _telling_options())}; a method of your own names in `tells` "
            "the networks that its training step tells."
        )
    for network in networks:
        if network not in tells:
            raise UserError(
                f"model={name} tells its conditions to {' and '.join(tells)}, and not to {network}. Leave "
                f"model.told.{network} out."
            )
    for network in tells if networks else ():
        node = model.get(network)
        target = locate(node["_target_"], f"model.{network}") if isinstance(node, dict) else None
        if network not in networks and target is not None and not _takes_conditions(target):
            raise UserError(
                f"model={name} tells its conditions to {' and '.join(tells)}, and model.told lacks {network}, which "
                f"takes none by itself. Try +model.told.{network}={USUAL.get(network, ROLES[-1])}."
            )
    return tells


def _takes_conditions(network: type) -> bool:
    """Whether a class of networks is called with conditions beside its input."""
    try:
        inspect.signature(network.forward).bind(None, None, None)  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _telling_options() -> list[str]:
    """Some shipped models that are given columns by default, those with the shortest names."""
    found = [name for name in options("model") if read_option("model", name).get("told")]
    return sorted(found, key=lambda name: (len(name), name))[:5]


def _check_keys(option: dict[str, Any], shared: dict[str, Any], chosen: Any) -> None:
    """Refuses a key of an option that is no role, and that no wrapper of the option takes."""
    from genlab.config.instantiate import locate, parameters_of

    wrappers = [wrapper["_target_"] for role in ROLES for wrapper in _list(option.get(role))]
    taken = {name for target in wrappers for name in parameters_of(locate(target, f"conditioning={chosen}"))}
    for key in shared:
        if key not in taken:
            keys = ", ".join((*ROLES, *(name for name in shared if name in taken)))
            raise UserError(f"Nothing reads conditioning.{key} in conditioning={chosen}, which has {keys}.")


def _list(wrappers: Any) -> list[dict[str, Any]]:
    return [wrappers] if isinstance(wrappers, dict) else list(wrappers or ())


def _with(wrapper: dict[str, Any], shared: dict[str, Any], option: str) -> dict[str, Any]:
    """A wrapper's config with those of the option's own keys, such as `words`, that the wrapper takes."""
    from genlab.config.instantiate import locate

    taken = inspect.signature(locate(wrapper["_target_"], option)).parameters
    return {**{key: value for key, value in shared.items() if key in taken}, **wrapper}


def _wrapped(
    node: Any, wrappers: list[dict[str, Any]], facts: dict[str, Any], option: str, place: str
) -> dict[str, Any]:
    """A network's config inside the first of the wrappers that fits it."""
    from genlab.config.instantiate import locate

    for wrapper in wrappers:
        around = locate(wrapper["_target_"], option).around(node, locate(node["_target_"], place), facts)
        if around is not None:
            return {**wrapper, **around, "given": facts}
    names = ", ".join(wrapper["_target_"].rpartition(".")[2] for wrapper in wrappers) or "nothing"
    raise UserError(
        f"{option} has no way to tell {place} ({node.get('_target_')}), which takes none of {names}. Try another "
        "conditioning=, or another network=."
    )


def _facts(given: list[str], config: dict[str, Any], name: Any) -> dict[str, Any]:
    """The plain facts of the fields of the given columns."""
    spec = described(config)
    for column in given:
        if column not in spec.fields:
            data = config["choices"].get("data")
            hint = f"Set data.num_classes=, if data={data} has classes, or take data=digits." if column == "y" else ""
            hint = "Try data.labels=true." if hint and not config["data"].get("labels", True) else hint
            columns = ", ".join(spec.fields)
            raise UserError(f"model={name} is given {column}, and data={data} has {columns}. {hint}".strip())
    return {column: spec.fields[column].to_dict() for column in given}


def described(config: dict[str, Any]) -> DataSpec:
    """The fields of the columns as the config states them, before any data are read.

    Raises:
        UserError: If a derived column cannot be made of such data.
    """
    from genlab.config.instantiate import derivations, locate
    from genlab.data.derive import with_derived
    from genlab.data.spec import DataSpec

    data = config["data"]
    if "_target_" in data:
        locate(data["_target_"], "data")  # a module of one's own may define kinds of its own
    classes = data.get("num_classes") if data.get("labels", True) else None
    spec = DataSpec.of(data.get("kind") or "image", data["shape"], classes).with_stated(data.get("columns"))
    return with_derived(spec, derivations(config))
