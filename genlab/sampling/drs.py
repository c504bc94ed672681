"""Discriminator rejection sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.sampling.base import Model, Sampler, expect_keys, rand_like
from genlab.sampling.ratio import LogRatio, draws


class DRS(Sampler):
    """Discriminator rejection sampling. Azadi et al. (2019), arXiv:1810.06758, Algorithm 1.

    A sample is accepted with probability sigmoid(F), F = D(x) - D_M - log(1 - exp(D(x) - D_M - epsilon)) - gamma
    (Eq. 8). D(x) = log p_data(x) / p_model(x) is its calibrated log-ratio and D_M the largest log-ratio seen. With
    epsilon = gamma = 0 the probability is exp(D(x) - D_M): plain rejection sampling, which is exact but accepts almost
    nothing in practice. With gamma a percentile of F, about 1 - percentile / 100 of the samples are accepted.

    D_M grows while drawing, as in the paper, and is part of the state.
    """

    name = "drs"
    needs: ClassVar[tuple[str, ...]] = ("sample", "score_logits")
    fitted_by: ClassVar[tuple[str, ...]] = ("calibrate", "d_steps", "d_lr", "batch_size", "burn_in", "data_samples")
    grows = True

    def __init__(
        self,
        gamma_percentile: float | None = 80.0,
        gamma: float = 0.0,
        epsilon: float = 1e-6,
        burn_in: int = 10_000,
        calibrate: bool = True,
        d_steps: int = 0,
        d_lr: float = 3e-4,
        batch_size: int = 256,
        data_samples: int = 10_000,
        max_tries: int = 10_000,
    ) -> None:
        """Sets the rule.

        Args:
            gamma_percentile: gamma is this percentile of F over each batch; None for the fixed `gamma`.
            gamma: Fixed gamma, used if `gamma_percentile` is None.
            epsilon: Positive constant that keeps F finite at the maximum.
            burn_in: Number of draws from which the first D_M is taken.
            calibrate: Whether the logits are calibrated on real samples, see `LogRatio`.
            d_steps: Steps of further training of a copy of the discriminator; 0 for none.
            d_lr: Learning rate of this training.
            batch_size: Candidates per batch; also real samples, and drawn samples, per training step.
            data_samples: Largest number of real samples for calibration and training.
            max_tries: Number of candidates per wanted sample after which drawing stops with an error.

        Raises:
            UserError: If a value is out of its range.
        """
        super().__init__()
        if gamma_percentile is not None and not 0 <= gamma_percentile <= 100:
            raise UserError(f"sampler.gamma_percentile must be from 0 to 100 or null, got {gamma_percentile}.")
        if epsilon < 0 or (epsilon == 0 and gamma_percentile is not None):
            raise UserError(f"sampler.epsilon must be above 0 (0 only with a fixed gamma), got {epsilon}.")
        if burn_in < 1 or max_tries < 1:
            raise UserError(f"sampler.burn_in and sampler.max_tries must be at least 1, got {burn_in} and {max_tries}.")
        self.gamma_percentile, self.gamma, self.epsilon = gamma_percentile, gamma, epsilon
        self.burn_in, self.batch_size, self.max_tries = burn_in, batch_size, max_tries
        self.ratio = LogRatio(calibrate, d_steps, d_lr, batch_size)
        self.needs_data = "optional" if calibrate or d_steps else "no"
        self.split = "train" if d_steps else "val"
        self.data_samples = data_samples
        self.maximum: Tensor | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether D_M is known."""
        return self.maximum is not None

    def score(self, log_ratio: Tensor) -> Tensor:
        """F + gamma of log-ratios [N], float64; infinite at the maximum for epsilon = 0."""
        assert self.maximum is not None
        below = log_ratio - self.maximum.to(log_ratio.device)
        return below - torch.log(-torch.expm1(below - self.epsilon))

    def accept_probability(self, log_ratio: Tensor) -> Tensor:
        """sigmoid(F) of a batch of log-ratios [N], float64; no log-ratio may exceed D_M."""
        score = self.score(log_ratio)
        gamma = self.gamma if self.gamma_percentile is None else torch.quantile(score, self.gamma_percentile / 100)
        return torch.sigmoid(score - gamma)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the log-ratio, and `maximum`."""
        assert self.maximum is not None
        return {**self.ratio.state_dict(), "maximum": self.maximum}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As in the base class."""
        expect_keys(self, {k: 0 for k in state if not k.startswith("weights.")}, {"slope", "offset", "maximum"})
        self.ratio.load_state_dict(state)
        self.maximum = state["maximum"].cpu()

    def _fit(self, model: Model, data: Tensor | None, rng: torch.Generator) -> None:
        self.ratio.fit(model, data, rng, self.progress)
        found: list[Tensor] = []
        for x in draws(model, self.burn_in, rng):
            found.append(self.ratio(model, x).cpu())
            self.progress("fitting", min(1.0, len(found) * len(found[0]) / self.burn_in))
        ratios = torch.cat(found)
        if not bool(ratios.isfinite().all()):
            raise UserError("The discriminator's logits are not finite, so that no sample can be accepted or rejected.")
        self.maximum = ratios.max()
        self.report = {**self.ratio.report, "mean_ratio": float(ratios.exp().mean()), "maximum": float(self.maximum)}

    def _sample(self, model: Model, n: int, given: Batch | None, rng: torch.Generator) -> Tensor:
        kept: list[Tensor] = []
        found = tried = 0
        while found < n:
            x = model.sample(self.batch_size, rng=rng)
            log_ratio = self.ratio(model, x)
            assert self.maximum is not None
            self.maximum = torch.maximum(self.maximum, log_ratio.max().cpu())
            accepted = rand_like(log_ratio, rng) < self.accept_probability(log_ratio)
            good = x[accepted.to(x.device)]
            kept.append(good)
            found, tried = found + len(good), tried + len(x)
            self.progress("drawing", min(1.0, found / n))
            if found < n and tried >= self.max_tries * n:
                raise UserError(
                    f"Of {tried} candidates only {found} were accepted, because the largest density ratio is "
                    f"e^{float(self.maximum):.1f}. Try sampler.gamma_percentile=80."
                )
        self.report["acceptance"] = found / tried
        self.report["maximum"] = float(self.maximum) if self.maximum is not None else float("nan")
        return torch.cat(kept)[:n]
