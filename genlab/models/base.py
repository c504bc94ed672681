"""The one base class: players and their turns, iterations, noise, EMA, starts and checkpoints.

A method is a subclass whose ``training_step`` reads like the paper's algorithm box. Everything here is what such
a step leans on and must not repeat.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loops.optimization.manual import _ManualOptimization
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from genlab.errors import NotFinite, UserError
from genlab.losses.features import feature_matching
from genlab.losses.numerics import eager, leave_in_float32
from genlab.networks.virtual_batch_norm import VirtuallyNormalised
from genlab.randomness import Drawing

if TYPE_CHECKING:
    from genlab.data.spec import Batch, DataSpec

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
CHECKPOINT_FORMAT = 1
POWER_ITERATIONS = 15  # that find the spectral norm of an averaged layer, from the vectors of its live twin
# One thread at a time looks at a model whose weights or modes must be swapped for it, and not within an iteration.
_SWAPPING = threading.RLock()
WATCHED_AT_MOST = 500  # iterations between two looks for NaN
# What a method takes that trains one generator against a discriminator's logits, with `shown` and `generator_loss`.
ALL_TRICKS = (
    "historical_averaging",
    "virtual_batch_norm",
    "replay",
    "feature_matching",
    "minibatch_discrimination",
    "instance_noise",
    "augment",
    "packing",
)
CAPABILITIES = (
    "sample",
    "encode",
    "decode",
    "reconstruct",
    "log_joint",
    "log_prior",
    "sample_prior",
    "sample_posterior",
    "score_logits",
    "translate",
    "frames",
    "classify",
    "cluster",
)

F = TypeVar("F", bound=Callable[..., Any])


def inference(method: F) -> F:
    """Marks a capability (``sample``, ``encode``, ...): it runs in eval mode, without gradients, on the EMA weights.

    A method that takes ``rng`` and is called without one gets a generator seeded from torch's global stream, so that
    `torch.manual_seed` governs it, and the stream of noise that training draws from is never touched.
    """
    names = list(inspect.signature(method).parameters)
    place = names.index("rng") - 1 if "rng" in names else None  # among the arguments after self

    @functools.wraps(method)
    def wrapper(self: GenerativeModel, *args: Any, **kwargs: Any) -> Any:
        if place is not None:
            args, rng = args[:place] + args[place + 1 :], args[place] if len(args) > place else kwargs.get("rng")
            if rng is None:
                rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            kwargs["rng"] = rng
        with self.inference():
            return method(self, *args, **kwargs)

    return cast(F, wrapper)


@dataclass(frozen=True)
class Speed:
    """What makes training faster and changes its floating-point numbers; all off is exact mode.

    The precision is Lightning's affair (`speed.precision` chooses its plugin). The idle player is always frozen.

    Attributes:
        reuse_fakes: The generator is trained on the fakes that the discriminator has just seen, where the algorithm
            would draw others: one pass through the generator less.
        channels_last: Images and convolutions keep their channels innermost, as the fast kernels want them.
        fused: Optimizers step in one kernel, where theirs has one.
        compile: Networks are compiled by `torch.compile`; second derivatives and all judging stay eager.
        tf32: A GPU may multiply float32 in TF32, of 11 bits, where torch lets it: convolutions, unless told otherwise.
    """

    reuse_fakes: bool = False
    channels_last: bool = False
    fused: bool = False
    compile: bool = False
    tf32: bool = False


@dataclass(frozen=True)
class Tricks:
    """Stabilisers that change the step of any GAN, all off by default; those that change a network wrap it.

    Attributes:
        historical_averaging: Weight of |theta - mean of its own past|^2 in each player's loss. Salimans et al. (2016),
            arXiv:1606.03498, section 3.3.
        feature_matching: The generator lowers the distance between the means of the discriminator's features on real
            samples and on fakes, instead of its adversarial loss. The same, section 3.1.
        replay: Share of the fakes shown to the discriminator that come from a buffer of earlier ones.
        replay_size: How many fakes the buffer holds (over all processes together).
    """

    historical_averaging: float = 0.0
    feature_matching: bool = False
    replay: float = 0.0
    replay_size: int = 1024


@dataclass(frozen=True)
class Settings:
    """What holds for a run whatever the method; the command line fills it from `optim`, `ema`, `speed` and `seed`.

    Attributes:
        seed: Seeds the noise of training (the same on every process) and the global streams (one per process).
        clip: Largest gradient norm of each player's update; None for no clipping. A player's own clip wins.
        lr_scale: Factor on every player's learning rate, so that one number moves methods with different optimizers.
        ema_decay: Decay of the moving average per iteration, 0 for none (then the live weights are judged).
        log_every_n_steps: Every how many iterations recorded values are written, and checked for NaN.
        speed: What may be traded for speed.
        tricks: Stabilisers of adversarial training.
    """

    seed: int = 0
    clip: float | None = None
    lr_scale: float = 1.0
    ema_decay: float = 0.0
    log_every_n_steps: int = 50
    speed: Speed = Speed()
    tricks: Tricks = Tricks()


class Turn:
    """One player's move: inside the ``with`` block all other players are frozen.

    ``minimise(loss)`` is a whole update. For simultaneous games ``collect(loss)`` only computes the gradients, and
    ``model.step("discriminator", "generator")`` moves all players afterwards, each on what it collected.
    """

    def __init__(self, model: GenerativeModel, name: str, parameters: list[nn.Parameter], clip: float | None) -> None:
        self.name = name
        self.parameters = parameters
        self.clip = clip
        self.optimizer: LightningOptimizer | None = None  # known once training starts
        self._model = model
        self._others: list[nn.Parameter] = []
        self._frozen: list[list[nn.Parameter]] = []  # by each block that is open
        self.history: list[Tensor] = []  # the mean of each parameter over its past, with historical averaging
        self.updates = 0  # that it is the mean of

    @property
    def max_norm(self) -> float | None:
        """Largest gradient norm of an update: the player's own bound, else the run's `optim.clip`; None for none."""
        return self.clip if self.clip is not None else self._model.settings.clip

    def __enter__(self) -> Turn:
        # Freezing the idle players saves their weight gradients, and keeps them bit-identical by construction.
        frozen = [parameter for parameter in self._others if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        self._frozen.append(frozen)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._frozen.pop():
            parameter.requires_grad_(True)

    def collect(self, loss: Tensor) -> None:
        """Replaces this player's gradients by those of `loss` (a scalar)."""
        assert self.optimizer is not None, "a turn's update needs a running Trainer"
        self._model.watch(self.name, loss)
        for parameter in self.parameters:  # what zero_grad() does, without its hooks
            parameter.grad = None
        self._model.manual_backward(loss)

    def minimise(self, loss: Tensor) -> None:
        """One update of this player that lowers `loss` (a scalar)."""
        self.collect(loss)
        self.optimizer.step()  # type: ignore[union-attr]

    @torch.no_grad()
    def remember(self, weight: float) -> None:
        """Historical averaging: adds the gradient of weight |theta - mean|^2, the mean over all updates up to this."""
        if not self.history:
            self.history = [torch.zeros_like(p) for p in self.parameters]
        self.updates += 1
        torch._foreach_lerp_(self.history, list[Tensor](self.parameters), 1 / self.updates)
        for parameter, mean in zip(self.parameters, self.history, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - mean, alpha=2 * weight)


class JointTurn(Turn):
    """The common move of several players on one loss, each with its own optimizer; everyone else is frozen."""

    def __init__(self, model: GenerativeModel, turns: list[Turn]) -> None:
        super().__init__(model, " and ".join(t.name for t in turns), [p for t in turns for p in t.parameters], None)
        own = {id(p) for p in self.parameters}
        self._others = [p for p in turns[0]._others if id(p) not in own]
        self._names = [t.name for t in turns]
        self.optimizer = turns[0].optimizer  # for `collect`, which wants to know that there is a Trainer

    def minimise(self, loss: Tensor) -> None:
        """One update of all its players that lowers `loss` (a scalar): one backward pass, then each one's step."""
        self.collect(loss)
        self._model.step(*self._names)


class WindowedPlateau(ReduceLROnPlateau):
    """Lowers the learning rate when a recorded value has stopped falling, judged on its mean over a window.

    One value per iteration is too noisy to judge, and reading it would wait for the device every time; the sum stays
    on the device and is read once per window. Both are part of the state, so that a resumed run decides alike.
    """

    def __init__(
        self, optimizer: Optimizer, monitor: str, window: int, factor: float, patience: int, min_lr: float
    ) -> None:
        """Sets the rule.

        Args:
            optimizer: The player's optimizer.
            monitor: Name of a value that the method records, `m_global` for BEGAN.
            window: Iterations averaged per judgement.
            factor: What the learning rate is multiplied by.
            patience: Windows without improvement (of at least 1e-4, relative) that are waited for.
            min_lr: Floor of the learning rate.
        """
        super().__init__(optimizer, mode="min", factor=factor, patience=patience, min_lr=min_lr)
        self.monitor, self.window = monitor, window
        self.total, self.count = torch.zeros(()), 0

    def observe(self, value: Tensor, average: Callable[[Tensor], Tensor]) -> None:
        """Takes in one iteration's value; `average` is the mean over processes."""
        self.total = self.total.to(value.device) + value.detach()
        self.count += 1
        if self.count == self.window:
            self.step(float(average(self.total / self.count)))
            self.total, self.count = torch.zeros_like(self.total), 0


class _IterationLoop(_ManualOptimization):
    """Lightning's manual loop, but one `training_step` is one `global_step`, however many optimizers stepped in it.

    Lightning counts every optimizer step (its issue 17958), so that `max_steps`, checkpoints and curves would mean
    something else for each method. `test_models_base.py` guards this use of a private class.
    """

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One iteration, which nobody else's look at the model may enter."""
        with _SWAPPING:
            return super().run(*args, **kwargs)

    def on_run_start(self) -> None:
        """Leaves the optimizers' counting hooks silent."""
        cast(GenerativeModel, self.trainer.lightning_module).begin_iteration()

    def on_run_end(self) -> Any:
        """Counts the iteration, before any callback sees its end."""
        self.optim_step_progress.increment_ready()
        self.optim_step_progress.increment_completed()
        cast(GenerativeModel, self.trainer.lightning_module).end_iteration()
        output, self._output = self._output, {}
        return output


class GenerativeModel(pl.LightningModule):
    """Base of every method.

    A subclass calls `add_player` for each set of parameters with an optimizer, writes `training_step` in terms of
    `turn`, `noise` and `record`, and offers what it can of the capabilities `sample(n, y=None, rng=None)`,
    `encode(x)`, `decode(z)`, `reconstruct(x)`, `log_joint(x, z)`, `log_prior(z)`,
    `sample_posterior(x, k, rng) -> z [k, N, Z], log_q [k, N]` (these three give importance-weighted bounds),
    `sample_prior(n, rng) -> z [n, Z]` (of continuous latents: with the first two it gives annealed estimates),
    `score_logits(x)`, `translate(x)`, `frames(n, rng) -> [T, n, ...]` (how samples come about, step by step),
    `classify(x)` and `cluster(x)` (logits [N, K] of classes, and of categories without a name), each marked with
    `@inference`. Scripts, samplers and callbacks ask `can(...)`, never for names of methods.

    Attributes:
        ema_modules: Names of the submodules whose moving average is kept, sampled from and judged.
        batches_per_step: How many fresh batches one iteration consumes (`n_critic` for WGANs); `batch.x` then holds
            that many batches, one after the other. Where the number changes with the iteration, a method
            `batches_at(iteration)` says it.
        latent_prior: What `noise` draws, for those who interpolate or search: "normal" (standard), or "uniform" on
            [-1, 1].
        one_hot_latents: Which parts of a latent are one-hot vectors, for those who would walk through them.
        tricks_taken: Which of `tricks.*` the method takes part in; others are refused.
        wants_groups: What to say, as a sentence, of batches in which not one known factor alone varies; "" where any
            batches will do.
        spec: What the data look like; set before training and by `genlab.load`.
        settings: What holds for the run whatever the method.
    """

    ema_modules: tuple[str, ...] = ()
    batches_per_step: int = 1
    latent_prior: Literal["normal", "uniform"] = "normal"
    one_hot_latents: tuple[range, ...] = ()
    tricks_taken: ClassVar[tuple[str, ...]] = ("historical_averaging", "virtual_batch_norm")
    wants_groups: str = ""
    latent_dim: int
    spec: DataSpec
    initialised: Tensor

    if TYPE_CHECKING:  # offered or not, see `can`
        sample: Callable[..., Tensor]
        encode: Callable[..., Tensor]
        decode: Callable[..., Tensor]
        reconstruct: Callable[..., Tensor]
        log_joint: Callable[..., Tensor]
        log_prior: Callable[..., Tensor]
        sample_prior: Callable[..., Tensor]
        sample_posterior: Callable[..., tuple[Tensor, Tensor]]
        score_logits: Callable[..., Tensor]
        translate: Callable[..., Tensor]
        frames: Callable[..., Tensor]
        classify: Callable[..., Tensor]
        cluster: Callable[..., Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = Settings()
        self.run_config: dict[str, Any] = {}
        self.rng = torch.Generator()
        self.rng.manual_seed(0)
        self.register_buffer("initialised", torch.tensor(False))
        self.replay_buffer = torch.empty(0)  # earlier fakes, kept by checkpoints where there are any
        self._differentiable = False  # inside `inference(gradients=True)`
        self._turns: dict[str, Turn] = {}
        self._factories: dict[str, tuple[OptimizerFactory, SchedulerFactory | None]] = {}
        self._schedulers: list[LRScheduler] = []
        self._ema: dict[str, Tensor] = {}  # "generator.weight" -> average; empty while there is none
        self._ema_inside = False
        self._holds_averages = False  # in place of the live weights, for good
        self._live: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        self._rng_states: list[dict[str, Any]] | None = None
        self._logging = False
        self._recorded: dict[str, Tensor | float] = {}
        self._watched: list[tuple[int, str, str, Tensor]] = []  # iteration, player, what of it, value
        self._history: dict[int, dict[str, Tensor | float]] = {}  # recorded values of the iterations watched
        self._rank, self._world, self._done = 0, 1, 0
        self._common = False  # draws are those of all processes, see `common_draws`
        self.time_share = 0.0  # of the CPU time that the run may take; 0 where it may take any

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
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        clip: float | None = None,
    ) -> None:
        """Declares who moves: the parameters of `modules`, updated together by one optimizer.

        Args:
            name: "generator", "discriminator", "encoder", ...
            modules: What it moves. No parameter may belong to two players.
            optimizer: Called with the parameters when training starts.
            scheduler: Called with the optimizer; stepped once per iteration.
            clip: Largest gradient norm of its updates, in place of the run's `optim.clip`.

        Raises:
            ValueError: If the name is taken or a parameter already has a player.
        """
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        taken = {id(p): turn.name for turn in self._turns.values() for p in turn.parameters}
        owners = {taken[id(p)] for p in parameters if id(p) in taken}
        if name in self._turns or owners:
            raise ValueError(f"Player {name!r} clashes with {sorted(owners) or [name]}: players share no parameter.")
        for turn in self._turns.values():
            turn._others += parameters
        self._turns[name] = Turn(self, name, parameters, clip)
        self._turns[name]._others = [p for t in self._turns.values() if t.name != name for p in t.parameters]
        self._factories[name] = (optimizer, scheduler)

    @property
    def players(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each player, in the order of declaration."""
        return {name: turn.parameters for name, turn in self._turns.items()}

    def turn(self, name: str, *more: str) -> Turn:
        """The named player's move, or the common one of several on one loss; use it in a `with` block."""
        if more:
            return JointTurn(self, [self._turns[n] for n in (name, *more)])
        return self._turns[name]

    @contextmanager
    def fakes(self) -> Iterator[bool]:
        """Where the samples are made that a discriminator will see, outside of any turn; gives `speed.reuse_fakes`.

        Under it they keep their graph, and the generator's turn goes on with them instead of drawing others.
        """
        with torch.set_grad_enabled(self.settings.speed.reuse_fakes):
            yield self.settings.speed.reuse_fakes

    def shown(self, x_fake: Tensor) -> Tensor:
        """Fakes [N, ...] as the discriminator is shown them: cut off from the generator, some replaced by earlier ones.

        Shrivastava et al. (2017), arXiv:1612.07828, section 2.3: a share of each batch comes from a buffer, and as many
        of the new ones take the place of old ones.
        """
        x_fake = x_fake.detach()
        count = round(self.settings.tricks.replay * len(x_fake))
        if not count:
            return x_fake
        size = max(count, self.settings.tricks.replay_size // self._world)
        room = size - len(self.replay_buffer) if self.replay_buffer.dim() > 1 else size
        if room > 0:  # the buffer fills up first
            kept = x_fake[:room].clone()
            self.replay_buffer = kept if self.replay_buffer.dim() == 1 else torch.cat([self.replay_buffer, kept])
            return x_fake
        order = self.rand(1, size)[0].argsort()[:count]
        old = self.replay_buffer[order]
        self.replay_buffer[order] = x_fake[:count].to(self.replay_buffer.dtype)
        return torch.cat([old.to(x_fake.dtype), x_fake[count:]])

    def generator_loss(self, loss: Any, discriminator: Any, x_fake: Tensor, x_real: Tensor) -> Tensor:
        """What the generator minimises: `loss.generator` of the logits on its fakes, or feature matching.

        Args:
            loss: An adversarial loss.
            discriminator: Maps samples [N, ...] to logits; under feature matching, has `features`.
            x_fake: The fakes, with their graph.
            x_real: Real samples, looked at by feature matching alone.
        """
        if not self.settings.tricks.feature_matching:
            return cast(Tensor, loss.generator(discriminator(x_fake)))
        with torch.no_grad():
            real = self.gathered(discriminator.features(x_real))
        return feature_matching(real, self.gathered(discriminator.features(x_fake)))

    def step(self, *names: str) -> None:
        """Moves the named players on the gradients that they collected (simultaneous games)."""
        with _one_scale(getattr(self.trainer.precision_plugin, "scaler", None)):
            for name in names:
                self._turns[name].optimizer.step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        """One optimizer per player, in their order; none for models that are fitted in `initialise`."""
        optimizers, self._schedulers = [], []
        for name, (make_optimizer, make_scheduler) in self._factories.items():
            optimizers.append(self._optimizer(name, make_optimizer))
            for group in optimizers[-1].param_groups:
                group["lr"] *= self.settings.lr_scale
            if make_scheduler is not None:
                self._schedulers.append(make_scheduler(optimizers[-1]))
        return (optimizers, self._schedulers) if optimizers else None

    def _optimizer(self, name: str, make: OptimizerFactory) -> Optimizer:
        """The player's optimizer; fused where that is asked for and its class knows how."""
        if self.settings.speed.fused:
            with contextlib.suppress(TypeError, RuntimeError):  # it takes no such argument, or not on this device
                return make(self._turns[name].parameters, fused=True)  # type: ignore[call-arg]
        return make(self._turns[name].parameters)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips, here and not before `step`, since here gradients are unscaled under every precision."""
        index = 0 if len(self._turns) == 1 else self.trainer.optimizers.index(optimizer)
        turn = list(self._turns.values())[index]
        clip = turn.max_norm
        if self.settings.tricks.historical_averaging:
            turn.remember(self.settings.tricks.historical_averaging)
        self.watch_gradients(turn)
        if clip is None and not self._logging:
            return
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(turn.parameters, clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in turn.parameters if p.grad is not None])
        self._recorded[f"grad_norm_{turn.name}"] = norm

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
        return min(1.0, max(self._done / max(1, self.trainer.max_steps), self.time_share))

    def begin_iteration(self) -> None:
        """Called by the loop before each `training_step`."""
        if self._rng_states is not None:  # the first iteration after a checkpoint was read
            _restore_random_states(self._rng_states[min(self._rank, len(self._rng_states) - 1)], self.rng)
            self._rng_states = None
        self._done = self.trainer.global_step
        step = self._done + 1
        self._logging = step % self.settings.log_every_n_steps == 0 or step == self.trainer.max_steps or step == 1
        if len(self._history) >= WATCHED_AT_MOST:
            self.check_finite()
        self._recorded = self._history[step] = {}

    def end_iteration(self) -> None:
        """Called by the loop after each `training_step`: schedules, the average, the records, the watch for NaN."""
        for scheduler in self._schedulers:
            if isinstance(scheduler, WindowedPlateau):
                if scheduler.monitor not in self._recorded:
                    recorded = ", ".join(n for n in self._recorded if not n.startswith("grad_norm"))
                    raise UserError(
                        f"A scheduler watches {scheduler.monitor!r}, which {type(self).__name__} does not record; "
                        f"it records {recorded}."
                    )
                scheduler.observe(torch.as_tensor(self._recorded[scheduler.monitor]), self.averaged)
            else:
                scheduler.step()
        if self._ema:
            self._update_ema()
        if self._logging:
            self.check_finite()
            self._write_records()

    def record(self, **values: Tensor | float) -> None:
        """Notes values of this iteration. They stay on the device and are written every n iterations.

        Args:
            **values: Scalars, by the names of the curves: `d_loss` becomes `train/d_loss`.
        """
        for name, value in values.items():
            self._recorded[name] = value.detach() if isinstance(value, Tensor) else value

    def record_logits(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Notes a discriminator's health: its mean logits [N] and how often it is right at the threshold 0."""
        if self._logging:
            self.record(logits_real=logits_real.mean(), logits_fake=logits_fake.mean())
            self.record(acc_real=(logits_real > 0).float().mean(), acc_fake=(logits_fake < 0).float().mean())

    def watch(self, name: str, value: Tensor, what: str = "loss") -> None:
        """Keeps a player's loss until the next check for NaN and Inf, so that the first bad one can be named.

        Args:
            name: The player.
            value: A scalar: the loss, or for a gradient 0 where it is finite.
            what: "loss" or "gradient".
        """
        self._watched.append((self._done + 1, name, what, value.detach()))

    def watch_gradients(self, turn: Turn) -> None:
        """Watches a player's gradients: one number for all of them, which stays on the device."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # float16: the scaler meets infinite gradients, skips their step and lowers its scale
        gradients = [p.grad for p in turn.parameters if p.grad is not None]
        found = torch.zeros((), device=self.device, dtype=torch.float32)
        for dtype in {gradient.dtype for gradient in gradients}:
            # What torch.amp's scaler asks, with a scale of 1: it leaves every bit as it is, and costs less than norms.
            torch._amp_foreach_non_finite_check_and_unscale_(
                [g for g in gradients if g.dtype == dtype], found, torch.ones_like(found)
            )
        self.watch(turn.name, found, "gradient")

    def check_finite(self) -> None:
        """Reads what was watched since the last check; called every n iterations and before each checkpoint.

        All processes come to the same answer, also where only one of them has met a NaN.

        Raises:
            NotFinite: If a loss or a gradient was not finite; names the player, the iteration and the terms.
        """
        watched, history = self._watched, self._history
        self._watched, self._history = [], {self._done + 1: self._recorded}
        if not watched:
            return
        values = torch.stack([value.float() for *_, value in watched])
        wanted_zero = torch.tensor([what == "gradient" for _, _, what, _ in watched], device=values.device)
        good = torch.where(wanted_zero, values == 0, values.isfinite())
        bad = (self.averaged(good.float()) < 1).nonzero().flatten().tolist()
        if not bad:
            return
        step, name, what, value = watched[bad[0]]
        if what == "gradient":
            raise NotFinite(f"the {name}'s gradient was not finite in iteration {step}.")
        recorded = {n: torch.as_tensor(v) for n, v in history.get(step, {}).items() if not n.startswith("grad_norm")}
        terms = [n for n, v in recorded.items() if not bool(v.isfinite().all())]
        named = f" (not finite: {', '.join(terms)})" if terms else ""
        became = f"became {float(value)}" if not bool(value.isfinite()) else "was not finite on another process"
        raise NotFinite(f"the {name}'s loss {became} in iteration {step}{named}.")

    def check_parameters(self) -> None:
        """Before a checkpoint replaces the last good one: nothing that is not finite may be in it.

        Raises:
            NotFinite: If a parameter is not finite; names the player.
        """
        for name, parameters in self.players.items():
            if not parameters:
                continue
            values = [p.detach() for p in parameters]
            # The norm is fast and overflows beyond 1e19; the greatest value does not.
            if not bool(torch.stack(torch._foreach_norm(values)).isfinite().all()) and not bool(
                torch.stack(torch._foreach_norm(values, torch.inf)).isfinite().all()
            ):
                raise NotFinite(f"parameters of the {name} are no longer finite after iteration {self.iteration}.")

    def _write_records(self) -> None:
        names = sorted(self._recorded)
        if not names:
            return
        recorded = (self._recorded[n] for n in names)
        found = [v.cpu() if isinstance(v, Tensor) else v for v in recorded]  # first: MPS has no float64
        values = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in found])
        metrics = {f"train/{n}": v for n, v in zip(names, self.averaged(values).tolist(), strict=True)}
        for turn in self._turns.values():
            metrics[f"lr/{turn.name}"] = turn.optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        self.report(metrics)

    def report(self, metrics: dict[str, float]) -> None:
        """Writes named values at the current iteration to every logger, and shows them to the progress bar."""
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    # -------------------------------------------------------------------------------------------- noise and processes

    def randn(self, n: int, *shape: int, rng: torch.Generator | None = None) -> Tensor:
        """Standard normal draws, [n, *shape].

        In training they come from one stream that all processes share: it is drawn for the global batch and each
        process takes its slice, so that two processes see what one would.
        """
        return self._draw(torch.randn, n, shape, rng)

    def rand(self, n: int, *shape: int, rng: torch.Generator | None = None) -> Tensor:
        """Uniform draws in [0, 1), [n, *shape]; see `randn`."""
        return self._draw(torch.rand, n, shape, rng)

    def _draw(self, draw: Callable[..., Tensor], n: int, shape: tuple[int, ...], rng: torch.Generator | None) -> Tensor:
        if rng is not None:
            return draw(n, *shape, generator=rng, device=rng.device, dtype=self.dtype).to(self.device)
        if self.rng.device != self.device:
            self.rng = torch.Generator(self.device).manual_seed(self.rng.initial_seed())
        world = 1 if self._common else self._world
        values = draw(n * world, *shape, generator=self.rng, device=self.device, dtype=self.dtype)
        return values if world == 1 else values[self._rank * n : (self._rank + 1) * n]

    @contextmanager
    def common_draws(self) -> Iterator[None]:
        """Inside, `randn` and `rand` give the same numbers on all processes: for work on the whole, gathered batch."""
        before, self._common = self._common, True
        try:
            yield
        finally:
            self._common = before

    def noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Latents from the prior, [n, latent_dim]; standard normal unless a method overrides it."""
        return self.randn(n, self.latent_dim, rng=rng)

    def averaged(self, value: Tensor) -> Tensor:
        """The mean of a value over processes, without gradient. Each must hold equally many samples."""
        if self._world == 1:
            return value.detach()
        return self.trainer.strategy.reduce(value.detach().clone().to(self.device), reduce_op="mean")

    def gathered(self, x: Tensor) -> Tensor:
        """The whole batch [world * N, ...] of a tensor [N, ...], with its gradient, for terms that couple samples."""
        if self._world == 1:
            return x
        return cast(Tensor, self.all_gather(x, sync_grads=True)).flatten(0, 1)

    # ------------------------------------------------------------------------------------------------------------ EMA

    def _ema_sources(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name in self.ema_modules
            for key, value in self.get_submodule(name).state_dict(keep_vars=True).items()
        }

    def _start_ema(self) -> None:
        """Pairs each live tensor with its average; what is no average of its past is copied (`averaged_names`)."""
        sources = self._ema_sources()
        if self.settings.ema_decay <= 0 or not sources:
            self._ema = {}
            return
        if not self._ema:
            self._ema = {key: value.detach().clone() for key, value in sources.items()}
        self._ema = {key: value.to(self.device) for key, value in self._ema.items()}
        averaged = {f"{name}.{key}" for name in self.ema_modules for key in averaged_names(self.get_submodule(name))}
        self._live = [value for key, value in sources.items() if key in averaged]
        self._averages = [self._ema[key] for key in sources if key in averaged]
        self._copied = [(self._ema[key], sources[key]) for key in sources if key not in averaged]

    def _update_ema(self) -> None:
        # Early averages would remember the random start: the decay grows with the iteration to its final value.
        decay = min(self.settings.ema_decay, (2 + self._done) / (11 + self._done))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._live, 1 - decay)
            for average, live in self._copied:
                average.copy_(live)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GenerativeModel:
        """Takes averages, earlier fakes and past means along wherever the weights go (`to`, `double`, `cuda`)."""
        super()._apply(fn, recurse)
        if "replay_buffer" in self.__dict__:
            self.replay_buffer = fn(self.replay_buffer)
        for turn in self.__dict__.get("_turns", {}).values():
            turn.history = [fn(mean) for mean in turn.history]
        if self.__dict__.get("_ema"):
            with torch.no_grad():
                self._ema = {key: fn(average) for key, average in self._ema.items()}
            if self._live:  # paired already: the new tensors take the place of the old
                self._start_ema()
        return self

    @contextmanager
    def ema(self) -> Iterator[None]:
        """Inside, the modules hold their averaged weights (nothing changes where no average is kept)."""
        if not self._ema:
            yield
            return
        with _SWAPPING:
            yield from self._swapped()

    def _swapped(self) -> Iterator[None]:
        wanted = not self._ema_inside  # a block within a block must not swap them back
        pairs = [(source, self._ema[key]) for key, source in self._ema_sources().items()] if wanted else []
        for live, average in pairs:
            live.data, average.data = average.data, live.data
        inside, self._ema_inside = self._ema_inside, True
        vectors = self._fit_spectral_norms() if wanted else []
        try:
            yield
        finally:
            self._ema_inside = inside
            for vector, value in vectors:
                vector.copy_(value)
            for live, average in pairs:
                live.data, average.data = average.data, live.data

    def _fit_spectral_norms(self) -> list[tuple[Tensor, Tensor]]:
        """Finds the singular vectors of the weights as they are now; gives the vectors and what they were before.

        Those of the live weights belong to other matrices than the averaged ones.
        """
        before = []
        parts = [part for name in self.ema_modules for part in self.get_submodule(name).modules()]
        chains: list[Any] = []
        for part in filter(is_parametrized, parts):
            chains += cast(nn.ModuleDict, part.parametrizations).values()
        for chain in chains:
            if not hasattr(chain, "original"):
                continue  # several tensors in place of one: no weight that spectral norm could stand on
            weight, training = chain.original.detach(), chain.training
            chain.eval()  # in training mode spectral norm would go on from here, and a loaded model differ by a bit
            for step in chain:
                if isinstance(step, _SpectralNorm) and hasattr(step, "_u"):
                    before += [(step._u, step._u.clone()), (step._v, step._v.clone())]
                    step._power_method(step._reshape_weight_to_matrix(weight), POWER_ITERATIONS)
                weight = step(weight).detach()
            chain.train(training)
        return before

    @torch.no_grad()
    def settle(self) -> None:
        """Puts the averages, if there are any, in place of the live weights for good.

        Such a model has nothing to swap when it is asked, so that several threads may ask it.
        """
        if not self._ema:
            return
        for key, live in self._ema_sources().items():
            live.copy_(self._ema[key])
        self.load_ema({})
        self._fit_spectral_norms()
        self._holds_averages = True

    @property
    def has_averages(self) -> bool:
        """Whether what is sampled and judged are averaged weights."""
        return bool(self._ema) or self._holds_averages

    @contextmanager
    def inference(self, gradients: bool = False) -> Iterator[None]:
        """EMA weights, eval mode, no gradients; every module's own mode comes back afterwards.

        Args:
            gradients: Let gradients flow to what the capabilities are given, and to no parameter: inside,
                `model.score_logits(model.decode(z))` can be differentiated by z, which searches and samplers in latent
                space live on.
        """
        if self._differentiable:  # a capability, called inside `inference(gradients=True)`: all is as it should be
            yield
            return
        with _SWAPPING if self._ema or self.training or gradients else contextlib.nullcontext():
            yield from self._inferring(gradients)

    def _inferring(self, gradients: bool) -> Iterator[None]:
        modes = [(module, module.training) for module in self.modules()]
        learned = [p for p in self.parameters() if p.requires_grad] if gradients else []
        for module, _ in modes:
            module.training = False
        for parameter in learned:
            parameter.requires_grad_(False)
        nested = [module for module, _ in modes if isinstance(module, GenerativeModel)]  # this one, and first stages
        for model in nested:
            model._differentiable = gradients
        try:
            with torch.set_grad_enabled(gradients), eager(), self.ema():
                yield
        finally:
            for model in nested:
                model._differentiable = False
            for parameter in learned:
                parameter.requires_grad_(True)
            for module, mode in modes:
                module.training = mode

    # ------------------------------------------------------------------------------------------------- start and state

    def initialise(self, batches: Iterator[Batch]) -> None:
        """What must see data before the first iteration: visible biases, reference batches, codebooks, PCA itself.

        Args:
            batches: The first training batches, whole (all processes see the same).
        """

    def setup(self, stage: str) -> None:
        """Takes over the counting of iterations."""
        if stage == "fit":
            self._rank, self._world = self.trainer.global_rank, self.trainer.world_size
            # Lightning does so only after it has read a checkpoint: float64 weights would be rounded to float32.
            self.trainer.precision_plugin.convert_module(self)
            if self.settings.speed.channels_last:
                self.to(memory_format=torch.channels_last)
            if "mixed" in str(self.trainer.precision):
                for network in self.children():
                    leave_in_float32(network)
            if self.settings.speed.compile:
                for network in self.children():
                    _compile(network)
            self.trainer.fit_loop.epoch_loop.manual_optimization = _IterationLoop(self.trainer)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Brings images into the order of channels that the networks have."""
        if self.settings.speed.channels_last and isinstance(getattr(batch, "x", None), Tensor) and batch.x.dim() == 4:
            batch.x = batch.x.contiguous(memory_format=torch.channels_last)
        return batch

    def on_train_start(self) -> None:
        """Initialises from data, pairs the averages, and seeds every stream, unless a checkpoint brought them."""
        optimizers = self.optimizers()
        for turn, optimizer in zip(
            self._turns.values(), optimizers if isinstance(optimizers, list) else [optimizers], strict=False
        ):
            turn.optimizer = cast(LightningOptimizer, optimizer)
        self.rng = torch.Generator(self.device).manual_seed(self.settings.seed)
        if self._rng_states is None:
            pl.seed_everything(self.settings.seed + self._rank, verbose=False)
        if not self.initialised:
            for network in self.children():
                if isinstance(network, VirtuallyNormalised):  # of the latents that the method draws, the same always
                    rng = torch.Generator().manual_seed(0)
                    network.set_reference(self.noise(network.reference_size, rng))
            datamodule = getattr(self.trainer, "datamodule", None)
            if datamodule is not None:
                with torch.no_grad():
                    batches = cast(Any, datamodule).first_batches()
                    convert = self.trainer.precision_plugin.convert_input  # to float64 where the weights are
                    self.initialise(convert(b.to(self.device)) for b in batches)
            self.initialised.fill_(True)
            if self._world > 1:
                for tensor in self.state_dict().values():
                    torch.distributed.broadcast(tensor, src=0)
        self._start_ema()
        for module in self.modules():
            if isinstance(module, Drawing):
                module.adopt(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds genlab's own section: plain containers and tensors only, so that loading executes nothing."""
        states = [_random_states(self.rng)]
        if self._world > 1:
            states = [None] * self._world  # type: ignore[list-item]
            torch.distributed.all_gather_object(states, _random_states(self.rng))
        checkpoint["genlab"] = {
            "format": CHECKPOINT_FORMAT,
            "config": self.run_config,
            "spec": self.spec.to_dict() if hasattr(self, "spec") else None,
            "ema": self._ema,
            "random": states,
            "tricks": {
                "replay": self._of_all_processes(self.replay_buffer),
                "history": {name: [turn.updates, turn.history] for name, turn in self._turns.items() if turn.updates},
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the section back; random states come into force with the first iteration."""
        section = checkpoint_section(checkpoint)
        self.load_ema(section["ema"])
        self._rng_states = section["random"]
        tricks = section.get("tricks") or {"replay": [], "history": {}}
        if tricks["replay"]:
            own = tricks["replay"][min(self._rank, len(tricks["replay"]) - 1)]
            self.replay_buffer = own.to(self.device, copy=True)
        for name, (updates, history) in tricks["history"].items():
            self._turns[name].updates = updates
            self._turns[name].history = [mean.to(self.device, copy=True) for mean in history]

    def _of_all_processes(self, x: Tensor) -> list[Tensor]:
        """A tensor of each process, on the CPU, nothing where it is empty."""
        if not len(x):
            return []
        if self._world == 1:
            return [x.cpu()]
        found: list[Any] = [None] * self._world
        torch.distributed.all_gather_object(found, x.cpu())
        return found

    def load_ema(self, averages: dict[str, Tensor]) -> None:
        """Puts averages from a checkpoint in place.

        Raises:
            UserError: If they do not belong to this method's `ema_modules`.
        """
        missing = sorted(self._ema_sources().keys() ^ averages.keys()) if averages else []
        if missing:
            raise UserError(f"The checkpoint's moving averages do not fit the model: {missing[0]} is on one side only.")
        self._ema = {key: value.detach().clone() for key, value in averages.items()}

    def can(self, capability: str) -> bool:
        """Whether the method offers a capability, one of `CAPABILITIES`."""
        assert capability in CAPABILITIES
        if capability == "score_logits" and any(getattr(m, "couples_samples", False) for m in self.modules()):
            return False  # a sample has no logit of its own
        return callable(getattr(self, capability, None))


@contextmanager
def _one_scale(scaler: torch.amp.GradScaler | None) -> Iterator[None]:
    """Inside, float16's scale stays, where Lightning lets it move after each optimizer; it moves once, at the end.

    The gradients of all who move were collected with one scale, and are divided by it.
    """
    if scaler is None:
        yield
        return
    scaler.__dict__["update"] = lambda: None
    try:
        yield
    finally:
        del scaler.__dict__["update"]
    scaler.update()


def _compile(network: nn.Module) -> None:
    """Compiles a network whole; where a part of it draws or follows a clock, the largest parts that do not.

    Draws from a generator cannot be compiled, and a number that changes with the iteration, as the level of instance
    noise does, is a constant of what was compiled: each iteration would compile anew.
    """
    if not any(isinstance(part, Drawing) for part in network.modules()):
        network.compile(dynamic=False)
        return
    for part in network.children():
        _compile(part)


def averaged_names(module: nn.Module) -> set[str]:
    """Names of the tensors in a module's state that a moving average averages; all others are copied.

    These are its floating-point parameters, running statistics of norms, and buffers that a part lists in
    its `averaged_buffers`. Any other buffer may be anything: the mean of spectral norm's unit vectors is none.
    """
    names = {name for name, value in module.named_parameters(remove_duplicate=False) if value.is_floating_point()}
    for prefix, part in module.named_modules(remove_duplicate=False):
        norm = isinstance(part, _NormBase) and part.running_mean is not None
        listed = ("running_mean", "running_var") if norm else getattr(part, "averaged_buffers", ())
        names |= {f"{prefix}.{name}" if prefix else name for name in listed}
    return names


def checkpoint_section(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Genlab's own section of a checkpoint.

    Raises:
        UserError: If there is none, or its format is newer than this version reads.
    """
    section = checkpoint.get("genlab") if isinstance(checkpoint, dict) else None
    if not isinstance(section, dict) or not {"format", "config", "ema", "random"} <= section.keys():
        raise UserError("This checkpoint was not written by genlab: it has no complete section 'genlab'.")
    if section["format"] > CHECKPOINT_FORMAT:
        raise UserError(f"This checkpoint has format {section['format']}; this genlab reads up to {CHECKPOINT_FORMAT}.")
    return section


def _random_states(noise: torch.Generator) -> dict[str, Any]:
    """All random states of this process as plain containers and tensors."""
    name, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
    return {
        "noise": noise.get_state(),
        "noise_device": noise.device.type,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }


def _restore_random_states(states: dict[str, Any], noise: torch.Generator) -> None:
    if states["noise_device"] == noise.device.type:
        noise.set_state(states["noise"].cpu())
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
