"""Samplers that fit a density to the codes of a trained autoencoder and draw from it in place of the prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError, install
from genlab.sampling.base import Model, Sampler, expect_keys, new_seed

HELD_OUT = 0.1  # share of the codes that are held out to evaluate the density
FLOWS = {"nsf": "NSF", "maf": "MAF"}  # classes of zuko


class Codes(Sampler):
    """Base of both samplers: encodes real samples, fits a density to the codes and decodes draws from it.

    Ghosh et al. (2020), arXiv:1903.12436, section 4, "ex-post density estimation": if the codes do not fill the prior,
    some draws from the prior are latents on which the decoder was never trained.

    `report` has the mean log-likelihood (nats) of held-out codes under the fit, and under a single Gaussian.
    """

    needs: ClassVar[tuple[str, ...]] = ("encode", "decode")
    needs_data = "yes"

    def log_prob(self, codes: Tensor) -> Tensor:
        """Log-densities [N], in nats, of codes [N, Z]."""
        raise NotImplementedError

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """Codes [n, Z] from the fitted density, on the CPU."""
        raise NotImplementedError

    def fit_codes(self, codes: Tensor, rng: torch.Generator) -> None:
        """Fits the density to codes [N, Z] and fills `report`.

        Raises:
            UserError: If the codes are too few or not finite.
        """
        codes = codes.detach().cpu().double()
        if not bool(codes.isfinite().all()):
            raise UserError("The encoder's codes are not finite, so that no density can be fitted to them.")
        order = torch.randperm(len(codes), generator=rng, device=rng.device).cpu()
        held = max(1, round(HELD_OUT * len(codes)))
        if len(codes) - held < self.fewest(codes.shape[1]):
            raise UserError(
                f"sampler={self.name} needs at least {math.ceil(self.fewest(codes.shape[1]) / (1 - HELD_OUT)) + 1} "
                f"codes, got {len(codes)}. Raise sampler.data_samples."
            )
        self._fit_codes(codes[order[held:]], codes[order[:held]], rng)
        self.report = {
            "log_likelihood": float(self.log_prob(codes[order[:held]]).mean()),
            "log_likelihood_gaussian": float(gaussian_log_prob(codes[order[held:]], codes[order[:held]]).mean()),
        }

    def fewest(self, dim: int) -> int:
        """Smallest number of codes for a fit in Z = `dim` dimensions."""
        raise NotImplementedError

    def _fit_codes(self, codes: Tensor, held_out: Tensor, rng: torch.Generator) -> None:
        raise NotImplementedError

    def _fit(self, model: Model, data: Tensor | None, rng: torch.Generator) -> None:
        assert data is not None
        codes = torch.cat([model.encode(x.to(model.device)).cpu() for x in data[: self.data_samples].split(256)])
        if codes.ndim != 2:
            raise UserError(
                f"sampler={self.name} needs codes of shape [N, Z]; those of {type(model).__name__} have the shape "
                f"[N, {', '.join(str(size) for size in codes.shape[1:])}]."
            )
        self.fit_codes(codes, rng)

    def _sample(self, model: Model, n: int, given: Batch | None, rng: torch.Generator) -> Tensor:
        like = model.noise(1, rng)  # has the type and device of the decoder's input
        return model.decode(self.draw(n, rng).to(like))


class GMM(Codes):
    """A mixture of Gaussians with full covariances, fitted by scikit-learn's expectation-maximisation."""

    name = "gmm"
    fitted_by: ClassVar[tuple[str, ...]] = ("k", "regularisation", "data_samples")

    def __init__(self, k: int = 10, regularisation: float = 1e-6, data_samples: int = 50_000) -> None:
        """Sets the mixture.

        Args:
            k: Number of components.
            regularisation: Constant added to the variances, as a fraction of the mean variance of the codes.
            data_samples: Largest number of real samples that are encoded.

        Raises:
            UserError: If a value is out of its range.
        """
        super().__init__()
        if k < 1 or not regularisation > 0:
            raise UserError(
                f"sampler.k must be at least 1 and sampler.regularisation above 0, got {k} and {regularisation}."
            )
        self.k, self.regularisation, self.data_samples = k, regularisation, data_samples
        self.weights = torch.empty(0)  # [K]
        self.means = torch.empty(0)  # [K, Z]
        self.scales = torch.empty(0)  # [K, Z, Z], lower triangular: covariance = scale scale^T

    @property
    def is_fitted(self) -> bool:
        """Whether the mixture is fitted."""
        return len(self.weights) > 0

    def fewest(self, dim: int) -> int:
        """One code per component, and at least 2."""
        return max(self.k, 2)

    def log_prob(self, codes: Tensor) -> Tensor:
        """As in the base class."""
        codes = codes.to(self.means)
        parts = [
            torch.distributions.MultivariateNormal(mean, scale_tril=scale, validate_args=False).log_prob(codes)
            for mean, scale in zip(self.means, self.scales, strict=True)
        ]
        return torch.logsumexp(torch.stack(parts) + self.weights.log()[:, None], dim=0)

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """As in the base class."""
        chosen = torch.multinomial(self.weights.to(rng.device), n, replacement=True, generator=rng).cpu()
        eps = torch.randn(n, self.means.shape[1], generator=rng, device=rng.device, dtype=self.means.dtype).cpu()
        return self.means[chosen] + (self.scales[chosen] @ eps[:, :, None]).squeeze(2)

    def state_dict(self) -> dict[str, Tensor]:
        """`weights` [K], `means` [K, Z] and `scales` [K, Z, Z]."""
        return {"weights": self.weights, "means": self.means, "scales": self.scales}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As in the base class."""
        expect_keys(self, state, {"weights", "means", "scales"})
        self.weights, self.means, self.scales = (state[key].cpu() for key in ("weights", "means", "scales"))

    def _fit_codes(self, codes: Tensor, held_out: Tensor, rng: torch.Generator) -> None:
        from sklearn.mixture import GaussianMixture

        floor = self.regularisation * max(float(codes.var(dim=0, correction=0).mean()), 1e-12)
        mixture = GaussianMixture(self.k, reg_covar=floor, random_state=new_seed(rng), max_iter=300)
        mixture.fit(codes.numpy())
        self.weights = torch.from_numpy(mixture.weights_)
        self.means = torch.from_numpy(mixture.means_)
        self.scales = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_))


class Flow(Codes):
    """A normalizing flow from zuko (the extra `flows`).

    "nsf": neural spline flow, Durkan et al. (2019), arXiv:1906.04032; "maf": masked autoregressive flow, Papamakarios,
    Pavlakou & Murray (2017), arXiv:1705.07057. Codes are standardised first. Every 50 steps the flow is evaluated on
    the held-out codes; the best weights are kept.
    """

    name = "flow"
    fitted_by: ClassVar[tuple[str, ...]] = (
        "kind",
        "transforms",
        "hidden",
        "steps",
        "lr",
        "batch_size",
        "data_samples",
    )

    def __init__(
        self,
        kind: str = "nsf",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        steps: int = 2000,
        lr: float = 1e-3,
        batch_size: int = 256,
        data_samples: int = 50_000,
    ) -> None:
        """Sets the flow and its training.

        Args:
            kind: "nsf" or "maf".
            transforms: Layers of the flow.
            hidden: Widths of the hidden layers in the network of each flow layer.
            steps: Steps of Adam, with a cosine schedule of the learning rate down to zero.
            lr: Initial learning rate.
            batch_size: Codes per step.
            data_samples: Largest number of real samples that are encoded.

        Raises:
            UserError: If zuko is missing or a value is out of its range.
        """
        super().__init__()
        if kind not in FLOWS:
            raise UserError(f"sampler.kind must be {' or '.join(FLOWS)}, got {kind!r}.")
        if transforms < 1 or steps < 1 or batch_size < 1 or not lr > 0 or not hidden or min(hidden) < 1:
            raise UserError(
                f"sampler.transforms, sampler.steps, sampler.batch_size and the widths in sampler.hidden must be at "
                f"least 1 and sampler.lr above 0, got {transforms}, {steps}, {batch_size}, {list(hidden)} and {lr}."
            )
        self.kind, self.transforms, self.hidden = kind, transforms, tuple(hidden)
        self.steps, self.lr, self.batch_size, self.data_samples = steps, lr, batch_size, data_samples
        self._zuko = _import_zuko()
        self.flow: torch.nn.Module | None = None
        self.mean = torch.empty(0)  # [Z]
        self.std = torch.empty(0)  # [Z]

    @property
    def is_fitted(self) -> bool:
        """Whether the flow is fitted."""
        return self.flow is not None

    def fewest(self, dim: int) -> int:
        """20 codes, whatever `dim`."""
        return 20

    def log_prob(self, codes: Tensor) -> Tensor:
        """As in the base class."""
        assert self.flow is not None
        with torch.no_grad():
            x = (codes.to(self.mean) - self.mean) / self.std
            return self.flow().log_prob(x.float()).double() - self.std.log().sum()

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """As in the base class."""
        assert self.flow is not None
        # The flow's own `sample` would draw from torch's global stream.
        eps = torch.randn(n, len(self.mean), generator=rng, device=rng.device).cpu()
        with torch.no_grad():
            return self.flow().transform.inv(eps).double() * self.std + self.mean

    def state_dict(self) -> dict[str, Tensor]:
        """`mean`, `std`, and the flow's weights as `flow.<name>`."""
        assert self.flow is not None
        weights = {f"flow.{name}": weight for name, weight in self.flow.state_dict().items()}
        return {"mean": self.mean, "std": self.std, **weights}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As in the base class."""
        flow = self._build(len(state["mean"]) if "mean" in state else 1, 0)
        names = {f"flow.{name}" for name in flow.state_dict()}
        expect_keys(self, state, {"mean", "std", *names})
        try:
            flow.load_state_dict({name.removeprefix("flow."): state[name] for name in names})
        except RuntimeError as error:  # the layers have other widths
            raise UserError(f"The state does not fit sampler={self.name} as it is set: its layers differ.") from error
        self.mean, self.std, self.flow = state["mean"].cpu(), state["std"].cpu(), flow

    def _build(self, dim: int, seed: int) -> torch.nn.Module:
        """A flow in `dim` dimensions, with initial weights that depend on the seed alone."""
        make = getattr(self._zuko.flows, FLOWS[self.kind])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(dim, transforms=self.transforms, hidden_features=self.hidden)

    def _fit_codes(self, codes: Tensor, held_out: Tensor, rng: torch.Generator) -> None:
        self.mean, self.std = codes.mean(dim=0), codes.std(dim=0, correction=0).clamp_min(1e-6)
        x, x_held = (((part - self.mean) / self.std).float() for part in (codes, held_out))
        self.flow = flow = self._build(codes.shape[1], new_seed(rng))
        optimizer = torch.optim.Adam(flow.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        best, kept = math.inf, _copied(flow)
        with torch.enable_grad():
            for step in range(1, self.steps + 1):
                self.progress("fitting", step / self.steps)
                rows = torch.randint(len(x), (self.batch_size,), generator=rng, device=rng.device).cpu()
                loss = -flow().log_prob(x[rows]).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)  # splines occasionally have large gradients
                optimizer.step()
                scheduler.step()
                if step % 50 == 0 or step == self.steps:
                    with torch.no_grad():
                        held = float(-flow().log_prob(x_held).mean())
                    if held < best:
                        best, kept = held, _copied(flow)
        if not math.isfinite(best):
            raise UserError(f"The flow's likelihood is not finite with sampler.lr={self.lr}. Try sampler.lr=0.0003.")
        flow.load_state_dict(kept)
        flow.requires_grad_(False)


def gaussian_log_prob(codes: Tensor, held_out: Tensor) -> Tensor:
    """Log-densities [M], in nats, of `held_out` [M, Z] under the Gaussian fitted to `codes` [N, Z]."""
    covariance = torch.cov(codes.T, correction=0).reshape(codes.shape[1], codes.shape[1])
    covariance = covariance + 1e-6 * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(len(covariance)).to(
        codes
    )
    return torch.distributions.MultivariateNormal(codes.mean(dim=0), covariance).log_prob(held_out)


def _copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _import_zuko() -> Any:
    """Imports zuko.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import zuko
    except ImportError as error:
        raise UserError(f"sampler=flow needs the package zuko: {install('flows')} (or try sampler=gmm)") from error
    return zuko
