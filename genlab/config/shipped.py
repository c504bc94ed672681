"""The folder of the shipped configs: one place for Hydra, the lists of options and the schema."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import genlab
from genlab.errors import UserError


@cache
def config_dir() -> Path:
    """The folder of the shipped configs: in the package of an installed wheel, beside the package in a checkout.

    It follows from the place of genlab's code alone, so that code and configs are always of one version.

    Raises:
        UserError: If neither folder exists.
    """
    package = Path(genlab.__file__).resolve().parent
    inside, beside = package / "configs", package.parent / "configs"
    if inside.is_dir():
        return inside
    if beside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return beside
    raise UserError(f"genlab's configs are missing: there is no folder {inside} or {beside}. Install genlab again.")


def options(group: str) -> list[str]:
    """The shipped options of a config group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def read_option(group: str, name: str) -> dict[str, Any]:
    """The content of an option's yaml, without composition."""
    import yaml

    return yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text()) or {}
