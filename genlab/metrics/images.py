"""FID, IS and KID: torchmetrics' classes, updated with features that were extracted once for all scores.

Their states come from the parents' `update`. A subclass changes a part in which torchmetrics 1.9 falls short, and its
docstring names it. `tests/metrics` compares them with their parents and with torch-fidelity.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, maximum_mean_discrepancy, poly_kernel
from torchmetrics.utilities import dim_zero_cat

from genlab.errors import UserError
from genlab.metrics.features import Features
from genlab.metrics.scores import Scores

MIN_IMAGES = 20
AT_ONCE = 5000  # images up to which KID computes all products once; 600 MB


class Passed(nn.Module):
    """In place of the network of a torchmetrics class: features [N, F] that exist already pass through.

    Attributes:
        num_features: F.
        rows: The features that passed, up to `keep` of them; empty if there were more.
        count: Number of all that passed.
    """

    def __init__(self, num_features: int, keep: int = 0) -> None:
        super().__init__()
        self.num_features, self.keep = num_features, keep
        self.rows: list[Tensor] = []
        self.count = 0

    def forward(self, features: Tensor) -> Tensor:
        """The features, unchanged."""
        self.count += len(features)
        self.rows = [*self.rows, features] if self.count <= self.keep else []
        return features


# --------------------------------------------------------------------------------------------------------------------
# Frechet distance
# --------------------------------------------------------------------------------------------------------------------
class FID(FrechetInceptionDistance):
    """Frechet Inception distance of features [N, F]. Heusel et al. (2017), arXiv:1706.08500; covariances with n - 1.

    Beside torchmetrics' class:
        - The first real batch's mean is subtracted from all features, which does not change the distance: from raw
          second moments of features with a mean of 1e6, the covariance would have an error of 1e-4.
        - Tr (S1 S2)^(1/2) is the sum of singular values of A1 A2^T with S = A^T A; the parent takes eigenvalues of an
          unsymmetric [F, F] product. The roots A are pivoted Cholesky factors or, with at most F images, the centred
          features themselves. The value is the same, up to a hundred times as fast.
        - float64 is returned.

    Args:
        num_features: F.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(feature=Passed(num_features), sync_on_compute=False)
        self.passed = {real: Passed(num_features, keep=num_features) for real in (True, False)}
        self.origin: Tensor | None = None

    def update(self, imgs: Tensor, real: bool) -> None:
        """Adds features [n, F] of real or generated images; real ones come first."""
        if self.origin is None:
            self.origin = imgs.double().mean(dim=0)
        self.inception = self.passed[real]
        super().update(imgs.double() - self.origin, real)

    def compute(self) -> Tensor:
        """The distance, >= 0 up to rounding, float64."""
        mean1, root1 = self._moments(True)
        mean2, root2 = self._moments(False)
        cross = torch.linalg.svdvals(root1 @ root2.T).sum()
        return (mean1 - mean2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * cross

    def _moments(self, real: bool) -> tuple[Tensor, Tensor]:
        """Mean [F], and a matrix [R, F] whose product with itself is the covariance, from the parent's sums."""
        kind = "real" if real else "fake"
        n, total = getattr(self, f"{kind}_features_num_samples"), getattr(self, f"{kind}_features_sum")
        mean = total / n
        if rows := self.passed[real].rows:
            return mean, (torch.cat(rows) - mean) / math.sqrt(n - 1)
        scatter = getattr(self, f"{kind}_features_cov_sum") - n * torch.outer(mean, mean)
        return mean, pivoted_root(scatter / (n - 1))


def pivoted_root(cov: Tensor) -> Tensor:
    """A [R, F] with A^T A = cov, R the numerical rank, by a Cholesky decomposition with pivots. Float64 [F, F]."""
    from scipy.linalg.lapack import dpstrf

    factor, order, rank, _ = dpstrf(cov.cpu().numpy())
    upper = torch.from_numpy(factor).triu()[:rank]
    root = torch.empty_like(upper)
    root[:, torch.from_numpy(order.astype("int64")) - 1] = upper
    return root


def in_their_span(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Few features [N, F] and [M, F] by their coordinates [N, R] and [M, R], R < N + M, in the space that they span.

    All distances stay as they are, and products of [R, R] are cheaper than those of [F, F]. The rows of a root of the
    matrix of inner products are such coordinates.
    """
    x = torch.cat([real, fake]).double()
    x = x - x.mean(dim=0)
    coordinates = pivoted_root(x @ x.T).T
    return coordinates[: len(real)], coordinates[len(real) :]


def fid(real: Features, fake: Features) -> Scores:
    """FID, see the class. It is biased upwards by about 1/n: compare equal numbers of images only.

    Returns:
        {"fid"}. Warns of the large bias if there are fewer images than features.

    Raises:
        UserError: If a set has fewer than 20 images.
    """
    _enough("FID", real, fake)
    fewest, width = min(real.n, fake.n), real.num_features
    if fewest < width:
        warnings.warn(
            f"FID from {fewest} images and {width} features has a large upward bias: compare equal numbers of images "
            "only, or raise metrics.num_samples.",
            stacklevel=2,
        )
    few = real.n + fake.n < width
    sets = in_their_span(real.features, fake.features) if few else (real.features, fake.features)
    metric = FID(sets[0].shape[1])
    metric.update(sets[0], real=True)
    metric.update(sets[1], real=False)
    return Scores({"fid": metric.compute().item()}, _sizes(real, fake))


# --------------------------------------------------------------------------------------------------------------------
# Inception score
# --------------------------------------------------------------------------------------------------------------------
class IS(InceptionScore):
    """Inception score of logits [N, K]: exp(E_x KL(p(y|x) || p(y))). Salimans et al. (2016), arXiv:1606.03498.

    Beside torchmetrics' class: the shuffle has a random stream of its own; the parts are those of the authors' code
    (`chunk` may give fewer than `splits`), and so is the standard deviation (ddof 0); log-probabilities are float64,
    and a class of probability 0 adds nothing, where the parent returns NaN.

    Args:
        num_classes: K.
        splits: Number of parts, at most one per image; the score falls with fewer images per part.
        seed: Seed of the shuffle (samples may be ordered by class); None: no shuffle.
    """

    def __init__(self, num_classes: int, splits: int = 10, seed: int | None = 2020) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it keeps the logits
            super().__init__(feature=Passed(num_classes), splits=splits, sync_on_compute=False)
        self.seed = seed

    def compute(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the parts, of the first n logits of the shuffle (None: of all)."""
        logits = dim_zero_cat(self.features)
        if self.seed is not None:
            logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(self.seed))]
        logits = logits[:n]
        parts, scores = min(self.splits, len(logits)), []
        for i in range(parts):
            log_p = logits[i * len(logits) // parts : (i + 1) * len(logits) // parts].double().log_softmax(dim=1)
            log_q = log_p.logsumexp(dim=0) - math.log(len(log_p))
            kl = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(dim=1)
            scores.append(kl.mean().exp())
        score = torch.stack(scores)
        return score.mean(), score.std(correction=0)


def inception_score(fake: Features, splits: int = 10, seed: int | None = 2020, n: int | None = None) -> Scores:
    """The Inception score, see the class.

    Args:
        fake: With logits.
        splits: Number of parts.
        seed: Seed of the shuffle; None: no shuffle.
        n: Number of images to use, the first of the shuffle; None: all.

    Returns:
        {"is", "is_std"}, the former between 1 and the number of classes.

    Raises:
        UserError: If there are fewer than 20 images.
    """
    _enough("IS", fake)
    metric = IS(fake.logits.shape[1], splits, seed)
    metric.update(fake.logits)
    mean, std = metric.compute(n)
    card = {"is_splits": min(splits, n or fake.n), "is_seed": seed}
    return Scores({"is": mean.item(), "is_std": std.item()}, {**fake.card, "n_fake": fake.n, **card})


# --------------------------------------------------------------------------------------------------------------------
# Kernel distance
# --------------------------------------------------------------------------------------------------------------------
class KID(KernelInceptionDistance):
    """Kernel Inception distance of features [N, F]: unbiased MMD^2 with k(a, b) = (a.b / F + 1)^3.

    Binkowski et al. (2018), arXiv:1801.01401. Unbiased for any number of images, so it suits small samples; for equal
    distributions slightly negative values are correct.

    Beside torchmetrics' class: the subsets have a random stream of their own; the products of all pairs are computed
    once where they fit in memory, instead of in each subset; all in float64.

    Args:
        num_features: F.
        subsets: Random subsets, drawn without replacement within each.
        subset_size: Images of each set per subset.
        seed: Seed of the subsets.
    """

    def __init__(self, num_features: int, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it keeps the features
            feature = Passed(num_features)
            super().__init__(feature, subsets=subsets, subset_size=subset_size, sync_on_compute=False)
        self.seed = seed

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (ddof 0) over the subsets, not multiplied by 1000."""
        x, y = (dim_zero_cat(each).double() for each in (self.real_features, self.fake_features))
        kernel = (self.degree, self.gamma, self.coef)
        whole = max(len(x), len(y)) <= min(AT_ONCE, self.subset_size * math.sqrt(self.subsets))
        products = [poly_kernel(a, b, *kernel) for a, b in ((x, x), (x, y), (y, y))] if whole else []
        rng, values = torch.Generator().manual_seed(self.seed), []
        for _ in range(self.subsets):
            i = torch.randperm(len(x), generator=rng)[: self.subset_size]
            j = torch.randperm(len(y), generator=rng)[: self.subset_size]
            pairs = ((i, i), (i, j), (j, j))
            if whole:
                blocks = [product[rows][:, columns] for product, (rows, columns) in zip(products, pairs, strict=True)]
            else:
                blocks = [poly_kernel(a, b, *kernel) for a, b in ((x[i], x[i]), (x[i], y[j]), (y[j], y[j]))]
            values.append(maximum_mean_discrepancy(*blocks))
        mmd = torch.stack(values)
        return mmd.mean(), mmd.std(correction=0)


def kid(real: Features, fake: Features, subsets: int = 100, subset_size: int | None = None, seed: int = 2020) -> Scores:
    """The kernel distance, see the class.

    Args:
        real: Features of real images.
        fake: Features of the samples.
        subsets: Random subsets.
        subset_size: Images of each set per subset; default 1000, but at most half of the smaller set, so that the
            subsets differ. The card holds it.
        seed: Seed of the subsets.

    Returns:
        {"kid", "kid_std"}.

    Raises:
        UserError: If there are fewer than 20 images, or a subset is larger than a set.
    """
    _enough("KID", real, fake)
    fewest = min(real.n, fake.n)
    size = subset_size or min(1000, fewest // 2)
    if not 2 <= size <= fewest:
        raise UserError(f"KID's subset_size must be from 2 to the number of images, {fewest}, got {size}.")
    metric = KID(real.num_features, subsets, size, seed)
    metric.update(real.features, real=True)
    metric.update(fake.features, real=False)
    mean, std = metric.compute()
    card = {"kid_subsets": subsets, "kid_subset_size": size, "kid_seed": seed}
    return Scores({"kid": mean.item(), "kid_std": std.item()}, _sizes(real, fake) | card)


def _sizes(real: Features, fake: Features) -> dict[str, Any]:
    return {**fake.card, "n_real": real.n, "n_fake": fake.n}


def _enough(score: str, *sets: Features) -> None:
    fewest = min(each.n for each in sets)
    if fewest < MIN_IMAGES:
        raise UserError(f"{score} needs {MIN_IMAGES} images or more, got {fewest}. Raise metrics.num_samples.")
