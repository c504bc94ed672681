"""Discriminator-driven latent sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.sampling.base import Model, Sampler, expect_keys, rand_like, randn_like
from genlab.sampling.ratio import LogRatio


class DDLS(Sampler):
    """Discriminator-driven latent sampling. Che et al. (2020), arXiv:2003.06060, Algorithm 1.

    Langevin dynamics in latent space on the energy E(z) = -log p_0(z) - d(G(z)), with d the discriminator's calibrated
    log-ratio: z <- z - step_size / 2 grad E(z) + sqrt(step_size) n, n ~ N(0, I). The finite step size biases the chain;
    with `metropolis`, an accept-reject step removes the bias (MALA, Roberts & Tweedie, 1996).

    The method can be no better than d, and d(G(z)) must be smooth. With the rough discriminator of a small GAN on 25
    Gaussians the samples get worse (docs/results-drs.md), with `metropolis` too.
    """

    name = "ddls"
    needs: ClassVar[tuple[str, ...]] = ("sample", "decode", "score_logits")
    fitted_by: ClassVar[tuple[str, ...]] = ("calibrate", "d_steps", "d_lr", "batch_size", "data_samples")

    def __init__(
        self,
        steps: int = 1000,
        step_size: float = 0.01,
        metropolis: bool = False,
        calibrate: bool = True,
        d_steps: int = 0,
        d_lr: float = 3e-4,
        batch_size: int = 256,
        data_samples: int = 10_000,
    ) -> None:
        """Sets the chain.

        Args:
            steps: Steps of the chain, which starts at a draw from the prior.
            step_size: epsilon of the paper; the noise has the standard deviation sqrt(step_size).
            metropolis: Whether steps are accepted or rejected.
            calibrate: Whether the logits are calibrated on real samples, see `LogRatio`.
            d_steps: Steps of further training of a copy of the discriminator; 0 for none.
            d_lr: Learning rate of this training.
            batch_size: Real samples, and drawn samples, per training step.
            data_samples: Largest number of real samples for calibration and training.

        Raises:
            UserError: If a value is out of its range.
        """
        super().__init__()
        if steps < 1 or not step_size > 0:
            raise UserError(
                f"sampler.steps must be at least 1 and sampler.step_size above 0, got {steps} and {step_size}."
            )
        self.steps, self.step_size, self.metropolis = steps, step_size, metropolis
        self.ratio = LogRatio(calibrate, d_steps, d_lr, batch_size)
        self.needs_data = "optional" if calibrate or d_steps else "no"
        self.split = "train" if d_steps else "val"
        self.data_samples = data_samples
        self._is_fitted = False

    def check(self, model: Model) -> None:
        """As in the base class; the latents must also be standard normal."""
        super().check(model)
        self.check_normal(model)

    @property
    def is_fitted(self) -> bool:
        """Whether the log-ratio is fitted."""
        return self._is_fitted

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the log-ratio."""
        return self.ratio.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As in the base class."""
        expect_keys(self, {k: 0 for k in state if not k.startswith("weights.")}, {"slope", "offset"})
        self.ratio.load_state_dict(state)
        self._is_fitted = True

    def energy(self, model: Model, z: Tensor) -> tuple[Tensor, Tensor]:
        """E(z) without the constant of log p_0, [N] in float64, and its gradient, [N, Z]."""
        with torch.enable_grad(), model.inference(gradients=True):
            z = z.detach().requires_grad_(True)
            x = model.decode(z)
            ratio, along_x = self.ratio.with_slope(model, x)
            (along_z,) = torch.autograd.grad(x, z, along_x)
        return 0.5 * in_float64(z.detach()).square().sum(dim=1) - ratio, z.detach() - along_z

    def _fit(self, model: Model, data: Tensor | None, rng: torch.Generator) -> None:
        self.ratio.fit(model, data, rng, self.progress)
        self.report = dict(self.ratio.report)
        self._is_fitted = True

    def _sample(self, model: Model, n: int, given: Batch | None, rng: torch.Generator) -> Tensor:
        z = model.noise(n, rng)
        energy, slope = self.energy(model, z)
        self.report["energy_start"] = float(energy.mean())
        accepted = 0.0
        for step in range(self.steps):
            self.progress("drawing", step / self.steps)
            proposal = z - 0.5 * self.step_size * slope + self.step_size**0.5 * randn_like(z, rng)
            new_energy, new_slope = self.energy(model, proposal)
            if not self.metropolis:
                z, energy, slope = proposal, new_energy, new_slope
                continue
            forward = self._log_proposal(proposal, z, slope)
            backward = self._log_proposal(z, proposal, new_slope)
            log_accept = energy - new_energy + backward - forward
            good = rand_like(log_accept, rng).log() < log_accept  # false for NaN: steps to non-finite energies fail
            energy = torch.where(good, new_energy, energy)
            accepted += int(good.sum()) / n
            good = good.to(z.device)
            z = torch.where(good[:, None], proposal, z)
            slope = torch.where(good[:, None], new_slope, slope)
        if not bool(z.isfinite().all()):
            raise UserError(
                f"The chain diverged with sampler.step_size={self.step_size}. Try a smaller step size, or "
                f"sampler.metropolis=true."
            )
        self.report["energy_end"] = float(energy.mean())
        self.report["gradient_norm"] = float(slope.norm(dim=1).mean())
        if self.metropolis:
            self.report["acceptance"] = accepted / self.steps
        return model.decode(z)

    def _log_proposal(self, end: Tensor, start: Tensor, slope: Tensor) -> Tensor:
        """log q(end | start) without its constant, [N]; `slope` is the gradient of the energy at the start."""
        way = in_float64(end) - in_float64(start) + 0.5 * self.step_size * in_float64(slope)
        return -way.square().sum(dim=1) / (2 * self.step_size)
