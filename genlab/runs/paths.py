"""Paths that a config names, checked before anything is imported that could read them. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genlab.config.shipped import config_dir, options, read_option
from genlab.errors import UserError
from genlab.runs.folder import find_run


def check_paths(config: dict[str, Any]) -> None:
    """Refuses a run to start from, and a folder or file of data, that does not exist.

    Of data it knows the shipped options whose yaml says in its head what `data.root` holds; all others check theirs
    when they are read.

    Args:
        config: Plain containers, resolved.

    Raises:
        UserError: If a path does not exist, or `data.root` is empty where the data need it.
    """
    for key in ("init_from", "first_stage"):
        if config.get(key):
            find_run(config[key])
    choices = config["choices"]
    for place, node in _places("data", config["data"]):
        name = choices.get("data") if place == "data" else choices.get(f"part_of_data@{place}")
        what = root_of(name) if name in options("data") else ""
        if not what or node.get("download") is True:
            continue
        if node["root"] is None:
            raise UserError(f"data={name} needs {place}.root=PATH. {what}")
        if not Path(node["root"]).expanduser().exists():
            raise UserError(f"{place}.root={node['root']} does not exist (in: data={name}). {what}")


def root_of(name: str) -> str:
    """The sentences on `data.root` in the head of a data set's yaml, else of its base's; "" without any."""
    lines = (config_dir() / "data" / f"{name}.yaml").read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = [line.lstrip("# ") for line in lines[:end]]
    sentences = [*head[:1], *re.split(r"(?<!al\.)(?<=\.)\s+", " ".join(head[1:]))]
    found = [sentence.rstrip(".") + "." for sentence in sentences if "data.root" in sentence]
    bases = [line for line in read_option("data", name).get("defaults", []) if line in options("data")]
    return " ".join(found or map(root_of, bases))


def _places(place: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings with a key `root`, in a config and below, with their places."""
    if "root" in node:
        yield place, node
    for key, child in node.items():
        if isinstance(child, dict):
            yield from _places(f"{place}.{key}", child)
