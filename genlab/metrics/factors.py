"""How well single latents represent the known factors of variation, for any model with an encoder."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genlab.metrics.scores import Scores
from genlab.sharing import shared
from genlab.telling import telling


def correlations(codes: Tensor, factor: Tensor) -> Tensor:
    """|corr(z_i, f_j)| over the samples, [Z, F] float64 in [0, 1].

    Args:
        codes: [N, Z]. A latent that is constant or not finite has correlation 0.
        factor: [N, F].
    """
    z, f = (_standard(each) for each in (codes, factor))
    return (z.T @ f / len(z)).abs().clamp_max(1)


def explained(codes: Tensor, factor: Tensor) -> Tensor:
    """R^2 of each factor's linear regression on all latents together, [F] float64 in [0, 1].

    Together with `correlations`, it distinguishes a factor spread over several latents from a missing one.
    """
    z, f = _standard(codes), _standard(factor)
    basis, size, _ = torch.linalg.svd(z, full_matrices=False)
    basis = basis[:, size > 1e-8 * max(1.0, float(size.max()))]
    return (basis.T @ f).square().sum(dim=0).div(len(f)).clamp(0, 1)


def _standard(x: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1; a column that is constant or not finite becomes 0."""
    x = x.detach().cpu().double()
    x = torch.where(x.isfinite().all(dim=0), x, 0.0)
    spread = x.std(dim=0, correction=0)
    moves = spread > 1e-9 * x.abs().amax(dim=0)
    return torch.where(moves, (x - x.mean(dim=0)) / spread.clamp_min(torch.finfo(x.dtype).tiny), 0.0)


def factor_scores(codes: Tensor, factor: Tensor, names: Sequence[str], units: Sequence[int] | None = None) -> Scores:
    """Correlations of latents with factors, averaged over the factors.

    Args:
        codes: [N, Z], N >= 2.
        factor: Known factors [N, F].
        names: Names of the factors.
        units: Index of the latent assigned to each of the first factors, if the model assigns any.

    Returns:
        `factor_corr`: |corr| of a factor and its most correlated latent, also per factor (`factor_corr_x`);
        `factor_gap`: the difference to that latent's largest |corr| with another factor; `factor_r2`: the share that
        all latents explain together. With `units`, `factor_unit`: |corr| of a factor and its assigned latent, and
        `factor_leak`: the largest |corr| of an assigned latent with another factor.

    Raises:
        ValueError: If there are fewer than two samples, or the numbers of codes, factors and names do not match.
    """
    if len(codes) < 2 or len(codes) != len(factor) or factor.shape[1] != len(names):
        raise ValueError(
            f"factor_scores needs codes and {len(names)} factors of at least two samples, got {len(codes)} and "
            f"{list(factor.shape)}."
        )
    matrix = correlations(codes, factor)
    best, where = matrix.max(dim=0)
    values = {"factor_corr": best.mean(), "factor_r2": explained(codes, factor).mean()}
    values["factor_gap"] = torch.stack([best[j] - _others(matrix[i], j) for j, i in enumerate(where.tolist())]).mean()
    if units:
        own = list(enumerate(units[: len(names)]))
        values["factor_unit"] = torch.stack([matrix[i, j] for j, i in own]).mean()
        values["factor_leak"] = torch.stack([_others(matrix[i], j) for j, i in own]).max()
    values |= {f"factor_corr_{name}": best[j] for j, name in enumerate(names)}
    card = {"n_real": len(codes), "factors": list(names)}
    return Scores({name: float(value) for name, value in values.items()}, card)


def _others(row: Tensor, j: int) -> Tensor:
    """A latent's largest correlation except the j-th; 0 if there is no other."""
    return torch.cat([row[:j], row[j + 1 :], row.new_zeros(1)]).max()


def coded(model: Any, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Codes [N, Z] and known factors [N, F] of batches; the processes of a group share the work.

    Args:
        model: Its `encode` gives codes [N, ...].
        batches: Batches with `x` and `factor`.
    """

    def work(batch: Any) -> tuple[Tensor, Tensor]:
        x = batch.x.to(model.device)
        return telling(model, batch).encode(x).flatten(1).cpu(), batch["factor"].cpu()

    parts = list(shared(batches, work))
    codes, factor = (torch.cat(each) for each in zip(*parts, strict=True))
    return codes, factor
