"""Run folders: their files, how to find them, and loading a run's config, model and data."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import zipfile
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import genlab
from genlab.commands import quoted, short
from genlab.config.instantiate import build_data, build_model, check_allowed, check_signatures, locate, matches
from genlab.errors import UserError
from genlab.files import LATEST, FolderLock, existing_run, write_json, write_text

if TYPE_CHECKING:
    from genlab.data.module import ArrayData
    from genlab.models.base import GenerativeModel

log = logging.getLogger("genlab")
CHECKPOINTS = "checkpoints"
FIRST_STAGE = "first_stage"  # folder of the stage that a model brings along, in the run's own
CONFIG_KEYS = {"choices", "data", "model", "trainer", "optim", "ema", "checkpoint", "seed"}  # that every run has
TRAINING_KEYS = ("global_step", "loops", "callbacks", "optimizer_states")  # needed only to resume


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from in a run folder: last.ckpt, else the newest; None if there is none."""
    last = folder / CHECKPOINTS / "last.ckpt"
    if last.is_file():
        return last
    found = sorted((folder / CHECKPOINTS).glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def find_run(path: str | Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint of a path, which is a run folder or a `.ckpt` file.

    Raises:
        UserError: If there is no such path, or no checkpoint in the folder.
    """
    place = existing_run(path)
    if place.is_file():
        return place.resolve().parent.parent, place
    checkpoint = find_checkpoint(place)
    if checkpoint is None:
        staged = [p for p in place.glob("*/checkpoints") if find_checkpoint(p.parent)]
        if staged:  # a run in stages: its newest stage
            newest = max(staged, key=lambda p: p.stat().st_mtime).parent
            return newest.resolve(), find_checkpoint(newest) or Path()
        raise UserError(f"{place} holds no checkpoint yet ({CHECKPOINTS}/last.ckpt). Was the run stopped before one?")
    return place.resolve(), checkpoint


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of a run.

    Raises:
        UserError: If the folder holds none, or a damaged one.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml.")
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} cannot be read ({reason}).") from error
    missing = sorted(CONFIG_KEYS - config.keys()) if isinstance(config, dict) else ["keys"]
    if missing:
        raise UserError(f"{path} is damaged or no config of a run: it has no {', '.join(missing)}.")
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Saves a resolved config for people and for resuming."""
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=110))


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it, after a check of its check sums.

    Raises:
        UserError: If it is damaged, or was not written by genlab.
    """
    import torch

    from genlab.engine.state import checkpoint_section

    try:
        _check_whole(path)
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damage can raise zip, pickle, key and runtime errors in torch
        reason = str(error).partition("\n")[0][:200]
        others = sorted(p.name for p in path.parent.glob("*.ckpt") if p.name != path.name)
        hint = f" Others there: {', '.join(others)}." if others else ""
        raise UserError(f"{path} cannot be read, it is damaged or no checkpoint of genlab ({reason}).{hint}") from error
    checkpoint_section(checkpoint)
    return checkpoint


def check_resumable(checkpoint: dict[str, Any], path: Path) -> None:
    """Checks that a checkpoint holds the state of training, not only the weights.

    Raises:
        UserError: If something is missing.
    """
    missing = [key for key in TRAINING_KEYS if key not in checkpoint]
    if missing:
        raise UserError(
            f"{path} is damaged or was stripped: it has no {', '.join(missing)}, so it cannot be resumed. "
            f"A new run can start from its weights: init_from={quoted(path)}"
        )


def cpu_seconds(checkpoint: dict[str, Any]) -> float:
    """The CPU seconds that a checkpoint's training took; 0 for a run without a limit on them."""
    state = (checkpoint.get("callbacks") or {}).get("CleanStop") or {}
    return float(state.get("cpu_seconds", 0.0))


def record_of(folder: Path) -> dict[str, Any]:
    """The content of a run's `run.json`; empty if it is missing or cannot be read."""
    try:
        return dict(json.loads((folder / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _check_whole(path: Path) -> None:
    """Checks a checkpoint's bytes against their check sums, which torch writes but never reads (0.3 s per GiB).

    Raises:
        ValueError: If a record is damaged, or compressed (torch compresses none, and it may expand to any size).
        zipfile.BadZipFile: If it is no complete zip file.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise ValueError("it holds compressed records")
        if sum(r.file_size for r in records) > path.stat().st_size:
            raise ValueError("its records overlap")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the check sum of its record {damaged} is wrong")


def load_model(run: Any, device: str = "cpu", allow_targets: tuple[str, ...] = ()) -> GenerativeModel:
    """See `genlab.load`."""
    from genlab.data.spec import DataSpec

    _, path = find_run(run)
    check_device(device)
    checkpoint = read_checkpoint(path, device)
    section = checkpoint["genlab"]
    try:
        config = section["config"]["model"]
        _know_kinds(section["config"], allow_targets)
        check_allowed(config, allow_targets)
        check_signatures(config, "model")
        model = build_model(config)
        load_weights(model, checkpoint, path)
        load_averages(model, checkpoint, path)
        model.averages.settle()
        model.run_config = section["config"]
        if section.get("spec"):
            model.spec = DataSpec.from_dict(section["spec"])
    except UserError:
        raise
    except Exception as error:  # a stranger's checkpoint may hold anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The model that {path} describes cannot be built ({reason}).") from error
    return model.to(device).eval()


def check_device(device: str) -> None:
    """Refuses a device that torch does not have here.

    Raises:
        UserError: If it has none of that name.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(str(device).partition(":")[0], True):
        raise UserError(f"device={device} needs a GPU, and torch finds none here. Try device=cpu.")


def _know_kinds(config: dict[str, Any], allow_targets: tuple[str, ...]) -> None:
    """Imports the module of a run's data if that was allowed by name: it may define kinds of columns of its own."""
    target = (config.get("data") or {}).get("_target_")
    if isinstance(target, str) and matches(target, allow_targets):
        with suppress(UserError):  # not on this machine; if a kind is missing then, that is said
            locate(target, "data")


def load_averages(model: GenerativeModel, checkpoint: dict[str, Any], path: Path) -> None:
    """Puts a checkpoint's moving averages into a model.

    Raises:
        UserError: If the run kept averages and they are missing, or one does not fit the model; names the first.
    """
    section = checkpoint["genlab"]
    averages, live = section["ema"], model.state_dict()
    prefixes = tuple(f"{name}." for name in model.ema_modules)
    kept = section["config"].get("ema", {}).get("decay", 0) > 0 and any(key.startswith(prefixes) for key in live)
    if kept and not averages:
        raise UserError(f"{path} is damaged: the run kept moving averages, but the file holds none.")
    odd = sorted(key for key, value in averages.items() if key in live and live[key].shape != value.shape)
    if odd:
        raise UserError(f"{path} is damaged: the moving average of {odd[0]} has another shape than its weights.")
    model.averages.load(averages)


def load_weights(model: GenerativeModel, checkpoint: dict[str, Any], path: Path) -> None:
    """Puts a checkpoint's weights into a model.

    Raises:
        UserError: If they belong to another method or architecture; names the first tensor that does not fit.
    """
    found, wanted = checkpoint["state_dict"], model.state_dict()
    odd = sorted(found.keys() ^ wanted.keys()) or sorted(k for k in wanted if found[k].shape != wanted[k].shape)
    if odd:
        choices = checkpoint["genlab"]["config"].get("choices", {})
        of = ", ".join(f"{k}={choices[k]}" for k in ("model", "network", "data") if k in choices)
        raise UserError(
            f"{path} is a checkpoint of another method or architecture ({of or 'unknown'}): {odd[0]} does not fit. "
            f"Use the composition that it was made with."
        )
    model.load_state_dict(found)


def load_data(config: dict[str, Any], root: str | None = None, allow_targets: tuple[str, ...] = ()) -> ArrayData:
    """The data module of a run, prepared.

    Args:
        config: The run's resolved config.
        root: Folder of the data on this machine; None for the run's own.
        allow_targets: As for `genlab.load`.

    Raises:
        UserError: If the config has no data, names a target that is not allowed, or the data cannot be read.
    """
    node = dict(config.get("data") or {})
    if not node:
        raise UserError("The run's checkpoint holds no config of its data.")
    if root is not None:
        node["root"] = root
    for place, part in (("data", node), ("derive", config.get("derive") or {})):
        check_allowed(part, allow_targets)
        check_signatures(part, place)
    try:
        data = build_data({**config, "data": node})
        data.prepare_data()
        data.setup()
    except OSError as error:
        raise UserError(f"{error} Say where the data lie on this machine: data.root=PATH") from error
    return data


def check_unused(folder: Path) -> None:
    """Refuses a folder for a new run if it holds a checkpoint of another one.

    Raises:
        UserError: If it does.
    """
    stages = [p.parent for p in folder.glob(f"*/{CHECKPOINTS}") if p.parent.name != FIRST_STAGE]
    places = (folder, *stages)
    if (folder / "config.yaml").is_file() and any(find_checkpoint(place) for place in places):
        raise UserError(
            f"{short(folder)} already holds a run. Go on with it: resume={quoted(folder)}, or choose hydra.run.dir=..."
        )


def lock(folder: Path, held: FolderLock | None = None) -> FolderLock:
    """Locks a run folder, which must exist, against training by other processes.

    Args:
        folder: The run folder.
        held: The lock of an earlier call on this folder, to be used again.

    Raises:
        UserError: If another process holds the lock; names it.
    """
    held = held or FolderLock(folder)
    if not held.take():
        raise UserError(
            f"{short(folder)} is in use by {held.holder()}. Wait for it, or stop it and then resume={quoted(folder)}; "
            "a run beside it needs another hydra.run.dir=FOLDER."
        )
    return held


class RunRecord:
    """`run.json`, the record of a run. Each start of the run (the first, and every resume) adds a session."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.path = folder / "run.json"
        self.content: dict[str, Any] = {"choices": config["choices"], "seed": config["seed"], "sessions": []}
        if self.path.is_file():
            try:
                before = {**self.content, **json.loads(self.path.read_text())}
                before["sessions"] = [dict(session) for session in before["sessions"]]
                self.content = before
            except (ValueError, TypeError):
                log.warning("%s cannot be read and is replaced.", self.path)
        self.started = datetime.now(timezone.utc)
        self.session: dict[str, Any] = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "started": self.started.isoformat(timespec="seconds"),
            "status": "running",
            "commit": _commit(),
            "versions": _versions(),
            "hardware": _hardware(),
        }
        self.content["sessions"].append(self.session)

    def write(self, **values: Any) -> None:
        """Adds values to the record, and the wall time and any `status` to this session, and writes the file."""
        self.session["wall_seconds"] = round((datetime.now(timezone.utc) - self.started).total_seconds(), 1)
        if "status" in values:
            self.session["status"] = values.pop("status")
        self.content.update(values)
        write_json(self.path, self.content)


def point_latest(folder: Path) -> None:
    """Writes the run's name to `outputs/latest`, beside the run folder; see `genlab.files.run_path`."""
    with suppress(OSError):  # a folder of that name; a full disk is reported elsewhere
        write_text(folder.parent / LATEST, f"{folder.name}\n")


def _commit() -> str | None:
    """The commit of the checkout that genlab runs from, "+" where it has changes; None for an installed wheel."""
    root = Path(genlab.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"genlab": genlab.__version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = platform.processor() or platform.machine()
    try:
        names = [
            x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x
        ]
        cpu = names[0] if names else cpu
    except OSError:
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}
