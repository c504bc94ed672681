"""The contract of a method: players, iterations, noise, averages, starts, checkpoints, and what it can be asked.

A method is a subclass whose ``training_step`` reads like the paper's algorithm box. The work is done by
`genlab.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genlab.contracts import Offered, offers
from genlab.engine import noise, start, state, watch
from genlab.engine.averages import Averages
from genlab.engine.lockstep import in_strand
from genlab.engine.looking import inference, looking
from genlab.engine.noise import Noise
from genlab.engine.players import Players, Turn
from genlab.engine.pools import Pool
from genlab.engine.schedules import OptimizerFactory, SchedulerFactory
from genlab.engine.settings import ALL_TRICKS, Settings
from genlab.engine.watch import Watch
from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.batch import Batch
from genlab.data.spec import DataSpec

# A method takes all that it needs from here.
__all__ = ["ALL_TRICKS", "GenerativeModel", "inference"]


class GenerativeModel(pl.LightningModule, Offered):
    """Base of every method.

    A subclass calls `add_player` for each set of parameters with an optimizer, writes `training_step` in terms of
    `turn`, `noise` and `record`, and offers what it can of the capabilities in `genlab.contracts`, each marked with
    `@inference`.

    Attributes:
        ema_modules: Names of the submodules whose moving average is kept, sampled from and judged.
        batches_per_step: Fresh batches per iteration, joined to one; `batches_at(iteration)` of one that changes.
        labelled_share: Share of samples with a label in each batch of part-labelled data; None: as they come.
        latent_prior: Distribution of `noise`: "normal" (standard), or "uniform" on [-1, 1].
        one_hot_latents: Parts of a latent that are one-hot vectors.
        tricks_taken: The `tricks.*` that the method supports; others are refused.
        tells: Names of the networks that the training step calls as `network(x, *self.told(batch))`.
        given: Columns that samples are told, from the config: `["y"]` of a class-conditional model.
        gives: The column that samples are of.
        needs: Further columns that training reads.
        fills: Columns that `sample` reads where they are there, and draws itself where they are missing.
        idle_optimizers: Config keys of optimizers that a variant of the method has no player for.
        spec: The facts about the data; set before training and by `genlab.load`.
        settings: The run's settings that do not depend on the method.
    """

    ema_modules: tuple[str, ...] = ()
    batches_per_step: int = 1
    labelled_share: float | None = None
    latent_prior: Literal["normal", "uniform"] = "normal"
    one_hot_latents: tuple[range, ...] = ()
    tricks_taken: ClassVar[tuple[str, ...]] = ("historical_averaging", "virtual_batch_norm")
    tells: ClassVar[tuple[str, ...]] = ()
    given: tuple[str, ...] = ()
    gives: str = "x"
    needs: tuple[str, ...] = ()
    fills: tuple[str, ...] = ()
    idle_optimizers: tuple[str, ...] = ()
    latent_dim: int
    spec: DataSpec
    initialised: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = Settings()
        self.run_config: dict[str, Any] = {}
        self.register_buffer("initialised", torch.tensor(False))
        self.moves = Players(self)
        self.averages = Averages(self)
        self.stream = Noise()
        self.pool = Pool()  # of earlier fakes, with `tricks.replay`
        self.watching = Watch()
        self.differentiable = False  # inside `inference(gradients=True)`
        self.time_share = 0.0  # of the CPU time that the run may take; 0 where it may take any
        self.pending_states: list[dict[str, Any]] | None = None  # of a checkpoint, until the first iteration

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the current hook dozens of times in each iteration, and Module's own check of every value for
        # parameters costs as much as a layer of a small network.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---------------------------------------------------------------------------------------------- players and turns

    def add_player(
        self,
        name: str,
        modules: nn.Module | Iterable[nn.Module],
        optimizer: str = "optimizer",
        clip: float | None = None,
    ) -> None:
        """Declares a player: parameters that one optimizer updates together.

        Args:
            name: "generator", "discriminator", "encoder", ...
            modules: Its modules. No parameter may belong to two players.
            optimizer: Config key of its optimizer below `model`; `g_optimizer` has its schedule in `g_scheduler`.
            clip: Largest gradient norm of its updates, in place of the run's `optim.clip`.

        Raises:
            ValueError: If the name is taken or a parameter already has a player.
        """
        self.moves.add(name, modules, optimizer, clip)

    def use_optimizers(self, factories: Mapping[str, OptimizerFactory | SchedulerFactory | None]) -> None:
        """Sets the players' optimizers and schedules; called once, after construction.

        Args:
            factories: By config key. Optimizers are made of parameters when training starts, schedules of optimizers;
                a schedule is stepped once per iteration.

        Raises:
            UserError: If a player's key is missing, or a key belongs to no player.
        """
        self.moves.use(factories)

    @property
    def players(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each player, in the order of declaration."""
        return {name: turn.parameters for name, turn in self.moves.turns.items()}

    def turn(self, name: str, *more: str) -> Turn:
        """The named player's move, or the common one of several on one loss; use it in a `with` block."""
        return self.moves.turn(name, *more)

    def step(self, *names: str) -> None:
        """Moves the named players on the gradients that they collected (simultaneous games)."""
        self.moves.step(names, getattr(self.trainer.precision_plugin, "scaler", None))

    def configure_optimizers(self) -> Any:
        """One optimizer per player, in their order; none for models that are fitted in `initialise`."""
        optimizers, schedulers = self.moves.optimizers()
        return (optimizers, schedulers) if optimizers else None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips, here and not before `step`, since here gradients are unscaled under every precision."""
        self.moves.before_step(optimizer, self.trainer, self.watching)

    # -------------------------------------------------------------------------------------------------- the iteration

    @property
    def iteration(self) -> int:
        """Iterations done: the clock of every schedule."""
        return self.trainer.global_step if self._trainer is not None else 0

    @property
    def progress(self) -> float:
        """The share of training that is done, in [0, 1]: of its iterations or of its CPU time, whichever is more."""
        if self._trainer is None:
            return 0.0
        return min(1.0, max(self.watching.done / max(1, self.trainer.max_steps), self.time_share))

    @property
    def modelled_share(self) -> float:
        """The share of a sample's numbers that log p(x) is of, for bits per dimension."""
        return 1.0

    @property
    def logging(self) -> bool:
        """Whether the values of this iteration are written."""
        return self.watching.logging

    def begin_iteration(self) -> None:
        """Called by the loop before each `training_step`."""
        if self.pending_states is not None:  # the first iteration after a checkpoint was read
            own = self.pending_states[min(self.stream.rank, len(self.pending_states) - 1)]
            noise.restore_random_states(own, self.rng)
            self.pending_states = None
        done = self.trainer.global_step
        every, last = self.settings.log_every_n_steps, self.trainer.max_steps
        self.watching.begin(done, (done + 1) % every == 0 or done + 1 in (1, last), self.averaged)

    def end_iteration(self) -> None:
        """Called by the loop after each `training_step`: schedules, the average, the records, the watch for NaN."""
        self.moves.schedule(self.watching.recorded, self.averaged)
        self.averages.update(self.settings.ema_decay, self.watching.done)
        if self.logging:
            self.check_finite()
            self.write_records()

    def told(self, batch: Batch | None) -> tuple[Batch, ...]:
        """The conditions of a step or a capability, for `network(x, *told)`: the given columns, or nothing.

        Raises:
            UserError: If the model is given columns, and the batch is None or lacks one.
        """
        if not self.given:
            return ()
        if batch is None:
            raise UserError(f"{type(self).__name__} is given {', '.join(self.given)}: pass a batch with these columns.")
        return (batch.only(self.given),)

    def record(self, **values: Tensor | float) -> None:
        """Notes scalars, `d_loss` for the curve `train/d_loss`: kept on the device, written every n iterations."""
        for name, value in values.items():
            self.watching.recorded[name] = value.detach() if isinstance(value, Tensor) else value

    def record_logits(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Notes a discriminator's health: its mean logits [N] and how often it is right at the threshold 0."""
        if self.logging:
            self.record(logits_real=logits_real.mean(), logits_fake=logits_fake.mean())
            self.record(acc_real=(logits_real > 0).float().mean(), acc_fake=(logits_fake < 0).float().mean())

    def watch(self, name: str, value: Tensor, what: str = "loss") -> None:
        """Keeps a scalar of a player until the next check for NaN and Inf: a loss, or 0 for a finite gradient."""
        self.watching.note(name, value, what)

    def check_finite(self) -> None:
        """Reads all values watched since the last check; called every n iterations and before each checkpoint.

        Raises:
            NotFinite: If one was not finite, on any process; names the player, the iteration and the terms.
        """
        self.watching.check(self.averaged)

    def check_parameters(self) -> None:
        """Raises NotFinite, before a checkpoint replaces the last good one, if a parameter is not finite."""
        watch.check_parameters(self.players, self.iteration)

    def write_records(self) -> None:
        """Writes what this iteration recorded, and the learning rates."""
        values = self.watching.values(self.averaged)
        if values:
            self.report({**{f"train/{name}": value for name, value in values.items()}, **self.moves.rates()})

    def report(self, metrics: dict[str, float]) -> None:
        """Writes named values at the current iteration to every logger, and shows them to the progress bar."""
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    # -------------------------------------------------------------------------------------------- noise and processes

    @property
    def rng(self) -> torch.Generator:
        """The random stream of training, the same on all processes."""
        return self.stream.rng

    def randn(self, n: int, *shape: int, rng: torch.Generator | None = None) -> Tensor:
        """Standard normal draws, [n, *shape]; in training this process's slice of draws for the global batch."""
        return self.stream.draw(torch.randn, n, shape, rng, self.device, self.dtype)

    def rand(self, n: int, *shape: int, rng: torch.Generator | None = None) -> Tensor:
        """Uniform draws in [0, 1), [n, *shape]; see `randn`."""
        return self.stream.draw(torch.rand, n, shape, rng, self.device, self.dtype)

    def common_draws(self) -> AbstractContextManager[None]:
        """Block in which `randn` and `rand` give the same numbers on all processes: for work on the gathered batch."""
        return self.stream.common()

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents from the prior, [n, latent_dim]; standard normal unless a method overrides it."""
        return self.randn(n, self.latent_dim, rng=rng)

    def averaged(self, value: Tensor) -> Tensor:
        """The mean of a value over processes (and chunks) with equally many samples, without gradient."""
        if in_strand():
            return self.moves.lockstep.averaged(value)
        if self.stream.world == 1:
            return value.detach()
        return self.trainer.strategy.reduce(value.detach().clone().to(self.device), reduce_op="mean")

    def gathered(self, x: Tensor) -> Tensor:
        """The whole batch [world * N, ...] of a tensor [N, ...], with its gradient, for terms that couple samples."""
        if in_strand():
            return self.moves.lockstep.gathered(x)
        if self.stream.world == 1:
            return x
        return cast(Tensor, self.all_gather(x, sync_grads=True)).flatten(0, 1)

    # -------------------------------------------------------------------------------------------- averages and looks

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GenerativeModel:
        """Moves and converts averages, earlier fakes and past means with the weights (`to`, `double`, `cuda`)."""
        super()._apply(fn, recurse)
        if "averages" in self.__dict__:
            self.pool.held = fn(self.pool.held)
            self.moves.apply(fn)
            self.averages.apply(fn, self.settings.ema_decay, self.device)
        return self

    def ema(self) -> AbstractContextManager[None]:
        """Block in which the modules hold their averaged weights, if there are any."""
        return self.averages.inside()

    @property
    def has_averages(self) -> bool:
        """Whether samples and scores use averaged weights."""
        return bool(self.averages.values) or self.averages.settled

    def inference(self, gradients: bool = False) -> AbstractContextManager[None]:
        """Block with averaged weights, eval mode and no gradients; restores every module's own mode.

        Args:
            gradients: Keep gradients to the arguments of capabilities, but not to parameters, so that
                `model.score_logits(model.decode(z))` can be differentiated by z.
        """
        return looking(self, gradients)

    # ------------------------------------------------------------------------------------------------- start and state

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Initialises from the first training batches, the same whole ones on all processes: biases, codebooks, PCA."""

    def setup(self, stage: str) -> None:
        """Lightning's call before a training. See `genlab.engine.start`."""
        if stage == "fit":
            start.set_up(self)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Brings images into the order of channels that the networks have."""
        if self.settings.speed.channels_last and "x" in batch and batch.x.dim() == 4:
            return batch.with_column("x", batch.x.contiguous(memory_format=torch.channels_last))
        return batch

    def on_train_start(self) -> None:
        """Lightning's call when it starts. See `genlab.engine.start`."""
        start.begin(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds genlab's own section. See `genlab.engine.state`."""
        state.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the section back."""
        state.load(self, checkpoint)

    def can(self, capability: str) -> bool:
        """Whether the method offers a capability, one of `genlab.contracts.CAPABILITIES`."""
        return offers(self, capability)
