"""Keys that nothing reads, found in a composed config before any work. Imports no torch.

A key is read if it is one of the schema's (the classes of the nodes with a `_target_` check their own), or if an
interpolation of a key that is read refers to it: the parts of a model, such as its networks, are read in no other way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from genlab.commands import program
from genlab.config import guesses, schema
from genlab.config.schema import PARTS
from genlab.config.shipped import config_dir
from genlab.errors import UserError

log = logging.getLogger("genlab")
BUILT = ("callbacks", "logger", "derive")  # groups whose entries are objects
REFERENCE = re.compile(r"\$\{\s*(?:oc\.select:\s*|oc\.dict\.\w+:\s*)?(\.*[\w@.\[\]-]*)(:)?")


def check(config: Any, hydra: Any) -> None:
    """Refuses a composed config with a key that nothing reads.

    Args:
        config: As Hydra composed it, interpolations included; a section `hydra` in it is left out.
        hydra: Hydra's own section.

    Raises:
        UserError: Names the first such key and, if it is known, the one that was meant.
    """
    from omegaconf import OmegaConf

    raw = containers(config)
    texts: Any = OmegaConf.to_container(hydra.overrides, resolve=False)  # they may hold interpolations, as texts
    overrides = [*texts["task"], *texts["hydra"]]
    typed = _typed(overrides)
    known = {f.name for f in fields(schema.TrainConfig)}
    roots = {**_roots(raw), "hydra": OmegaConf.to_container(hydra, resolve=False)}
    read = _reached({**raw, "hydra": roots["hydra"]}, roots)
    missing = [f.name for f in fields(schema.TrainConfig) if f.type != "Any" and f.name not in raw]
    if missing:
        raise UserError(f"Every run reads {missing[0]}, so it cannot be left out by ~{missing[0]}.")
    names = [
        *(key for key in raw if key not in known),
        *(f"{name}.{key}" for name, own in schema.SECTIONS.items() for key in _keys(raw.get(name)) if key not in own),
        *_unread_in_stages(raw.get("stages"), known),
        *(key for key in _unread_in_hydra(hydra, "hydra") if any(t == key or t.startswith(f"{key}.") for t in typed)),
        *(key for key in _typed(o for o in overrides if str(o).startswith("+")) if key.partition(".")[0] in PARTS),
        *(f"{name}.{key}" for name in BUILT for key, node in (_items(raw.get(name))) if not _builds(node)),
        *(key for key in typed if key.startswith("metrics.") and "_target_" not in _keys(raw.get("metrics"))),
        *_unread_of_files(raw, hydra.runtime.choices),
    ]
    for name in names:
        if not _is_read(name, read):
            raise _refusal(name, typed.get(name, "..."), raw, read, hydra.runtime.choices)
    # A part may have keys for networks that this method does not use: a sweep over methods sets them for all.
    for name in typed:
        if name.partition(".")[0] in PARTS and not _is_read(name, read):
            _warn(str(_refusal(name, typed[name], raw, read, hydra.runtime.choices)))


@cache
def _warn(sentence: str) -> None:
    """Warns once of a key without effect."""
    log.warning("%s", sentence)


def refusal(key: str, value: str, config: Any) -> UserError:
    """The error for a key that a composed config does not have, with its cure."""
    raw = containers(config)
    return _refusal(key, value, raw, _reached(raw, _roots(raw)), config.hydra.runtime.choices)


def containers(config: Any) -> dict[str, Any]:
    """The plain containers of a composed config without Hydra's own section, with interpolations as texts."""
    return {str(key): _raw(config._get_node(key)) for key in config if key != "hydra"}


def _refusal(key: str, value: str, raw: dict[str, Any], read: Collection[str], choices: Any) -> UserError:
    groups = sorted(path.name for path in config_dir().iterdir() if path.is_dir())
    keys = [k for k in guesses.dotted(raw) if k.partition(".")[0] not in PARTS or _is_read(k, read)] + ["hydra.run.dir"]
    chosen = {str(group).partition("@")[0]: option for group, option in choices.items()}
    composed = " ".join(f"{group}={chosen[group]}" for group in ("model", "network", "data") if chosen.get(group))
    told = "" if key.startswith("metrics.") else guesses.cure(key, value, keys, groups)
    if not told and key.partition(".")[0] in (*PARTS, "metrics"):
        told = "Leave it out."
    told = told or f"{program('train')} --help shows the keys."
    return UserError(f"Nothing reads {key} in {composed}. {told}")


def _roots(raw: dict[str, Any]) -> dict[str, Any]:
    """The parts of the config that code reads: all of the schema but the parts of models."""
    known = {f.name for f in fields(schema.TrainConfig)}
    return {key: value for key, value in raw.items() if key in known and key not in PARTS}


def _typed(overrides: Iterable[str]) -> dict[str, str]:
    """The keys of typed overrides and their values; without deletions."""
    found = {}
    for override in overrides:
        key, equals, value = str(override).partition("=")
        if equals and not key.startswith("~"):
            found[key.lstrip("+").partition("@")[0]] = value
    return found


def _raw(node: Any) -> Any:
    from omegaconf import OmegaConf

    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=False) if not node._is_none() else None
    return node._value() if node is not None else None


def _keys(node: Any) -> Collection[str]:
    return node.keys() if isinstance(node, dict) else ()


def _items(node: Any) -> Collection[tuple[str, Any]]:
    return node.items() if isinstance(node, dict) else ()


def _builds(node: Any) -> bool:
    """Whether an entry of a group of objects is one, or is left out."""
    return node is None or (isinstance(node, str) and "${" in node) or "_target_" in _keys(node)


def _unread_in_stages(stages: Any, known: set[str]) -> Iterator[str]:
    for i, stage in enumerate(stages if isinstance(stages, list) else ()):
        for key, value in _items(stage):
            if key != "name" and (key not in known or key in PARTS):
                yield f"stages.{i}.{key}"
            own = schema.SECTIONS.get(key)
            yield from (f"stages.{i}.{key}.{inner}" for inner in _keys(value) if own and inner not in own)


def _unread_in_hydra(node: Any, path: str) -> Iterator[str]:
    """The keys of Hydra's typed nodes beyond their types'."""
    from omegaconf import DictConfig

    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    kind = node._metadata.object_type
    own = {f.name for f in fields(kind)} if is_dataclass(kind) else None
    for key in map(str, node):
        if own is not None and key not in own:
            yield f"{path}.{key}"
        yield from _unread_in_hydra(node._get_node(key), f"{path}.{key}")


def _unread_of_files(raw: dict[str, Any], choices: Any) -> Iterator[str]:
    """Keys below `network` that no shipped option has and no network refers to, as an experiment may misspell one.

    An option of the user's own may have keys of its own.
    """
    chosen = next((option for group, option in choices.items() if str(group).partition("@")[0] == "network"), None)
    if chosen in _shipped("network"):
        used = _reached(raw, raw)
        for key in _keys(raw.get("network")):
            if not any(key in own for own in _shipped("network").values()) and not _is_read(f"network.{key}", used):
                yield f"network.{key}"


@cache
def _shipped(group: str) -> dict[str, set[str]]:
    """The shipped options of a group, and the keys of each."""
    import yaml

    paths = (config_dir() / group).glob("*.yaml")
    return {path.stem: set(yaml.safe_load(path.read_text(encoding="utf-8")) or ()) for path in paths}


def _is_read(name: str, read: Collection[str]) -> bool:
    """Whether a key, a part of it or a node around it is referred to."""
    return any(name == r or name.startswith(f"{r}.") or r.startswith(f"{name}.") for r in read)


def _reached(raw: dict[str, Any], roots: dict[str, Any]) -> set[str]:
    """All keys that interpolations refer to, from the roots on."""
    found: set[str] = set()
    left = [(key, value) for key, value in roots.items()]
    while left:
        path, value = left.pop()
        for name in _references(path, value):
            if name not in found:
                found.add(name)
                left.append((name, _select(raw, name)))
    return found


def _references(path: str, value: Any) -> Iterator[str]:
    """The absolute keys that the interpolations in a node at a path refer to."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _references(f"{path}.{key}", part)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _references(f"{path}.{i}", part)
    elif isinstance(value, str) and "${" in value:
        for name, resolver in REFERENCE.findall(value):
            if resolver or not name.strip("."):
                continue
            dots = len(name) - len(name.lstrip("."))
            key = re.sub(r"\[(\w+)\]", r".\1", name.lstrip(".")).rstrip(".")
            base = path.split(".")[: len(path.split(".")) - dots] if dots else []
            yield ".".join([*base, key])


def _select(raw: Any, name: str) -> Any:
    node = raw
    for part in name.split("."):
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node
