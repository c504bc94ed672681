"""What tests of class-conditional GANs share: two overlapping classes on the line, and networks in closed form."""

from __future__ import annotations

import math

import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.testing import assert_close

from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore

ROWS = 2000
SIGNS = {"_target_": "tests.models.signs.Signs", "batch_size": ROWS, "seed": 0}


def quantiles(n, dtype=torch.float64):
    """Midpoints of n equally likely intervals of N(0, 1)."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (math.sqrt(2) * torch.erfinv(2 * u - 1)).to(dtype)


def sign(y):
    """-1 for class 0, 1 for class 1."""
    return 2 * y - 1


class Signs(ArrayData):
    """x ~ N(-1, 1) of class 0 and N(1, 1) of class 1, the same rows in every split."""

    name, kind, own_shape, class_names = "signs", "points", (1,), ("minus", "plus")

    def _load(self, download):
        y = torch.arange(2).repeat_interleave(ROWS // 2)
        x = sign(y) + quantiles(ROWS // 2, torch.float32).repeat(2)
        store = ArrayStore({"x": x[:, None]}).with_column("y", y)
        return {"train": store, "val": store, "test": store}


class Signed(nn.Module):
    """G(z, y) = theta s + z with s = -1 or 1; at theta = 1 these are the data."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, z, told):
        return self.theta * sign(told["y"])[:, None].to(z) + z


class Unsure(nn.Module):
    """A discriminator with logit 0 everywhere, whose features are the samples."""

    def features(self, x):
        return x

    def logits(self, features):
        return 0 * features[:, 0]

    def forward(self, x):
        return self.logits(self.features(x))


class Ratio(nn.Module):
    """log p(x | y) / N(x; t s, 1), linear in x for each class: the best discriminator against `Signed(t)`."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(t))

    def forward(self, x, told):
        return (1 - self.t) * sign(told["y"]).to(x) * x[:, 0] - (1 - self.t.square()) / 2


class PaperLosses(Callback):
    """Compares each update's gradient with that of a loss that is written out, in float64, at the same parameters.

    Args:
        losses: By player, a function of the model, the batch and the generator's last input (z and what it is told).
    """

    def __init__(self, losses):
        self.losses, self.checked = losses, []

    def on_train_start(self, trainer, pl_module):
        pl_module.generator.register_forward_pre_hook(lambda _, args: setattr(self, "drawn", args))
        for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def compare(self, model, player):
        found, drawn = [p.grad for p in model.players[player]], self.drawn
        with torch.enable_grad():
            loss = self.losses[player](model, self.batch, *drawn)
            expected = torch.autograd.grad(loss, model.players[player])
        assert sum(g.abs().sum() for g in expected) > 0
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        self.checked.append(player)
