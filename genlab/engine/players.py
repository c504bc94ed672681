"""Players: who moves, on what loss, with which optimizer; everyone else is frozen meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from genlab.engine.lockstep import Lockstep, in_strand
from genlab.engine.schedules import ByShare, OptimizerFactory, SchedulerFactory, WindowedPlateau
from genlab.engine.settings import Settings
from genlab.engine.watch import Watch, of_gradients
from genlab.errors import UserError, sentence


class Game(Protocol):
    """The methods of a model that its players call."""

    settings: Settings
    idle_optimizers: tuple[str, ...]

    def manual_backward(self, loss: Tensor) -> None:
        """Lightning's backward pass, which knows the precision."""
        ...

    def watch(self, name: str, value: Tensor, what: str = "loss") -> None:
        """Keeps a value until the next look for NaN."""
        ...

    def step(self, *names: str) -> None:
        """Moves the named players."""
        ...


class Turn:
    """One player's move: inside the ``with`` block all other players are frozen.

    ``minimise(loss)`` is a whole update. For simultaneous games ``collect(loss)`` only computes the gradients, and
    ``model.step("discriminator", "generator")`` moves all players afterwards, each on what it collected.
    """

    def __init__(self, game: Game, name: str, parameters: list[nn.Parameter], clip: float | None) -> None:
        self.name = name
        self.parameters = parameters
        self.clip = clip
        self.optimizer: LightningOptimizer | None = None  # known once training starts
        self._game = game
        self.others: list[nn.Parameter] = []
        self._frozen: list[list[nn.Parameter]] = []  # by each block that is open
        self.history: list[Tensor] = []  # the mean of each parameter over its past, with historical averaging
        self.updates = 0  # that it is the mean of

    @property
    def max_norm(self) -> float | None:
        """Largest gradient norm of an update: the player's own bound, else the run's `optim.clip`; None for none."""
        return self.clip if self.clip is not None else self._game.settings.clip

    def __enter__(self) -> Turn:
        # Freezing the idle players saves their weight gradients, and keeps them bit-identical by construction.
        frozen = [parameter for parameter in self.others if parameter.requires_grad]
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
        self._game.watch(self.name, loss)
        for parameter in self.parameters:  # what zero_grad() does, without its hooks
            parameter.grad = None
        self._game.manual_backward(loss)

    def minimise(self, loss: Tensor) -> None:
        """One update of this player that lowers `loss` (a scalar)."""
        self.collect(loss)
        self._game.step(self.name)

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

    def __init__(self, game: Game, turns: list[Turn]) -> None:
        super().__init__(game, " and ".join(t.name for t in turns), [p for t in turns for p in t.parameters], None)
        own = {id(p) for p in self.parameters}
        self.others = [p for p in turns[0].others if id(p) not in own]
        self._names = [t.name for t in turns]
        self.optimizer = turns[0].optimizer  # for `collect`, which wants to know that there is a Trainer

    def minimise(self, loss: Tensor) -> None:
        """One update of all its players that lowers `loss` (a scalar): one backward pass, then each one's step."""
        self.collect(loss)
        self._game.step(*self._names)


class Players:
    """All players of a model.

    Attributes:
        turns: The move of each, by name, in the order of declaration.
        lockstep: The chunks of a batch, with gradient accumulation.
        schedulers: Of their learning rates, those that have one.
    """

    def __init__(self, game: Game) -> None:
        """Starts with nobody.

        Args:
            game: The model.
        """
        self.game = game
        self.turns: dict[str, Turn] = {}
        self.keys: dict[str, str] = {}  # of each player's optimizer in the config
        self.factories: dict[str, OptimizerFactory | SchedulerFactory | None] = {}  # by key
        self.schedulers: list[LRScheduler] = []
        self.lockstep = Lockstep(game)

    def add(
        self,
        name: str,
        modules: nn.Module | Iterable[nn.Module],
        optimizer: str,
        clip: float | None = None,
    ) -> None:
        """See `GenerativeModel.add_player`."""
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        taken = {id(p): turn.name for turn in self.turns.values() for p in turn.parameters}
        owners = {taken[id(p)] for p in parameters if id(p) in taken}
        if name in self.turns or owners:
            raise ValueError(f"Player {name!r} clashes with {sorted(owners) or [name]}: players share no parameter.")
        for turn in self.turns.values():
            turn.others += parameters
        self.turns[name] = Turn(self.game, name, parameters, clip)
        self.turns[name].others = [p for t in self.turns.values() if t.name != name for p in t.parameters]
        self.keys[name] = optimizer

    def use(self, factories: Mapping[str, OptimizerFactory | SchedulerFactory | None]) -> None:
        """See `GenerativeModel.use_optimizers`."""
        method, known = type(self.game).__name__, {*self.keys.values(), *self.game.idle_optimizers}
        for key in factories:
            if key not in known | {schedule_of(k) for k in known}:
                raise UserError(f"model.{key} belongs to no player; {method} has {', '.join(sorted(known)) or 'none'}.")
        for name, key in self.keys.items():
            if factories.get(key) is None:
                raise UserError(f"The {name} of {method} needs an optimizer. Set model.{key}={{_target_: ...}}")
        self.factories = dict(factories)

    def make_optimizer(self, name: str) -> Optimizer:
        """A new optimizer of the named player's parameters; fused where that is asked for and its class knows how.

        Raises:
            UserError: If the players were given no optimizers.
        """
        make = cast(OptimizerFactory | None, self.factories.get(self.keys[name]))
        if make is None:
            raise UserError(f"The {name} has no optimizer: call `use_optimizers` before training.")
        if self.game.settings.speed.fused:
            with contextlib.suppress(TypeError, RuntimeError):  # it takes no such argument, or not on this device
                return make(self.turns[name].parameters, fused=True)  # type: ignore[call-arg]
        return make(self.turns[name].parameters)

    def turn(self, name: str, *more: str) -> Turn:
        """The named player's move, or the common one of several on one loss."""
        if more:
            return JointTurn(self.game, [self.turns[n] for n in (name, *more)])
        return self.turns[name]

    def step(self, names: Iterable[str], scaler: torch.amp.GradScaler | None) -> None:
        """Moves players on the gradients that they collected, all of them under one scale in float16."""
        if in_strand():
            return self.lockstep.update(*names)
        with one_scale(scaler):
            for name in names:
                self.turns[name].optimizer.step()  # type: ignore[union-attr]

    def optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """An optimizer for each, in their order, with the run's factor on its learning rate; and the schedulers.

        Raises:
            UserError: If an optimizer or a schedule refuses its arguments.
        """
        made, self.schedulers = [], []
        for name, key in self.keys.items():
            with _refusals_named(key):
                made.append(self.make_optimizer(name))
            make_scheduler = cast(SchedulerFactory | None, self.factories.get(schedule_of(key)))
            for group in made[-1].param_groups:
                group["lr"] *= self.game.settings.lr_scale
            if make_scheduler is not None:
                with _refusals_named(schedule_of(key)):
                    self.schedulers.append(make_scheduler(made[-1]))
        return made, self.schedulers

    def take(self, optimizers: Any) -> None:
        """Gives each turn its optimizer as Lightning wraps it, once training starts."""
        wrapped = optimizers if isinstance(optimizers, list) else [optimizers]
        for turn, optimizer in zip(self.turns.values(), wrapped, strict=False):
            turn.optimizer = optimizer

    def mover(self, optimizer: Optimizer, optimizers: list[Optimizer]) -> Turn:
        """The turn whose optimizer this is."""
        index = 0 if len(self.turns) == 1 else optimizers.index(optimizer)
        return list(self.turns.values())[index]

    def before_step(self, optimizer: Optimizer, trainer: Any, watching: Watch) -> None:
        """Prepares a player's unscaled gradients for its step: historical averaging, the watch for NaN, clipping.

        Args:
            optimizer: The player's.
            trainer: Lightning's.
            watching: Where their norm is noted, if it is written or clipped.
        """
        turn = self.mover(optimizer, trainer.optimizers)
        weight, clip = self.game.settings.tricks.historical_averaging, turn.max_norm
        if weight:
            turn.remember(weight)
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # float16's meets infinite gradients itself
            self.game.watch(turn.name, of_gradients(turn.parameters), "gradient")
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(turn.parameters, clip)
        elif watching.logging:
            norm = nn.utils.get_total_norm([p.grad for p in turn.parameters if p.grad is not None])
        else:
            return
        watching.recorded[f"grad_norm_{turn.name}"] = norm

    def follow(self, share: float) -> None:
        """Sets the learning rates of the next iteration, before which a share of training in [0, 1] is done."""
        for scheduler in self.schedulers:
            if isinstance(scheduler, ByShare):
                scheduler.follow(share)

    def schedule(self, recorded: Mapping[str, Tensor | float], average: Callable[[Tensor], Tensor]) -> None:
        """Moves the schedules by one iteration, but those that `follow` the share of training.

        Args:
            recorded: What the iteration recorded, for those that watch a value.
            average: The mean over processes.

        Raises:
            UserError: If a value that is watched was not recorded.
        """
        for scheduler in self.schedulers:
            if isinstance(scheduler, ByShare):
                continue
            if not isinstance(scheduler, WindowedPlateau):
                scheduler.step()
                continue
            if scheduler.monitor not in recorded:
                names = ", ".join(n for n in recorded if not n.startswith("grad_norm"))
                raise UserError(
                    f"A scheduler watches {scheduler.monitor!r}, which {type(self.game).__name__} does not record; "
                    f"it records {names}."
                )
            scheduler.observe(torch.as_tensor(recorded[scheduler.monitor]), average)

    def rates(self) -> dict[str, float]:
        """The learning rate of each player, by the names of the curves."""
        return {
            f"lr/{turn.name}": turn.optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
            for turn in self.turns.values()
        }

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Takes past means along wherever the weights go."""
        for turn in self.turns.values():
            turn.history = [fn(mean) for mean in turn.history]

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: the mean of each player's past, with historical averaging."""
        return {name: [turn.updates, turn.history] for name, turn in self.turns.items() if turn.updates}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes back what `state` gave."""
        for name, (updates, history) in state.items():
            self.turns[name].updates = updates
            self.turns[name].history = [mean.to(device, copy=True) for mean in history]


def schedule_of(optimizer: str) -> str:
    """Config key of an optimizer's schedule."""
    return optimizer.removesuffix("optimizer") + "scheduler"


@contextmanager
def _refusals_named(key: str) -> Iterator[None]:
    """Turns the refusal of an argument by an optimizer or a schedule into a sentence with its config key."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"model.{key} cannot be made: {sentence(error)}".rstrip(".") + ".") from error


@contextmanager
def one_scale(scaler: torch.amp.GradScaler | None) -> Iterator[None]:
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
