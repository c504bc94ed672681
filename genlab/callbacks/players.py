"""Health of adversarial training: diversity of the samples and balance of the players."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from genlab.batch import Batch
from genlab.models.base import GenerativeModel
from genlab.networks.told import Told
from genlab.seeding import preserved_random_states
from genlab.telling import telling

log = logging.getLogger("genlab")

COLLAPSED = 0.3  # diversity relative to real samples
FALLEN = 0.5  # diversity relative to the best that the run had kept, below which it has fallen
LATE = 0.9  # share of training from which on a run that has never been diverse should be; see docs/configuration.md
RISING = 1.1  # mean diversity of the later half of a window relative to the earlier half
SURE = 0.99  # discriminator accuracy on real samples and on fakes, from which on it has won
CHANCE, WORSE_THAN_CHANCE = 0.55, 0.25  # mean of the two accuracies
VANISHED = 0.01  # gradient norm relative to the largest in this run: the generator's to both players' (its own may have
# vanished at the start), the opponent's to its own
VALUES = ("diversity", "acc_real", "acc_fake", "grad_generator", "grad_opponent")


class Players(Callback):
    """Records the diversity of samples, and warns once each of mode collapse and of a player that has lost.

    Diversity is the mean distance between two samples of a batch, divided by that between two real ones, in features
    of the discriminator (in data space if it has no features of single samples). The other values are those that the
    method records. A verdict needs the agreement of all checks of a window:

    - collapse: a diversity below 0.3, and below half of the best that the run had kept for half a window. A run that
      never had more may start from below: it is warned in the last tenth of its training, unless its diversity rises;
    - the discriminator wins: right on 99 % of both real samples and fakes, with a gradient norm of the generator below
      1 % of the largest that either had (Arjovsky & Bottou (2017), arXiv:1701.04862, theorem 2.4: it vanishes);
    - the generator wins: the discriminator is right on less than 25 %, or on less than 55 % with a gradient norm below
      1 % of its largest. An accuracy near one half without a vanished gradient is the equilibrium.

    Methods without a generator and an opponent are skipped. Training is not affected.
    """

    def __init__(self, every_n_steps: int = 50, num_samples: int = 64, window: int = 20, seed: int = 0) -> None:
        """Sets the schedule of the checks.

        Args:
            every_n_steps: Iterations between checks.
            num_samples: Maximum number of generated samples, and of real samples of the batch, on each process.
            window: Checks that must agree on a verdict, at least 1.
            seed: Seed of the latents, which are the same in every check.

        Raises:
            ValueError: If a number is too small.
        """
        if every_n_steps < 1 or num_samples < 2 or window < 1:
            raise ValueError(
                "callbacks.players needs every_n_steps and window of at least 1 and num_samples of at least 2, "
                f"got {every_n_steps}, {window} and {num_samples}."
            )
        self.every_n_steps, self.num_samples, self.window, self.seed = every_n_steps, num_samples, window, seed
        self.looks: deque[list[float]] = deque(maxlen=window)  # of `VALUES`, NaN if not recorded
        self.largest = [0.0, 0.0]  # gradient norms of the generator and of its opponents
        self.reached = 0.0  # largest diversity that all checks of half a window had
        self.warned: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: checks, largest gradient norms, reached diversity and given warnings."""
        looks = [list(look) for look in self.looks]
        return {"looks": looks, "largest": list(self.largest), "reached": self.reached, "warned": self.warned[:]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state, so that no warning is repeated."""
        self.looks.clear()
        self.looks.extend(state_dict["looks"])
        self.reached = state_dict.get("reached", 0.0)  # missing in older checkpoints
        self.largest, self.warned = list(state_dict["largest"]), list(state_dict["warned"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks when due, on all processes; the first one warns."""
        if trainer.global_step % self.every_n_steps or not isinstance(pl_module, GenerativeModel):
            return
        opponents = [name for name in pl_module.players if name != "generator"]
        some = batch.rows(slice(0, self.num_samples))
        if "generator" not in pl_module.players or not opponents or not pl_module.can("sample") or len(some) < 2:
            return
        diversity = float(pl_module.averaged(self.diversity(pl_module, opponents, some)))
        pl_module.report({"train/diversity": diversity})
        norms = [_recorded(trainer, f"grad_norm_{name}") for name in opponents]
        look = [
            diversity,
            _recorded(trainer, "acc_real"),
            _recorded(trainer, "acc_fake"),
            _recorded(trainer, "grad_norm_generator"),
            max((norm for norm in norms if not math.isnan(norm)), default=math.nan),
        ]
        self.add(look)
        for verdict in self.verdicts(max(trainer.global_step / trainer.max_steps, pl_module.time_share)):
            if verdict not in self.warned:
                self.warned.append(verdict)
                if trainer.is_global_zero:
                    log.warning("%s", self.words(verdict, pl_module, trainer.global_step))

    @torch.no_grad()
    def diversity(self, model: GenerativeModel, opponents: list[str], batch: Batch) -> Tensor:
        """The mean distance of fakes over that of real samples; 1 if all real samples are equal.

        Args:
            model: Model to sample from, with latents from `seed`.
            opponents: Names of the generator's opponents.
            batch: Real samples and their conditions.
        """
        stream = model.rng.get_state()
        with preserved_random_states(), model.inference():
            fake = telling(model, batch).sample(len(batch), rng=torch.Generator().manual_seed(self.seed))
            features = _features_of(model, opponents, batch)
            spread = [torch.pdist(features(x).flatten(1).float()).mean() for x in (fake, batch.x.to(fake.dtype))]
        model.rng.set_state(stream)
        return torch.where(spread[1] > 0, spread[0] / spread[1], torch.ones_like(spread[1]))

    def add(self, look: list[float]) -> None:
        """Takes a check, the `VALUES`, into the window, the largest gradient norms and the reached diversity."""
        self.looks.append(look)
        for i, norm in enumerate(look[3:]):
            if norm > self.largest[i]:
                self.largest[i] = norm
        half = -(-self.window // 2)
        if len(self.looks) >= half:
            self.reached = max(self.reached, min(look[0] for look in list(self.looks)[-half:]))

    def has_collapsed(self, share: float) -> bool:
        """Whether the diversity is low in all checks, and has fallen or, at the end of training, does not rise."""
        diversity = [look[0] for look in self.looks]
        half = len(diversity) // 2
        rising = half > 0 and sum(diversity[-half:]) > RISING * sum(diversity[:half])
        return max(diversity) < COLLAPSED and (self.has_fallen or (share >= LATE and not rising))

    @property
    def has_fallen(self) -> bool:
        """Whether the diversity is below half of the reached one in all checks."""
        return max(look[0] for look in self.looks) < FALLEN * self.reached

    def verdicts(self, share: float) -> list[str]:
        """The verdicts on which all checks of a full window agree; none before it is full.

        Args:
            share: The share of training that is done, in [0, 1].
        """
        if len(self.looks) < self.window:
            return []
        _, acc_real, acc_fake, grad_generator, grad_opponent = zip(*self.looks, strict=True)
        right = [(a + b) / 2 for a, b in zip(acc_real, acc_fake, strict=True)]
        # A comparison with NaN is false, so values that a method does not record give no verdict.
        generator_still = all(norm < VANISHED * max(self.largest) for norm in grad_generator)
        opponent_still = all(norm < VANISHED * self.largest[1] for norm in grad_opponent)
        found = {
            "collapse": self.has_collapsed(share),
            "discriminator": all(min(pair) >= SURE for pair in zip(acc_real, acc_fake, strict=True))
            and generator_still,
            "generator": all(share < WORSE_THAN_CHANCE for share in right)
            or (all(share < CHANCE for share in right) and opponent_still),
        }
        return [verdict for verdict, holds in found.items() if holds]

    def words(self, verdict: str, model: GenerativeModel, step: int) -> str:
        """A warning with the measured values, and remedies from the literature that this method supports."""
        mean = {name: sum(look[i] for look in self.looks) / len(self.looks) for i, name in enumerate(VALUES)}
        when = f"over the {(self.window - 1) * self.every_n_steps} iterations before {step}"
        right = f"right on {mean['acc_real']:.0%} of real samples and {mean['acc_fake']:.0%} of fakes"
        penalty = ["penalty=r1 (Mescheder et al., 2018)"] if hasattr(model, "penalty") else []
        if verdict == "collapse":
            what = (
                f"The generator seems to have collapsed: its samples are {mean['diversity']:.2g} times as diverse as "
            )
            what += f"real ones, {when}"
            if self.has_fallen:
                what += f", and were {self.reached:.2g} times before."
            else:
                what += ", and have never been diverse: it may also have started slowly, and need more iterations."
            cures = penalty + _taken(
                model,
                minibatch_discrimination="true (Salimans et al., 2016)",
                packing="2 (PacGAN, Lin et al., 2018)",
            )
            cures += ["model=wgan_gp (Gulrajani et al., 2017)", "model=unrolled (Metz et al., 2017)"]
        elif verdict == "discriminator":
            what = f"The discriminator has won: it is {right}, {when}, and the generator's gradient has vanished."
            cures = ["loss=non_saturating (Goodfellow et al., 2014)"] + penalty
            cures += _taken(model, instance_noise="0.1 (Sønderby et al., 2017)", augment="true (Zhao et al., 2020)")
            cures += ["model=wgan_gp (Gulrajani et al., 2017)"]
        else:
            what = f"The discriminator has lost: it is {right}, {when}."
            cures = ["a higher learning rate of the discriminator (two time scales, Heusel et al., 2017)"]
            cures += [
                "a larger discriminator (network.*)",
                "several updates of it per iteration: model=wgan_gp model.n_critic=5",
            ]
        return f"{what} Remedies from the literature: {'; '.join(cures)}."


def _recorded(trainer: pl.Trainer, name: str) -> float:
    """The last recorded value; NaN if there is none."""
    return float(trainer.callback_metrics.get(f"train/{name}", math.nan))


def _taken(model: GenerativeModel, **tricks: str) -> list[str]:
    """Overrides of the tricks that the method supports."""
    return [f"tricks.{name}={value}" for name, value in tricks.items() if name in model.tricks_taken]


def _features_of(model: GenerativeModel, opponents: list[str], batch: Batch) -> Any:
    """The feature function of the first opponent with features of single samples; else the identity."""
    owned = {id(p) for name in opponents for p in model.players[name]}
    for network in model.children():
        theirs = any(id(p) in owned for p in network.parameters())
        coupled = any(getattr(module, "couples_samples", False) for module in network.modules())
        if theirs and not coupled and callable(getattr(network, "features", None)):
            told = model.told(batch) if any(isinstance(module, Told) for module in network.modules()) else ()
            return lambda x: network.features(x, *told)  # type: ignore[operator]
    return torch.nn.Identity()
