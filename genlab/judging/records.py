"""The format of score files, and the search for runs to score. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genlab.errors import UserError
from genlab.files import run_path

FORMAT = 1  # of the files in scores/


def find_runs(named: Sequence[str | Path]) -> list[Path]:
    """Runs and checkpoints at the given paths; a folder of runs (a multirun) gives all runs in it.

    Raises:
        UserError: If nothing is named, or a folder holds no run.
    """
    if not named:
        raise UserError("Say what to score: run=outputs/latest, several run=..., or real=PATH fake=PATH.")
    found: dict[Path, Path] = {}
    for path in map(run_path, named):
        alone = path.is_file() or not path.exists() or (path / "checkpoints").is_dir()
        runs = [path] if alone else runs_in(path)  # `find_run` reports an invalid path
        if not runs:
            raise UserError(f"{path} is neither a run folder nor a folder of runs: nothing in it holds a run.json.")
        found |= {run.resolve(): run for run in runs if run.resolve() not in found}
    return list(found.values())


def runs_in(folder: Path, depth: int = 2) -> list[Path]:
    """The run folders below a folder (multiruns and stages included), without links and hidden folders."""
    if (folder / "run.json").is_file():
        return [folder]
    below = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]
    return [run for p in sorted(below, key=_natural) for run in runs_in(p, depth - 1)] if depth >= 0 else []


def _natural(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else 10**9, path.name)  # multirun folders are called 0, 1, ..., 10
