"""The judge of likelihood models: the training objective and likelihood bounds on held-out data."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.judging.cards import kind_of, margin
from genlab.judging.judge import Data, Judge
from genlab.metrics import factors
from genlab.metrics.ais import ais, ais_scores, can_anneal, partition_scores
from genlab.metrics.likelihood import (
    bits_per_dim,
    dequantise,
    importance_bounds,
    is_likelihood,
    likelihood_scores,
)
from genlab.metrics.scores import Scores
from genlab.sharing import shared, stream
from genlab.telling import telling

HIGHER = (
    *("elbo", "relaxed", "bound", "iwae", "ais", "objective", "ess", "active_units"),
    *factors.HIGHER,
)


class Objective(Protocol):
    """A model with a training objective."""

    device: torch.device

    def inference(self) -> Any:
        """Averaged weights, eval mode, no gradients."""
        ...

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the objective, means over a batch, with the term weights of training."""
        ...


class LikelihoodJudge(Judge):
    """The terms of the training objective; on test data also the importance-weighted bound.

    `loss` is weighted as in training (KL weight at this iteration); `elbo` and `bound` are bounds on log p(x). If the
    likelihood is invalid for the data (a Bernoulli on grey pixels), `elbo` is named `objective`, without `bound`.
    """

    # The loss comes last: under a schedule of the KL weight it may grow while the bound on log p(x) improves.
    monitor = ("bound", "elbo", "objective", "loss")

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 1000,
        iwae_samples: int = 500,
        batch_size: int = 100,
        seed: int = 2020,
        ais_steps: int = 0,
        ais_samples: int = 16,
    ) -> None:
        """Sets the protocol.

        Args:
            every_n_steps: Iterations between scores on validation data.
            num_samples: Maximum number of real samples.
            iwae_samples: k of the bound on test data; 5000 in the paper.
            batch_size: Samples per batch.
            seed: Seed of the latents, the same in every validation.
            ais_steps: Temperatures of annealed importance sampling on test data; 0 for none. See `metrics.ais`.
            ais_samples: Annealing chains per sample.

        Raises:
            UserError: If a number is below its minimum.
        """
        super().__init__(every_n_steps, num_samples, seed)
        if batch_size < 1:
            raise UserError(f"metrics.batch_size must be at least 1, got {batch_size}.")
        if ais_steps < 0 or ais_samples < 1:
            raise UserError(
                f"metrics.ais_steps must be at least 0 and metrics.ais_samples at least 1, got {ais_steps} and "
                f"{ais_samples}."
            )
        self.iwae_samples, self.batch_size = iwae_samples, batch_size
        self.ais_steps, self.ais_samples = ais_steps, ais_samples

    @staticmethod
    def mode(score: str) -> str:
        """The better direction of a score: "max" for bounds and codebook perplexity, "min" for losses."""
        return "max" if score.startswith(HIGHER) or score.endswith("perplexity") else "min"

    def _timed(self, model: Any, data: Data, split: str) -> dict[str, float]:
        """As in the base class, but for models with an objective, even without `sample`."""
        if not callable(getattr(model, "objective", None)):
            return {}
        started = time.monotonic()
        scores = {**self.score(model, data, split), **self.factors(model, data, split)}
        self.seconds += time.monotonic() - started
        return {f"{split}/{name}": value for name, value in scores.items()}

    def score(self, model: Any, data: Data, split: str) -> dict[str, float]:
        """The terms of the objective; on test data also the bounds, with their card."""
        rows = list(data.batches(split, batch_size=self.batch_size, limit=self.num_samples))
        scores, valid, support = self._objective(model, rows)
        if split == "test" and callable(getattr(model, "sample_posterior", None)):
            found = self.bounds(model, rows, support, valid, data.spec.images)
            self.cards["likelihood"] = {**self.common(model, data, split), **found.card}
            scores |= found
        if split == "test" and valid and self.ais_steps and callable(getattr(model, "log_partition", None)):
            log_w = model.log_partition(self.ais_steps, self.ais_samples, stream(self.seed, 0))
            log_p = torch.cat([model.log_unnormalised(b.x.to(model.device)) for b in rows])
            of_z = partition_scores(log_w, log_p, self.ais_steps)
            self.cards["likelihood"] = {**self.common(model, data, split), "n_real": len(log_p), **of_z.card}
            scores |= of_z
        return scores

    def rescore(self, model: Any, data: Data) -> dict[str, float]:
        """The terms of the objective of other weights on test data, without bounds of many draws."""
        if not callable(getattr(model, "objective", None)):
            return {}
        rows = list(data.batches("test", batch_size=self.batch_size, limit=self.num_samples))
        return {f"test/{name}": value for name, value in self._objective(model, rows)[0].items()}

    def _objective(self, model: Any, rows: list[Batch]) -> tuple[dict[str, float], bool, str]:
        """The terms by the names of their scores, whether the likelihood is one of the data, and its support."""
        support = getattr(getattr(model, "likelihood", None), "support", "real")
        valid = is_likelihood(torch.cat([b.x for b in rows]), support)
        terms = self.terms(model, rows)
        scores = {n if valid else n.replace("elbo", "objective"): value for n, value in terms.items()}
        if not valid:
            scores.pop("bound", None)
        return scores, valid, support

    def terms(self, model: Objective, batches: list[Batch]) -> dict[str, float]:
        """The terms of the objective, means over all samples."""

        def work(piece: tuple[int, Batch]) -> tuple[int, dict[str, float]]:
            number, batch = piece
            with model.inference():
                found = telling(model, batch).objective(batch.x.to(model.device), stream(self.seed, number))
            return len(batch), {name: float(value) for name, value in found.items()}

        parts = list(shared(enumerate(batches), work))
        total = sum(n for n, _ in parts)
        return {name: sum(n * values[name] for n, values in parts) / total for name in parts[0][1]}

    def bounds(self, model: Any, rows: list[Batch], support: str, valid: bool, images: bool) -> Scores:
        """ELBO, IWAE bound, active units and bits/dim, computed as in `genlab-evaluate`."""
        noisy, batches, given = images and support == "real", [b.x for b in rows], rows if model.given else None
        if noisy:
            rng = torch.Generator().manual_seed(self.seed)
            batches = [dequantise(x.cpu(), rng) for x in batches]
        bounds = importance_bounds(model, batches, self.iwae_samples, self.seed, given=given)
        scores = likelihood_scores(bounds, valid)
        scores.card |= {"support": support, "dequantised": "uniform" if noisy else "no"}
        if valid and images:
            bits = bits_per_dim(scores[f"iwae_{bounds.samples}"], batches[0][0].numel() * model.modelled_share, support)
            scores |= Scores({"bits_per_dim": bits})
        if self.ais_steps and valid and can_anneal(model):
            scores |= ais_scores(ais(model, batches, self.ais_steps, self.ais_samples, self.seed, given=given))
        return scores

    def lines(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """The bounds with their conditions."""
        card, values = self.cards.get("likelihood", {}), {k.split("/")[1]: v for k, v in scores.items()}
        rows = []
        for name, value in values.items():
            if name in ("elbo", "objective", "loss") or kind_of(name) in ("iwae", "ais"):
                error = f" ± {margin(value, values[f'{name}_se'])}" if f"{name}_se" in values else ""
                of = f"{card['n_real']} test samples" if card else "test samples"
                rows.append((name, f"{value:.4g}{error} nats  ({of})"))
        if "log_z" in values:
            error = margin(values["log_z"], values["log_z_se"])
            rows.append(("log Z", f"{values['log_z']:.5g} ± {error} nats  (annealed, no bound)"))
        if "bits_per_dim" in values:
            rows.append(("bits/dim", f"{values['bits_per_dim']:.4g}"))
        if "active_units" in values:
            rows.append(("active units", f"{values['active_units']:.0f} of {card['latent_dim']}"))
        return rows + factors.factor_lines(values)
