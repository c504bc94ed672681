"""FID, IS, KID, precision and recall, density and coverage, from features that were extracted once.

These replace the scores of torchmetrics 1.9, whose IS and KID draw from the global random stream, whose IS uses ddof 1,
and whose FID takes eigenvalues of an unsymmetric [F, F] product for any sample size. `tests/metrics` compares them with
torchmetrics and torch-fidelity.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.metrics.features import FeatureStats

MIN_IMAGES = 20


class Scores(dict[str, float]):
    """Named floats with their protocol card, the settings of their computation.

    `a | b` joins scores and cards, `named("inception")` gives {"fid/inception": ...}.

    Args:
        values: The scores.
        card: Plain values: sizes, seeds, settings, the extractor's card.
    """

    def __init__(self, values: Mapping[str, float] | None = None, card: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.card: dict[str, Any] = dict(card or {})

    def __or__(self, other: Any) -> "Scores":  # type: ignore[override]
        return Scores({**self, **other}, {**self.card, **getattr(other, "card", {})})

    def __ior__(self, other: Any) -> "Scores":  # type: ignore[override]
        return self | other  # dict's operator would lose the cards

    def named(self, extractor: str) -> "Scores":
        """The same scores with `/extractor` after each name."""
        return Scores({f"{key}/{extractor}": value for key, value in self.items()}, self.card)


def _sizes(real: FeatureStats, fake: FeatureStats) -> dict[str, Any]:
    return {**fake.card, "n_real": real.n, "n_fake": fake.n}


def _enough(score: str, *sets: FeatureStats) -> None:
    fewest = min(stats.n for stats in sets)
    if fewest < MIN_IMAGES:
        raise UserError(f"{score} needs {MIN_IMAGES} images or more, got {fewest}. Raise metrics.num_samples.")


# --------------------------------------------------------------------------------------------------------------------
# Frechet distance
# --------------------------------------------------------------------------------------------------------------------
def _root(cov: Tensor) -> Tensor:
    """A [R, F] with A^T A = cov, R the numerical rank: each eigenvalue of 1e-16 would add its root of 1e-8."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return (vectors[:, kept] * values[kept].sqrt()).T


def _distance(mean1: Tensor, root1: Tensor, mean2: Tensor, root2: Tensor) -> float:
    # Tr (S1 S2)^(1/2) = sum of singular values of A1 A2^T, if S = A^T A: their squares are the eigenvalues of S1 S2.
    cross = torch.linalg.svdvals(root1 @ root2.T).sum()
    return float((mean1 - mean2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * cross)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, Dowson & Landau (1982), in float64.

    |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Args:
        mean1: [F].
        cov1: [F, F], positive semidefinite.
        mean2: [F].
        cov2: [F, F], positive semidefinite.
    """
    return _distance(mean1.double(), _root(cov1.double()), mean2.double(), _root(cov2.double()))


def fid(real: FeatureStats, fake: FeatureStats) -> Scores:
    """Frechet Inception distance. Heusel et al. (2017), arXiv:1706.08500; covariances with n - 1.

    With fewer images than features a set's own centred features are a root of its covariance, and the distance follows
    from an [n, n] product: exact, and a hundred times as fast as eigenvalues of [2048, 2048].

    FID is biased upwards by about 1/n: compare equal numbers of images only.

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

    def root(stats: FeatureStats) -> Tensor:
        if stats.complete and stats.n <= stats.num_features:
            return (stats.features.double() - stats.mean) / math.sqrt(stats.n - 1)
        return _root(stats.cov)

    value = _distance(real.mean, root(real), fake.mean, root(fake))
    return Scores({"fid": value}, _sizes(real, fake))


# --------------------------------------------------------------------------------------------------------------------
# Inception score
# --------------------------------------------------------------------------------------------------------------------
def inception_score(fake: FeatureStats, splits: int = 10, seed: int | None = 2020, n: int | None = None) -> Scores:
    """exp(E_x KL(p(y|x) || p(y))), mean and standard deviation over splits. Salimans et al. (2016), arXiv:1606.03498.

    p(y) is the mean of a split, and the deviation has ddof 0, as in the authors' code. From log-softmax in float64.

    Args:
        fake: Statistics with logits; of more than `keep` images, the kept sample is used.
        splits: Number of splits, at most one per image; the score falls with fewer images per split.
        seed: Seed of the shuffle before splitting (samples may be ordered by class); None: no shuffle.
        n: Number of images to use, the first of the shuffle; None: all.

    Returns:
        {"is", "is_std"}, between 1 and the number of classes.

    Raises:
        UserError: If there are fewer than 20 images.
    """
    _enough("IS", fake)
    logits = fake.logits
    if seed is not None:
        logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    logits = logits[:n]
    splits = min(splits, len(logits))
    scores = []
    for i in range(splits):
        log_p = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits].double().log_softmax(dim=1)
        log_q = log_p.logsumexp(dim=0) - math.log(len(log_p))
        # p log p with p = 0 is 0; a log of -inf (a logit of -inf) would give 0 * inf.
        kl = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(dim=1)
        scores.append(kl.mean().exp())
    score = torch.stack(scores)
    values = {"is": score.mean().item(), "is_std": score.std(correction=0).item()}
    return Scores(values, {**fake.card, "n_fake": fake.n, "is_splits": splits, "is_seed": seed})


def rarest_class(real: FeatureStats, fake: FeatureStats) -> float:
    """The smallest share among the samples of any class of the real images, 0..1; classes are the logits' argmax.

    Classes without a real image do not count, since a generator cannot learn them.

    Args:
        real: Statistics with logits.
        fake: Statistics of the samples, with logits.
    """
    of_real, counts = (torch.bincount(s.logits.argmax(dim=1), minlength=s.logits.shape[1]) for s in (real, fake))
    return (counts[of_real > 0].min() / counts.sum()).item()


# --------------------------------------------------------------------------------------------------------------------
# Kernel distance
# --------------------------------------------------------------------------------------------------------------------
def kid(
    real: FeatureStats, fake: FeatureStats, subsets: int = 100, subset_size: int | None = None, seed: int = 2020
) -> Scores:
    """Kernel Inception distance: unbiased MMD^2 with k(a, b) = (a.b / F + 1)^3.

    Binkowski et al. (2018), arXiv:1801.01401. Unbiased for any number of images, so it suits small samples; for equal
    distributions slightly negative values are correct.

    Args:
        real: Statistics with kept features.
        fake: Statistics of the samples, with kept features.
        subsets: Random subsets, drawn without replacement within each.
        subset_size: Images of each set per subset; default 1000, but at most half of the smaller set, so that the
            subsets differ. The card holds it.
        seed: Seed of the subsets.

    Returns:
        {"kid", "kid_std"}: mean and standard deviation (ddof 0) over subsets, not multiplied by 1000.

    Raises:
        UserError: If there are fewer than 20 images, or a subset is larger than a set.
    """
    _enough("KID", real, fake)
    fewest = min(len(real.features), len(fake.features))
    size = subset_size or min(1000, fewest // 2)
    if not 2 <= size <= fewest:
        raise UserError(f"KID's subset_size must be from 2 to the number of images, {fewest}, got {size}.")
    x, y = real.features.double(), fake.features.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    block: Callable[[str, Tensor, Tensor], Tensor]
    # Computing all products once is cheaper than per subset, if they fit in memory (600 MB at 5000 images).
    if max(len(x), len(y)) <= min(5000, size * math.sqrt(subsets)):
        products = {"xx": kernel(x, x), "yy": kernel(y, y), "xy": kernel(x, y)}

        def block(pair: str, rows: Tensor, columns: Tensor) -> Tensor:
            return products[pair][rows][:, columns]
    else:
        sides = {"x": x, "y": y}

        def block(pair: str, rows: Tensor, columns: Tensor) -> Tensor:
            return kernel(sides[pair[0]][rows], sides[pair[1]][columns])

    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        i = torch.randperm(len(x), generator=generator)[:size]
        j = torch.randperm(len(y), generator=generator)[:size]
        # Pairs of a point with itself are left out within a set; across sets all pairs count.
        within = sum((k.sum() - k.trace()) / (size * (size - 1)) for k in (block("xx", i, i), block("yy", j, j)))
        values.append(within - 2 * block("xy", i, j).mean())
    mmd = torch.stack(values)
    card = {"kid_subsets": subsets, "kid_subset_size": size, "kid_seed": seed}
    return Scores({"kid": mmd.mean().item(), "kid_std": mmd.std(correction=0).item()}, _sizes(real, fake) | card)


# --------------------------------------------------------------------------------------------------------------------
# Precision and recall
# --------------------------------------------------------------------------------------------------------------------
def distances(x: Tensor, y: Tensor, reduce: Callable[[Tensor], Tensor], chunk: int = 1024) -> Tensor:
    """`reduce` of the Euclidean distances [n, M] between slices of x [N, D] and all of y [M, D], joined over slices.

    Memory is chunk * M numbers. Float64, and centred: the product form |x|^2 + |y|^2 - 2xy in float32 would
    give an exact copy a distance of 1e-3.
    """
    x, y = in_float64(x), in_float64(y)
    centre = y.mean(dim=0)
    x, y = x - centre, y - centre
    y_square = y.square().sum(dim=1)
    rows = []
    for part in x.split(chunk):
        square = (part.square().sum(dim=1, keepdim=True) + y_square - 2 * part @ y.T).clamp_min_(0)
        rows.append(reduce(square.sqrt_()))
    return torch.cat(rows)


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance [N] from each point to its k-th neighbour; the point itself is the zeroth."""
    return distances(x, x, lambda d: d.kthvalue(k + 1, dim=1).values)


def _sample(stats: FeatureStats, most: int) -> Tensor:
    rows = stats.keys.topk(min(most, len(stats.keys)), largest=False).indices.sort().values
    return stats.features[rows]


def precision_recall(
    real: FeatureStats, fake: FeatureStats, k: int = 3, k_density: int = 5, max_samples: int = 10_000
) -> Scores:
    """Improved precision and recall, and density and coverage.

    Kynkaanniemi et al. (2019), arXiv:1904.06991: precision is the share of fakes within the k-th-neighbour ball of any
    real image, recall the share of reals within the ball of any fake. Naeem et al. (2020), arXiv:2002.09797: density
    counts the real balls around each fake (over k_density; may exceed 1), coverage is the share of real balls that hold
    a fake.

    Args:
        real: Statistics with kept features.
        fake: Statistics of the samples, with kept features.
        k: Neighbour that sets the radius, for precision and recall.
        k_density: Neighbour that sets the radius, for density and coverage.
        max_samples: Most features to use of each set (a fixed uniform sample), since the cost grows with the product of
            both numbers.

    Returns:
        {"precision", "recall", "density", "coverage"}. They depend on the numbers of images: see the card.

    Raises:
        UserError: If there are fewer than 20 images.
    """
    _enough("Precision", real, fake)
    x, y = _sample(real, max_samples), _sample(fake, max_samples)
    real_radius, fake_radius, wide_radius = _radii(x, k), _radii(y, k), _radii(x, k_density)
    # Two columns per fake: whether it lies in any real ball, and in how many of the wider balls.
    of_fakes = distances(
        y, x, lambda d: torch.stack([(d <= real_radius).any(dim=1).double(), (d <= wide_radius).sum(dim=1)], dim=1)
    )
    of_reals = distances(
        x, y, lambda d: torch.stack([(d <= fake_radius).any(dim=1).double(), d.min(dim=1).values], dim=1)
    )
    values = {
        "precision": of_fakes[:, 0].mean().item(),
        "recall": of_reals[:, 0].mean().item(),
        "density": of_fakes[:, 1].mean().item() / k_density,
        "coverage": (of_reals[:, 1] <= wide_radius).double().mean().item(),
    }
    card = {"pr_k": k, "pr_k_density": k_density, "pr_n_real": len(x), "pr_n_fake": len(y)}
    return Scores(values, _sizes(real, fake) | card)


def score(
    real: FeatureStats, fake: FeatureStats, wanted: tuple[str, ...] = ("fid", "is", "kid"), seed: int = 2020
) -> Scores:
    """The wanted scores out of "fid", "is", "kid", "pr" (precision, recall, density, coverage), with one card.

    Raises:
        UserError: If a wanted score is unknown, or there are fewer than 20 images.
    """
    makers: dict[str, Callable[[], Scores]] = {
        "fid": lambda: fid(real, fake),
        "is": lambda: inception_score(fake, seed=seed),
        "kid": lambda: kid(real, fake, seed=seed),
        "pr": lambda: precision_recall(real, fake),
    }
    unknown = sorted(set(wanted) - set(makers))
    if unknown:
        raise UserError(f"There is no score {unknown[0]}; metrics.scores takes {', '.join(makers)}.")
    if real.card.get("checksum") != fake.card.get("checksum"):
        raise ValueError("Real and fake features come from different extractors.")
    scores = Scores()
    for each in wanted:
        scores |= makers[each]()
    return scores
