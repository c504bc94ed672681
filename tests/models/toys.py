"""Models and data that exist for tests alone; configs name them as `tests.models.toys.Walk`."""

from __future__ import annotations

import torch
from torch import nn

from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.models.base import GenerativeModel, inference


class Weights(nn.Module):
    """Two weights, and a buffer of each sort."""

    averaged_buffers = ("running",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("running", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(False))


class Walk(GenerativeModel):
    """A generator whose loss is the sum of its weights: with SGD it is at -lr t after t iterations."""

    ema_modules = ("generator",)

    def __init__(
        self,
        clip: float | None = None,
        slope: float = 1.0,
        nan_at: int | None = None,
        inf_gradient_at: int | None = None,
    ) -> None:
        super().__init__()
        self.generator = Weights()
        self.idle = Weights()  # nobody's
        self.idle.requires_grad_(False)
        self.latent_dim = 2
        self.slope, self.nan_at, self.inf_gradient_at = slope, nan_at, inf_gradient_at
        self.starts: list[int] = []
        self.add_player("generator", self.generator, "optimizer", clip)

    def initialise(self, batches):
        self.starts.append(len(next(batches)))
        self.generator.weight.fill_(1.0)

    @inference
    def sample(self, n, given=None, rng=None):
        return self.generator.weight + 0 * self.noise(n, rng)

    def training_step(self, batch, batch_idx):
        with self.turn("generator") as generator:
            loss = self.slope * self.generator.weight.sum()
            if self.iteration + 1 == self.nan_at:
                loss = loss * float("nan")
            if self.iteration + 1 == self.inf_gradient_at:
                loss = loss + (0 * self.generator.weight).sqrt().sum()  # 0, with a slope of infinity
            generator.minimise(loss)
        self.generator.running += 0.5
        self.generator.count += 2
        self.generator.seen.fill_(self.iteration % 2 == 0)
        self.record(g_loss=loss, step=float(self.iteration + 1))


class Mean(GenerativeModel):
    """Fitted in `initialise`, as PCA is: no player, no optimizer, nothing to record."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 2
        self.register_buffer("mean", torch.zeros(2))

    def initialise(self, batches):
        self.mean.copy_(torch.cat([next(batches).x for _ in range(4)]).mean(dim=0))

    @inference
    def sample(self, n, given=None, rng=None):
        return self.mean.expand(n, 2).clone()

    def training_step(self, batch, batch_idx):
        """Nothing is left to do."""


class Unpaired(GenerativeModel):
    """Follows the mean of each of two domains, with a player for each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Weights(), Weights()
        self.add_player("a", self.a)
        self.add_player("b", self.b)

    def training_step(self, batch, batch_idx):
        for name in ("a", "b"):
            with self.turn(name) as player:
                loss = (self.get_submodule(name).weight - batch.tensor(name)).square().sum(dim=1).mean()
                player.minimise(loss)
            self.record(**{f"{name}_loss": loss})


class Near(ArrayData):
    """60 points near (place, place)."""

    name = "near"
    kind = "points"
    own_shape = (2,)

    def __init__(self, *, place, **more):
        self.place = place
        super().__init__(**more)

    def _load(self, download):
        x = self.place + 0.1 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        return {"all": ArrayStore({"x": x})}


class Prior(GenerativeModel):
    """A second model over the codes of a first one: draws codes, and lets the first one decode them."""

    ema_modules = ("prior",)

    def __init__(self, latent_dim: int, first_stage: GenerativeModel) -> None:
        super().__init__()
        self.first_stage, self.latent_dim = first_stage, latent_dim
        self.prior = nn.Linear(latent_dim, latent_dim)
        self.add_player("prior", self.prior)

    @inference
    def sample(self, n, given=None, rng=None):
        return self.first_stage.decode(self.prior(self.noise(n, rng)))

    @inference
    def decode(self, z):
        return self.first_stage.decode(self.prior(z))

    def training_step(self, batch, batch_idx):
        code = self.first_stage.encode(batch.x)
        with self.turn("prior") as prior:
            z = self.prior(self.noise(len(code)))
            recon = self.first_stage.likelihood.mean(self.first_stage.decoder(z))  # with gradients, in its own mode
            loss = (z - code).square().sum(dim=1).mean() + 1e-3 * (recon - batch.x).square().sum(dim=1).mean()
            prior.minimise(loss)
        self.record(loss=loss)


BUILT: list[str] = []


def trap(**_):
    """What a stranger's config would like to be called."""
    BUILT.append("trap")
    return nn.Identity()


class Over(GenerativeModel):
    """A second model without parameters of its own."""

    def __init__(self, first_stage: GenerativeModel) -> None:
        super().__init__()
        self.first_stage = first_stage

    def training_step(self, batch, batch_idx):
        self.record(distance=self.first_stage.sample(len(batch)).sum())
