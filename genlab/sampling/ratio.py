"""How much likelier a sample is under the data than under the model, read from a discriminator and calibrated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.sampling.base import generator

if TYPE_CHECKING:
    from genlab.sampling.base import Model

log = logging.getLogger("genlab")
HELD_OUT = 0.2  # share of the real samples that the calibration has for itself
FEWEST = 20


class LogRatio:
    """log p_data(x) / p_model(x) = a * D(x) + b, of a discriminator's logits D.

    At its optimum the discriminator of a sigmoid GAN is this ratio itself. A trained one seldom is: it was trained
    against a generator that has moved on (and whose average is sampled from), and the logits of other losses have
    another scale. Two cures, both without touching the model:

    - `d_steps` goes on training the discriminator with the generator frozen, by the sigmoid cross-entropy, as Azadi et
      al. (2019), arXiv:1810.06758, section 4 ask for. A copy of its weights is trained, in eval mode: batch
      normalisation keeps its statistics, so that each sample is judged by itself.
    - a and b are fitted by logistic regression of real against drawn samples on the logits (Platt, 1999), on real
      samples that the copy was not trained on.

    Attributes:
        slope: a.
        offset: b.
        weights: The copy's weights by their names in the model; empty if the model's own are used.
    """

    def __init__(self, calibrate: bool, d_steps: int, d_lr: float, batch_size: int) -> None:
        """Chooses the cures.

        Args:
            calibrate: Whether a and b are fitted; 1 and 0 otherwise.
            d_steps: Steps of Adam that the copy is trained for.
            d_lr: Their size.
            batch_size: Real, and drawn, samples per step.

        Raises:
            UserError: If a number is out of its range.
        """
        if d_steps < 0 or not d_lr > 0 or batch_size < 1:
            raise UserError(
                f"sampler.d_steps must be at least 0, sampler.d_lr above 0 and sampler.batch_size at least 1, "
                f"got {d_steps}, {d_lr} and {batch_size}."
            )
        self.calibrate, self.d_steps, self.d_lr, self.batch_size = calibrate, d_steps, d_lr, batch_size
        self.slope = torch.ones((), dtype=torch.float64)
        self.offset = torch.zeros((), dtype=torch.float64)
        self.weights: dict[str, Tensor] = {}
        self.report: dict[str, float] = {}

    def fit(self, model: Model, data: Tensor | None, rng: torch.Generator | None) -> None:
        """Trains the copy and fits a and b.

        Args:
            model: A model with `sample` and `score_logits`.
            data: Real samples [N, ...]; without them the raw logits are used, with a warning.
            rng: What is drawn from.

        Raises:
            UserError: If the samples are too few.
        """
        rng = generator(rng)
        self.slope, self.offset, self.weights = torch.ones_like(self.slope), torch.zeros_like(self.offset), {}
        self.report = {}
        if data is None:
            if self.calibrate or self.d_steps:
                log.warning(
                    "Without real samples the discriminator's logits are taken as they are: "
                    "they may be far from the ratio of the densities."
                )
            return
        if len(data) < FEWEST:
            raise UserError(f"Calibrating a discriminator takes at least {FEWEST} real samples, got {len(data)}.")
        order = torch.randperm(len(data), generator=rng, device=rng.device).to(data.device)
        held = max(FEWEST // 2, round(HELD_OUT * len(data))) if self.d_steps else len(data)
        if self.d_steps:
            self._train_copy(model, data[order[held:]], rng)
        if self.calibrate:
            real = torch.cat([self._logits(model, x.to(model.device)) for x in data[order[:held]].split(256)])
            drawn = torch.cat([self._logits(model, x) for x in draws(model, held, rng)])
            self.slope, self.offset = logistic_regression(real, drawn)
            if self.slope <= 0:
                log.warning(
                    "The discriminator gives drawn samples the higher logits (slope %.3g): it is untrained "
                    "or was trained against another generator. Train it on with sampler.d_steps=3000.",
                    float(self.slope),
                )
            ratio = self._affine(drawn)
            loss = F.softplus(-self._affine(real)).mean() + F.softplus(ratio).mean()
            self.report = {
                "slope": float(self.slope),
                "offset": float(self.offset),
                # 2 log 2 where it cannot tell them apart; the mean ratio over the model's own samples should be 1.
                "cross_entropy": float(loss),
                "mean_ratio": float(ratio.exp().mean()),
            }

    def __call__(self, model: Model, x: Tensor) -> Tensor:
        """The log-ratio [N] of samples [N, ...], float64; for its gradient see `with_slope`."""
        return self._affine(self._logits(model, x))

    def with_slope(self, model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-ratio [N] of samples [N, ...], float64, and its gradient in them, [N, ...].

        The backward pass runs while the copy's weights are in place: autograd keeps references to the weights of
        convolutions and norms, and once these were put back it would mix the two networks.
        """
        with torch.enable_grad(), model.inference(gradients=True), self._own_weights(model):
            x = x.detach().requires_grad_(True)
            ratio = self._affine(model.score_logits(x))
            (slope,) = torch.autograd.grad(ratio.sum(), x)
        return ratio.detach(), slope

    def state_dict(self) -> dict[str, Tensor]:
        """`slope`, `offset`, and `weights.<name>` of the copy."""
        copied = {f"weights.{name}": weight for name, weight in self.weights.items()}
        return {"slope": self.slope, "offset": self.offset, **copied}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        self.slope, self.offset = state["slope"].cpu(), state["offset"].cpu()
        prefix = "weights."
        self.weights = {k[len(prefix) :]: v.detach().clone() for k, v in state.items() if k.startswith(prefix)}

    def _affine(self, logits: Tensor) -> Tensor:
        logits = in_float64(logits)
        return self.slope.to(logits.device) * logits + self.offset.to(logits.device)

    def _logits(self, model: Model, x: Tensor) -> Tensor:
        with self._own_weights(model):
            return model.score_logits(x)

    @contextmanager
    def _own_weights(self, model: Model) -> Iterator[None]:
        """Inside, the discriminator holds the copy's weights; the model's own are put aside, not written to."""
        if not self.weights:
            yield
            return
        parameters = dict(model.named_parameters())
        if not self.weights.keys() <= parameters.keys():
            raise UserError("The sampler was fitted to another model: the discriminator's weights have other names.")
        pairs = [(parameters[name], weight) for name, weight in self.weights.items()]
        with (
            model.inference()
        ):  # averages come in first, if there are any; within a block with gradients, nothing changes
            own = [parameter.data for parameter, _ in pairs]
            for parameter, weight in pairs:
                parameter.data = weight.data.to(parameter.device)
            try:
                yield
            finally:
                for (parameter, _), data in zip(pairs, own, strict=True):
                    parameter.data = data

    def _train_copy(self, model: Model, data: Tensor, rng: torch.Generator) -> None:
        """Goes on with Algorithm 1 of Goodfellow et al. (2014) for the discriminator alone."""
        names, parameters = _score_parameters(model, data[:2].to(model.device))
        if not parameters:
            raise UserError(f"{type(model).__name__}'s discriminator has no weights to train. Try sampler.d_steps=0.")
        with model.inference():
            self.weights = {name: parameter.detach().clone() for name, parameter in zip(names, parameters, strict=True)}
        weights = list(self.weights.values())
        optimizer = torch.optim.Adam(weights, lr=self.d_lr)
        for _ in range(self.d_steps):
            rows = torch.randint(len(data), (self.batch_size,), generator=rng, device=rng.device)
            x_real = data[rows.to(data.device)].to(model.device)
            x_fake = model.sample(self.batch_size, rng=rng)  # before the copy comes in: the generator as it is
            with torch.enable_grad(), model.inference(gradients=True), self._own_weights(model):
                for parameter in parameters:
                    parameter.requires_grad_(True)
                loss = F.softplus(-model.score_logits(x_real)).mean() + F.softplus(model.score_logits(x_fake)).mean()
                gradients = torch.autograd.grad(loss, parameters)
                for parameter in parameters:
                    parameter.requires_grad_(False)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
        for weight in weights:
            weight.grad = None


def _score_parameters(model: Model, x: Tensor) -> tuple[list[str], list[torch.nn.Parameter]]:
    """The weights that the logits depend on, found by their gradients: a sampler knows no names of networks."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with torch.enable_grad(), model.inference(gradients=True):
        for _, parameter in named:
            parameter.requires_grad_(True)
        total = model.score_logits(x).sum()
        if not total.requires_grad:
            return [], []
        gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    used = [pair for pair, gradient in zip(named, gradients, strict=True) if gradient is not None]
    return [name for name, _ in used], [parameter for _, parameter in used]


def draws(model: Model, n: int, rng: torch.Generator, batch_size: int = 256) -> Iterator[Tensor]:
    """n samples of the model, batch by batch."""
    for start in range(0, n, batch_size):
        yield model.sample(min(batch_size, n - start), rng=rng)


def logistic_regression(real: Tensor, drawn: Tensor, ridge: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Slope and offset of the log-odds of being real, by Newton's method.

    Args:
        real: Logits [N] of real samples.
        drawn: Logits [M] of drawn ones; each set has half of the weight, so that the log-odds are a log-ratio.
        ridge: Weight of the squared slope (of standardised logits) and offset; keeps them finite where the two sets
            can be parted.

    Returns:
        Slope and offset, float64 scalars on the CPU.

    Raises:
        UserError: If a logit is not finite.
    """
    x = torch.cat((real, drawn)).cpu().double()
    if not bool(x.isfinite().all()):
        raise UserError("The discriminator gives logits that are not finite, which cannot be calibrated.")
    y = torch.cat((torch.ones(len(real)), torch.zeros(len(drawn)))).double()
    weight = torch.where(y == 1, 0.5 / len(real), 0.5 / len(drawn))
    mean, std = x.mean(), x.std(correction=0)
    if std == 0:  # it tells nothing
        return torch.zeros_like(mean), torch.zeros_like(mean)
    design = torch.stack(((x - mean) / std, torch.ones_like(x)), dim=1)
    penalty = ridge * torch.eye(2, dtype=torch.float64)

    def objective(theta: Tensor) -> Tensor:
        logits = design @ theta
        return (weight * (F.softplus(logits) - y * logits)).sum() + 0.5 * theta @ penalty @ theta

    theta = torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        p = torch.sigmoid(design @ theta)
        gradient = design.T @ (weight * (p - y)) + penalty @ theta
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + penalty
        step = torch.linalg.solve(hessian, gradient)
        length = 1.0  # halved where a whole Newton step overshoots
        while objective(theta - length * step) > objective(theta) and length > 1e-6:
            length /= 2
        theta = theta - length * step
        if step.abs().max() < 1e-10:
            break
    slope = theta[0] / std
    return slope, theta[1] - slope * mean
