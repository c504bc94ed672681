"""`--dry-run`: describes a run, its size and its duration. Reads no data and keeps nothing."""

from __future__ import annotations

import dataclasses
import statistics
import time
from itertools import pairwise
from typing import Any

import torch
import yaml

from genlab.runs.running import Parts, Result, make_trainer


def describe(parts: Parts) -> Result:
    """Prints the resolved composition, the players, steps, disk and an estimate of time and memory."""
    from rich.console import Console
    from rich.table import Table

    config, model = parts.config, parts.model
    shown = {k: v for k, v in config.items() if v not in (None, {}, []) and k != "choices"}
    print(yaml.safe_dump(shown, sort_keys=False, width=110))
    steps = config["trainer"]["max_steps"]
    table = Table(title="dry run", title_justify="left", show_header=False)
    for name, parameters in model.players.items():
        table.add_row(f"{name}", f"{sum(p.numel() for p in parameters):,} parameters")
    seconds, peak = _trial(parts)
    table.add_row("iterations", f"{steps:,} of {config['data']['batch_size'] * model.batches_per_step} samples each")
    table.add_row(
        "time", f"about {seconds * steps / 60:.1f} min on this machine ({1000 * seconds:.0f} ms an iteration)"
    )
    table.add_row("memory", f"about {peak / 2**20:.0f} MiB for weights, optimizers, averages and activations")
    table.add_row("disk", f"about {_disk(parts) / 2**20:.0f} MiB of checkpoints")
    Console().print(table)
    return Result(model, {}, None)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _disk(parts: Parts) -> int:
    """Bytes of the kept checkpoints and the best one: weights, two moments of Adam and averages."""
    weights = _bytes(parts.model.state_dict().values())
    return (4 * weights + 2**16) * (parts.config["checkpoint"]["keep"] + 1)


def _trial(parts: Parts) -> tuple[float, int]:
    """Seconds and bytes of an iteration, measured in a short training on random data."""
    import tempfile
    from pathlib import Path

    from pytorch_lightning.callbacks import Callback

    from genlab.batch import Batch
    from genlab.data.stream import Chunks

    model, steps = parts.model, parts.config["trainer"]["max_steps"]
    # The first iterations may take more batches than others (WGAN), so the measurement is scaled by their numbers.
    batches = Chunks(parts.data.batches_per_step).of
    usual = statistics.fmean(map(batches, range(min(steps, 1000)))) / batches(0)
    size = parts.config["data"]["batch_size"] * batches(0)
    rng = torch.Generator().manual_seed(0)
    batch = Batch({name: field.random(size, rng) for name, field in parts.data.spec.fields.items()})
    if parts.data.grouped:
        batch = batch.with_column("group", torch.zeros(size, dtype=torch.int64))
    saved: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    class Made(list):
        """The same batch several times."""

    ends: list[float] = []

    class Ends(Callback):
        """Records the end times of iterations: start and end of a run take far longer than one of a small model."""

        def on_train_batch_end(self, *args: Any) -> None:
            ends.append(time.perf_counter())

    quiet = {**parts.config, "logger": {}}
    copy = type(parts)(quiet, parts.data, model, None, {"ends": Ends()}, parts.precision)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(copy, Path(folder), max_steps=1, accelerator="cpu", devices=1)
        # Hooks see this thread alone, and chunks of `optim.accumulate` run in others: one is its share of the whole.
        settings, model.settings = model.settings, dataclasses.replace(model.settings, accumulate=1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainer.fit(model, train_dataloaders=Made([batch]))
        model.settings = settings
        ends.clear()
        trainer = make_trainer(copy, Path(folder), max_steps=4, accelerator="cpu", devices=1)
        trainer.fit(model, train_dataloaders=Made([batch] * 4))
    seconds = statistics.median(later - earlier for earlier, later in pairwise(ends))
    weights = _bytes(model.parameters())
    return seconds * usual, 5 * weights + round(sum(saved) * usual / settings.accumulate)
