"""Short trainings through the real Trainer, and callbacks that watch them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch.testing import assert_close

from genlab.config.composition import compose
from genlab.runs import running

QUIET = [
    "callbacks=none",
    "logger=none",
    "metrics=none",
    "trainer=cpu",
    "threads=1",
    "data.batch_size=8",
    "checkpoint.every_n_steps=1000",
    "trainer.log_every_n_steps=1000",
]
RING = ["data=ring", "network.hidden=[16]"]
METHODS = {
    "gan": ["model=gan", *RING],
    "wgan_gp": ["model=wgan_gp", *RING],
    "began": ["model=began", "network=mlp", *RING],
    "vae": ["model=vae", "likelihood=gaussian", "likelihood.learned=true", *RING],
}
ORDER = {  # of the players' updates in one iteration
    "gan": ["discriminator", "generator"],
    "wgan_gp": 5 * ["critic"] + ["generator"],
    "began": ["discriminator", "generator"],
    "vae": ["vae"],
}
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
PLAIN = (dict, list, str, int, float, bool, type(None), torch.Tensor)


@dataclass
class Fitted:
    """What `fit` leaves."""

    model: Any
    data: Any
    trainer: pl.Trainer
    folder: Path


def config(overrides=(), steps=1, **replaced):
    """A quiet config, with whole top-level keys replaced: `model={"_target_": ...}`."""
    return {**compose([*QUIET, *overrides, f"trainer.max_steps={steps}"]), **replaced}


def fit(overrides, steps, folder, callbacks=(), before=None, resume=None, trainer=None, **replaced):
    """Trains for so many iterations with nothing but the given callbacks (and genlab's own checkpoints).

    Args:
        overrides: As on the command line.
        steps: Iterations.
        folder: Where checkpoints go.
        callbacks: Lightning's.
        before: Called with the built model.
        resume: A checkpoint to go on from.
        trainer: Arguments of Lightning's Trainer.
        **replaced: Top-level keys of the config.
    """
    parts = running.build(config(overrides, steps, **replaced))
    parts.callbacks.update({str(i): callback for i, callback in enumerate(callbacks)})
    if before is not None:
        before(parts.model)
    made = running.make_trainer(parts, folder, **(trainer or {}))
    made.fit(parts.model, datamodule=parts.data, ckpt_path=resume, weights_only=True)
    return Fitted(parts.model, parts.data, made, folder)


def snapshot(model):
    """Copies of all players' parameters: {player: {name: values}}."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        player: {names[id(p)]: p.detach().clone() for p in parameters} for player, parameters in model.players.items()
    }


def moved(before, after):
    """Names of the parameters of which at least one bit differs."""
    return {name for name in before if not torch.equal(before[name], after[name])}


class Updates(Callback):
    """Notes each optimizer's step: who it was of, and which parameters of each player it moved."""

    def on_train_start(self, trainer, pl_module):
        self.model, self.steps, self.strays = pl_module, [], []
        self.now = None
        for name, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(lambda *_: self._before())
            optimizer.register_step_post_hook(lambda *_, name=name: self._after(name))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.now is None:  # `initialise`, which may set parameters, comes after `on_train_start`
            self.now = snapshot(pl_module)

    def _differences(self):
        now = snapshot(self.model)
        found = {player: moved(self.now[player], now[player]) for player in now}
        self.now = now
        return found

    def _before(self):
        self.strays.append(self._differences())  # what moved outside of any step: nothing may

    def _after(self, name):
        self.steps.append((name, self._differences()))

    def on_train_end(self, trainer, pl_module):
        self._before()


def assert_moves(overrides, order, steps, folder, still=()):
    """Each update moves every tensor of its player (but `still`), no other bit, and nothing moves between updates.

    Args:
        overrides: As on the command line.
        order: The players whose updates are expected, in all the iterations.
        steps: Iterations.
        folder: Where checkpoints go.
        still: Names of parameters that may stand still.
    """
    updates = Updates()
    fitted = fit(overrides, steps, folder, [updates])
    assert [who for who, _ in updates.steps] == list(order)
    own = {player: set(values) for player, values in snapshot(fitted.model).items()}
    for who, found in updates.steps:
        assert not {player for player, names in found.items() if names and player != who}, who
        assert own[who] - found[who] <= set(still), f"{who} stood still"
    assert not any(names for found in updates.strays for names in found.values())
    frozen = [name for name, p in fitted.model.named_parameters() if not p.requires_grad]
    assert all(name.startswith("first_stage.") for name in frozen)
    return fitted


def log_d(logits):
    """E log D of logits, as papers write it."""
    return logits.sigmoid().log().mean()


def log_not_d(logits):
    """E log(1 - D)."""
    return (1 - logits.sigmoid()).log().mean()


class Losses(Callback):
    """Compares each update's gradient with that of the paper's loss, written out, at the parameters of the moment.

    Args:
        losses: For each update of an iteration, a function of the model, the batch and the iteration's normal draws.
        together: Whether all players move on gradients of the same parameters: those before the first update.
    """

    def __init__(self, losses, together=False):
        self.losses, self.together, self.checked, self.expected = losses, together, [], []

    def on_train_start(self, trainer, pl_module):
        self.draws, draw = [], pl_module.randn
        pl_module.randn = lambda *args, **options: self.draws.append(draw(*args, **options)) or self.draws[-1]
        for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.x = batch.x

    def gradients(self, model, index, player):
        with torch.enable_grad():
            loss = self.losses[index](model, self.x, self.draws)
            return torch.autograd.grad(loss, model.players[player], allow_unused=True)

    def compare(self, model, player):
        index = len(self.checked)
        if self.together and not self.expected:
            self.expected = [self.gradients(model, i, name) for i, name in enumerate(model.players)]
        expected = self.expected[index] if self.together else self.gradients(model, index, player)
        for p, theirs in zip(model.players[player], expected, strict=True):
            if theirs is None:
                assert p.grad is None
            else:
                assert_close(p.grad, theirs, rtol=1e-9, atol=1e-12)
        self.checked.append(player)


class Each(Callback):
    """Calls a function with the model at the end of each iteration, and keeps what it gives."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.function(pl_module))


class Batches(Callback):
    """Keeps every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch)


class Memory(Logger):
    """Keeps what is logged: {name: {step: value}}."""

    name, version = "memory", ""

    def __init__(self):
        super().__init__()
        self.curves = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.curves.setdefault(name, {})[step] = value

    def log_hyperparams(self, *_, **__):
        """Nothing."""


def assert_plain(node, path="checkpoint"):
    """Only what `torch.load(weights_only=True)` reads on every version."""
    assert isinstance(node, PLAIN) or type(node).__name__ == "OrderedDict", f"{path} is a {type(node)}"
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        assert isinstance(key, (str, int)), path
        assert_plain(list(child) if isinstance(child, tuple) else child, f"{path}.{key}")
