"""The start of a training: format of the weights, the loop, initialisation from data, random streams."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch

from genlab.engine.compiling import compile_network
from genlab.engine.loop import IterationLoop
from genlab.losses.numerics import leave_in_float32
from genlab.networks.virtual_batch_norm import VirtuallyNormalised
from genlab.randomness import Drawing


def set_up(model: Any) -> None:
    """Sets precision, memory format and compilation of a model, and installs `IterationLoop`."""
    if getattr(model.trainer, "datamodule", None) is not None:
        model.spec = model.trainer.datamodule.spec  # with the classes and names that were found in the files
    model.stream.rank, model.stream.world = model.trainer.global_rank, model.trainer.world_size
    # Lightning converts only after it has read a checkpoint, which would round float64 weights to float32.
    model.trainer.precision_plugin.convert_module(model)
    if model.settings.speed.channels_last:
        model.to(memory_format=torch.channels_last)
    if "mixed" in str(model.trainer.precision):
        for network in model.children():
            leave_in_float32(network)
    if model.settings.speed.compile:
        for network in model.children():
            compile_network(network)
    model.trainer.fit_loop.epoch_loop.manual_optimization = IterationLoop(model.trainer)


def begin(model: Any) -> None:
    """Initialises from data, starts the averages and seeds the random streams, unless a checkpoint sets them."""
    model.moves.take(model.optimizers())
    model.stream.rng = torch.Generator(model.device).manual_seed(model.settings.seed)
    if model.pending_states is None:
        pl.seed_everything(model.settings.seed + model.stream.rank, verbose=False)
    if not model.initialised:
        for network in model.children():
            if isinstance(network, VirtuallyNormalised):  # the method's own latents, the same in every run
                rng = torch.Generator().manual_seed(0)
                network.set_reference(model.noise(network.reference_size, rng))
        datamodule = getattr(model.trainer, "datamodule", None)
        if datamodule is not None:
            with torch.no_grad():
                batches = cast(Any, datamodule).first_batches()
                convert = model.trainer.precision_plugin.convert_input  # to float64 if the weights are
                model.initialise(convert(b.to(model.device)) for b in batches)
        model.initialised.fill_(True)
        if model.stream.world > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
    model.averages.start(model.settings.ema_decay, model.device)
    for module in model.modules():
        if isinstance(module, Drawing):
            module.adopt(model)
