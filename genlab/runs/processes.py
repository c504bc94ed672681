"""Runs on several processes and machines: checks, warnings, and SLURM's queue."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.launch import launch

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import nn


log = logging.getLogger("genlab")


def quiet_overrides() -> list[str]:
    """Overrides for Hydra in all processes but the first, so that they do not write the same files."""
    started = launch()
    if started is None or started.rank == 0:
        return []
    return ["hydra.output_subdir=null", f"hydra.job.name=train_process_{started.rank}"]


def cluster_environment() -> Any:
    """Lightning's cluster environment in a SLURM job; None elsewhere, where Lightning's own choice is right.

    Lightning's requeueing is off, as it would save in the middle of an iteration. In a batch script without srun only
    one process runs, and Lightning starts the others; by default it would wait for SLURM to start them.
    """
    if "SLURM_JOB_ID" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

    return LightningEnvironment() if launch() is None else SLURMEnvironment(auto_requeue=False)


def check(trainer: pl.Trainer, batch_size: int, chunks: int = 1) -> None:
    """Checks the number of started processes against the Trainer's, and the batch size against both.

    Args:
        trainer: The Trainer of the run.
        batch_size: Samples per update, over all processes.
        chunks: Parts of each process's share, by `optim.accumulate`.

    Raises:
        UserError: If the numbers differ (each process would train alone in one folder, or wait for ever), or the batch
            size is no multiple.
    """
    started, wanted = launch(), trainer.num_devices * trainer.num_nodes
    if started is not None and started.world != wanted:
        raise UserError(
            f"{started.by} started {started.world} processes, and trainer.devices={trainer.num_devices} with "
            f"trainer.num_nodes={trainer.num_nodes} makes {wanted}. Try trainer=ddp without these keys."
        )
    if batch_size % wanted:
        raise UserError(
            f"data.batch_size={batch_size} is the batch over all {wanted} processes, which cannot share it evenly. Try "
            f"data.batch_size={max(1, batch_size // wanted) * wanted}."
        )
    if batch_size % (wanted * chunks):
        raise UserError(
            f"optim.accumulate={chunks} cuts each process's share of data.batch_size={batch_size}, which {wanted} "
            f"processes and {chunks} chunks do not divide. Try "
            f"data.batch_size={max(1, batch_size // (wanted * chunks)) * wanted * chunks}."
        )


def warn_of_separate_batches(model: nn.Module, trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """Warns of parts that see only the samples of their own process, so that gradients differ from one process's.

    Batch norm does so unless it is synchronised, which is possible only on GPUs. Other such modules declare
    `per_process`, a text that names the computed quantity.

    Args:
        model: The model.
        trainer: The Trainer of the run.
        config: Resolved; its `trainer.sync_batchnorm` and `data.batch_size` are read.

    Raises:
        UserError: If synchronised batch norm is asked for on CPUs, no parameter has a gradient, or a process's share
            is too small for batch norm.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    from genlab.config import checks

    asked, world = bool(config["trainer"].get("sync_batchnorm")), trainer.world_size
    if world == 1:
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"model={config['choices'].get('model')} is fitted without gradients, in one process. Try trainer=auto."
        )
    share, sentences = config["data"]["batch_size"] // world // checks.accumulated(config), []
    norms = checks.networks_with(model, _BatchNorm)
    if asked and trainer.strategy.root_device.type == "cpu":
        raise UserError(
            "trainer.sync_batchnorm=true works on GPUs only, and this run is on CPUs. Leave it out, or take networks "
            "without batch norm."
        )
    if not asked:  # synchronised batch norm sees one batch
        checks.check_batch_norm(model, share)
    if norms and not asked:
        sentences.append(
            f"Batch norm in the {' and '.join(norms)} normalises over each process's own {share} samples, so "
            f"{world} processes train differently from one; on GPUs trainer.sync_batchnorm=true "
            "makes it one batch."
        )
    sentences += [
        f"{type(part).__name__} computes {part.per_process} over each process's own {share} samples, so "
        f"{world} processes train differently from one."
        for part in model.modules()
        if getattr(part, "per_process", None)
    ]
    for sentence in sentences if trainer.is_global_zero else ():
        log.warning(sentence)


def hand_over(number: int, handler: Any, first: bool) -> None:
    """Requeues the job of a run that SIGUSR1 or SIGUSR2 stopped, after the run's checkpoint.

    Clusters send these signals before a job's time is up. The handler from before training is called, if there is one
    (submitit's requeues the job and ends the program); otherwise, in a SLURM job, SLURM is asked.

    Args:
        number: The signal.
        handler: The signal's handler from before training.
        first: Whether this is the first process of the run.
    """
    if number not in (getattr(signal, "SIGUSR1", None), getattr(signal, "SIGUSR2", None)):
        return
    if callable(handler):
        handler(number, None)
    elif first and "SLURM_JOB_ID" in os.environ:
        print(requeue())


def requeue() -> str:
    """Asks SLURM to put this job back into its queue. Returns a message with the result."""
    env = os.environ
    job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in env else ""
    job = job or env["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        return f"SLURM did not put job {job} back into its queue ({reason})."
    return f"SLURM has put job {job} back into its queue."
