"""`stages` in a config: one full config per stage."""

from __future__ import annotations

import copy
from typing import Any

from genlab.errors import UserError


def stage_configs(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One full config per stage: the run's own, overridden by the keys of the stage.

    A stage is a mapping with a `name` and any top-level keys of a resolved config. A value with a `_target_` replaces
    the run's, other mappings are merged.

    Raises:
        UserError: If a stage has no name, or two have one.
    """
    configs: list[tuple[str, dict[str, Any]]] = []
    for i, stage in enumerate(config["stages"]):
        name = stage.get("name")
        if not name or name in [n for n, _ in configs]:
            raise UserError(f"Stage {i + 1} of `stages` needs a name of its own, got {name!r}.")
        own = {key: value for key, value in stage.items() if key != "name"}
        configs.append((name, copy.deepcopy({**config, "stages": None, **merged(config, own)})))
    return configs


def merged(config: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """The keys of a stage, each merged with the run's own."""
    return {key: _merge(config.get(key), value) for key, value in stage.items()}


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict) and "_target_" not in new:
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new
