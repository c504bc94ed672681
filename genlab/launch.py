"""The launcher of this process (torchrun, srun or none) and its rank, and its sweep. Does not import torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

STORE_SECONDS = 600  # timeout of waiting for the first process, which may still be importing torch
SWEEP = "GENLAB_SWEEP"  # environment variable of the main process of a sweep, which its workers inherit


@dataclass(frozen=True)
class Launch:
    """One of the processes that torchrun or srun started for one run.

    Attributes:
        by: "torchrun" or "srun".
        rank: Number of this process; process 0 writes the files.
        world: Number of processes.
        nodes: Number of machines.
    """

    by: str
    rank: int
    world: int
    nodes: int


def launch(env: Mapping[str, str] = os.environ) -> Launch | None:
    """The launcher of this process and its peers; None without one (Lightning may still start further processes)."""
    if "TORCHELASTIC_RUN_ID" in env:
        world = int(env["WORLD_SIZE"])
        return Launch("torchrun", int(env["RANK"]), world, world // int(env["LOCAL_WORLD_SIZE"]))
    # SLURM sets most of its variables in batch scripts too, but the step's number only in processes started by srun.
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        world = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        return Launch("srun", int(env["SLURM_PROCID"]), world, nodes) if world > 1 else None
    return None


def devices(default: int) -> int:
    """Processes per machine that the launcher started, else the default. The resolver `genlab.devices`."""
    started = launch()
    return default if started is None else started.world // started.nodes


def nodes() -> int:
    """Machines on which the launcher started processes, else 1. The resolver `genlab.nodes`."""
    started = launch()
    return 1 if started is None else started.nodes


def stamp() -> str:
    """The time of the start, to the millisecond; the same in all processes of a run, so that they share one folder.

    Milliseconds give two runs that start within one second two folders. Under srun, whose processes have no common
    store, it is the numbers of the job and the step instead.
    """
    started = launch()
    if started is None:
        return _now()
    return f"slurm_{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}" if started.by == "srun" else _agreed()


@functools.lru_cache(maxsize=1)
def _agreed() -> str:
    """The time of the first process, shared through the TCP store of torchrun's agent."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    env = os.environ
    store = TCPStore(
        env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=STORE_SECONDS)
    )
    key = f"genlab/{env['TORCHELASTIC_RUN_ID']}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if env["RANK"] == "0":
        store.set(key, _now())
    return store.get(key).decode()


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]


@dataclass(frozen=True)
class Sweep:
    """The sweep that this process, or the one that started it, runs.

    Attributes:
        process: Number of the sweep's main process.
        folder: Folder of the sweep.
    """

    process: int
    folder: Path

    @property
    def stop_file(self) -> Path:
        """A file that exists while the sweep is being stopped; it holds the number of the signal."""
        return self.folder / ".stop"


def announce_sweep(folder: Path) -> None:
    """Makes this process the main process of a sweep."""
    os.environ[SWEEP] = f"{os.getpid()}:{folder}"
    Sweep(os.getpid(), folder).stop_file.unlink(missing_ok=True)  # of an earlier start that was killed


def sweep() -> Sweep | None:
    """The sweep of this process or of the one that started it; None if there is none."""
    process, colon, folder = os.environ.get(SWEEP, "").partition(":")
    return Sweep(int(process), Path(folder)) if colon else None


def forget_sweep() -> None:
    """Ends a sweep of this process."""
    of = sweep()
    if of is not None and of.process == os.getpid():
        del os.environ[SWEEP]
        of.stop_file.unlink(missing_ok=True)
