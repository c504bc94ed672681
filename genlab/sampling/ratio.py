"""The density ratio of data and model at a sample, from the calibrated logits of a discriminator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
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
HELD_OUT = 0.2  # share of the real samples kept for calibration if the discriminator is trained on the others
FEWEST = 20


class LogRatio:
    """log p_data(x) / p_model(x) = a * D(x) + b, from a discriminator's logits D.

    The optimal logit of a sigmoid GAN is this log-ratio itself. A trained discriminator is seldom optimal: it was
    trained against an earlier generator (and samples come from the averaged one), and the logits of other losses have
    another scale. There are two corrections; neither changes the model:

    - The discriminator is trained for `d_steps` further steps on the sigmoid cross-entropy with the generator frozen,
      as in Azadi et al. (2019), arXiv:1810.06758, section 4. A copy of its weights is trained, in eval mode: batch
      normalisation uses its running statistics, so that a logit depends on its own sample only.
    - a and b are fitted by logistic regression of real against drawn samples on the logits (Platt, 1999). Its real
      samples are not used in the training of the copy.

    Attributes:
        slope: a.
        offset: b.
        weights: The copy's weights by their names in the model; empty if the model's own are used.
    """

    def __init__(self, calibrate: bool, d_steps: int, d_lr: float, batch_size: int) -> None:
        """Chooses the corrections.

        Args:
            calibrate: Whether a and b are fitted; otherwise they are 1 and 0.
            d_steps: Steps of Adam for the copy; 0: no copy.
            d_lr: Learning rate of Adam.
            batch_size: Real samples, and drawn samples, per step.

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

    def fit(
        self,
        model: Model,
        data: Tensor | None,
        rng: torch.Generator | None,
        progress: Callable[[str, float], None] = lambda what, share: None,
    ) -> None:
        """Trains the copy and fits a and b.

        Args:
            model: A model with `sample` and `score_logits`.
            data: Real samples [N, ...]; None: the raw logits are used, with a warning.
            rng: Random stream.
            progress: That of the sampler, for the training of the copy.

        Raises:
            UserError: If there are fewer than `FEWEST` samples, a logit is not finite, or no weights can be trained.
        """
        rng = generator(rng)
        self.slope, self.offset, self.weights = torch.ones_like(self.slope), torch.zeros_like(self.offset), {}
        self.report = {}
        if data is None:
            if self.calibrate or self.d_steps:
                log.warning(
                    "Without real samples the discriminator's logits are used as they are: "
                    "they may be far from the log-ratio of the densities."
                )
            return
        if len(data) < FEWEST:
            raise UserError(f"Calibrating a discriminator takes at least {FEWEST} real samples, got {len(data)}.")
        order = torch.randperm(len(data), generator=rng, device=rng.device).to(data.device)
        held = max(FEWEST // 2, round(HELD_OUT * len(data))) if self.d_steps else len(data)
        if self.d_steps:
            self._train_copy(model, data[order[held:]], rng, progress)
        if self.calibrate:
            real = torch.cat([self._logits(model, x.to(model.device)) for x in data[order[:held]].split(256)])
            drawn = torch.cat([self._logits(model, x) for x in draws(model, held, rng)])
            self.slope, self.offset = logistic_regression(real, drawn)
            if self.slope <= 0:
                log.warning(
                    "The discriminator's logits are higher for drawn than for real samples (slope %.3g): it is "
                    "untrained or was trained against another generator. Train it further with sampler.d_steps=3000.",
                    float(self.slope),
                )
            ratio = self._affine(drawn)
            loss = F.softplus(-self._affine(real)).mean() + F.softplus(ratio).mean()
            self.report = {
                "slope": float(self.slope),
                "offset": float(self.offset),
                # 2 log 2 if it cannot tell real from drawn; the mean ratio over the model's samples should be 1.
                "cross_entropy": float(loss),
                "mean_ratio": float(ratio.exp().mean()),
            }

    def __call__(self, model: Model, x: Tensor) -> Tensor:
        """The log-ratios [N] of samples [N, ...], float64; for gradients see `with_slope`."""
        return self._affine(self._logits(model, x))

    def with_slope(self, model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-ratios [N] of samples [N, ...], float64, and their gradients in the samples, [N, ...].

        The backward pass runs while the copy's weights are in place. Autograd refers to the parameters of convolutions
        and norms; after the swap back it would mix the weights of both networks.
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
        """Restores `slope`, `offset` and the copy's weights from a `state_dict`."""
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
        """Within the block, the discriminator has the copy's weights; the model's own tensors are not written to."""
        if not self.weights:
            yield
            return
        parameters = dict(model.named_parameters())
        if not self.weights.keys() <= parameters.keys():
            raise UserError("The sampler was fitted to another model: the discriminator's weights have other names.")
        pairs = [(parameters[name], weight) for name, weight in self.weights.items()]
        with (
            model.inference()
        ):  # first the averaged weights, if any; within an outer `inference` block this changes nothing
            own = [parameter.data for parameter, _ in pairs]
            for parameter, weight in pairs:
                parameter.data = weight.data.to(parameter.device)
            try:
                yield
            finally:
                for (parameter, _), data in zip(pairs, own, strict=True):
                    parameter.data = data

    def _train_copy(
        self, model: Model, data: Tensor, rng: torch.Generator, progress: Callable[[str, float], None]
    ) -> None:
        """Trains the copy: the discriminator's updates in Algorithm 1 of Goodfellow et al. (2014)."""
        names, parameters = _score_parameters(model, data[:2].to(model.device))
        if not parameters:
            raise UserError(f"{type(model).__name__}'s discriminator has no weights to train. Try sampler.d_steps=0.")
        with model.inference():
            self.weights = {name: parameter.detach().clone() for name, parameter in zip(names, parameters, strict=True)}
        weights = list(self.weights.values())
        optimizer = torch.optim.Adam(weights, lr=self.d_lr)
        for step in range(self.d_steps):
            progress("fitting", step / self.d_steps)
            rows = torch.randint(len(data), (self.batch_size,), generator=rng, device=rng.device)
            x_real = data[rows.to(data.device)].to(model.device)
            x_fake = model.sample(self.batch_size, rng=rng)  # outside the block below: with the model's own weights
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
    """Names and parameters that the logits depend on, found by their gradients, because networks differ in name."""
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
    """n samples of the model, in batches."""
    for start in range(0, n, batch_size):
        yield model.sample(min(batch_size, n - start), rng=rng)


def logistic_regression(real: Tensor, drawn: Tensor, ridge: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Slope and offset of the log-odds of being real, by Newton's method.

    Args:
        real: Logits [N] of real samples.
        drawn: Logits [M] of drawn samples. Both sets have half of the weight, so that the log-odds are a log-ratio.
        ridge: Weight of the squared slope (of standardised logits) and offset; keeps them finite if a threshold
            separates the two sets.

    Returns:
        Slope and offset, float64 scalars on the CPU.

    Raises:
        UserError: If a logit is not finite.
    """
    x = torch.cat((real, drawn)).cpu().double()
    if not bool(x.isfinite().all()):
        raise UserError("The discriminator's logits are not finite and cannot be calibrated.")
    y = torch.cat((torch.ones(len(real)), torch.zeros(len(drawn)))).double()
    weight = torch.where(y == 1, 0.5 / len(real), 0.5 / len(drawn))
    mean, std = x.mean(), x.std(correction=0)
    if std == 0:  # constant logits carry no information
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
        length = 1.0  # halved while the Newton step raises the objective
        while objective(theta - length * step) > objective(theta) and length > 1e-6:
            length /= 2
        theta = theta - length * step
        if step.abs().max() < 1e-10:
            break
    slope = theta[0] / std
    return slope, theta[1] - slope * mean
