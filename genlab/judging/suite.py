"""All scores of an image set, with one protocol card per group."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics.diversity import ms_ssim_diversity, nearest_neighbour_ratio
from genlab.metrics.features import FeatureStats
from genlab.metrics.scores import Scores, fid, inception_score, kid, precision_recall, rarest_class

GROUPS = ("fid", "is", "kid", "pr", "ms_ssim", "nn")
NOISE_STD = 0.1  # of the noised real images, as a share of the grey range
NEIGHBOURS = 1000  # samples in the nearest-neighbour search at most
NEIGHBOUR_SIDE = 32  # pixels; larger images are average-pooled to this side before distances are computed
COPY = 2.0  # grey values; a root mean square difference this small is invisible


def slices(x: Tensor, size: int = 256) -> Iterator[Tensor]:
    """Batches of a tensor; empty ones are left out."""
    return (part for part in x.split(size) if len(part))


def noised(x: Tensor, std: float, seed: int) -> Tensor:
    """uint8 images plus Gaussian noise of standard deviation `std` (a share of the grey range), clamped to 0..255."""
    rng, noisy = torch.Generator().manual_seed(seed), torch.empty(x.shape, dtype=torch.uint8)
    for part, out in zip(x.split(1024), noisy.split(1024), strict=True):  # all at once would take 8x the memory
        out.copy_((part.cpu() + torch.randn(part.shape, generator=rng) * (255 * std)).round().clamp(0, 255))
    return noisy


def image_scores(
    real: Tensor,
    fake: Tensor,
    real_stats: FeatureStats | None,
    fake_stats: FeatureStats | None,
    wanted: Sequence[str] = GROUPS,
    *,
    seed: int = 2020,
    splits: int = 10,
    pairs: int = 1000,
    train: Tensor | None = None,
    labels_by_logits: bool = False,
) -> dict[str, Scores]:
    """The wanted scores by group; names of feature scores contain the extractor.

    The Inception score of as many real images is added as reference if there are enough.

    Args:
        real: Real images, uint8 [N, C, H, W].
        fake: Generated images, uint8 [M, C, H, W].
        real_stats: Extractor statistics of the real images; None leaves out the scores that need them.
        fake_stats: Extractor statistics of the generated images.
        wanted: Groups from `GROUPS`.
        seed: Seed of splits, subsets, pairs and noise.
        splits: Splits of the Inception score.
        pairs: Image pairs of MS-SSIM.
        train: Training images for "nn"; without them "nn" is left out.
        labels_by_logits: Whether the extractor classifies these data. It then labels real and generated images, which
            adds the share of the rarest class and MS-SSIM within classes.

    Raises:
        UserError: If there are fewer than 20 images, or a group is unknown.
    """
    unknown = sorted(set(wanted) - set(GROUPS))
    if unknown:
        raise UserError(f"There is no score {unknown[0]}; scores takes {', '.join(GROUPS)}.")
    groups: dict[str, Scores] = {}
    if real_stats is not None and fake_stats is not None:
        groups |= _of_features(real_stats, fake_stats, wanted, seed, splits, labels_by_logits)
    if "ms_ssim" in wanted:
        groups["ms_ssim"] = _diversity(real, fake, pairs, seed)
    if "ms_ssim" in wanted and labels_by_logits and _has_pairs(real_stats) and _has_pairs(fake_stats):
        groups["ms_ssim_within"] = _diversity(real, fake, pairs, seed, real_stats, fake_stats)
    if "nn" in wanted and train is not None:
        groups["nn"] = memorisation(fake, train, real, seed)
    return groups


def _of_features(
    real: FeatureStats, fake: FeatureStats, wanted: Sequence[str], seed: int, splits: int, labels_by_logits: bool
) -> dict[str, Scores]:
    """The groups computed from features and logits; see `image_scores`."""
    groups: dict[str, Scores] = {}
    name = str(fake.card.get("extractor", "features"))
    if "fid" in wanted:
        groups["fid"] = fid(real, fake).named(name)
    if "is" in wanted and fake.logits.shape[1] > 0:
        values = inception_score(fake, splits, seed)
        if len(real.logits) >= len(fake.logits):  # the score grows with the number of images
            own = inception_score(real, splits, seed, len(fake.logits))
            values |= Scores({"is_real": own["is"], "is_real_std": own["is_std"]})
        groups["is"] = values.named(name)
        if labels_by_logits:
            share = Scores({"rarest_class": rarest_class(real, fake)}, values.card)
            groups["classes"] = share.named(name)
    if "kid" in wanted:
        groups["kid"] = kid(real, fake, seed=seed).named(name)
    if "pr" in wanted:
        groups["pr"] = precision_recall(real, fake).named(name)
    return groups


def _has_pairs(stats: FeatureStats | None) -> bool:
    """Whether all logits were kept and some class has two images."""
    if stats is None or not stats.complete:
        return False
    return int(torch.bincount(stats.logits.argmax(dim=1)).max()) >= 2


def _diversity(
    real: Tensor,
    fake: Tensor,
    pairs: int,
    seed: int,
    real_stats: FeatureStats | None = None,
    fake_stats: FeatureStats | None = None,
) -> Scores:
    """1 - MS-SSIM of generated, real and noised real images; within classes if statistics are given."""
    real_labels = None if real_stats is None else real_stats.logits.argmax(dim=1)
    fake_labels = None if fake_stats is None else fake_stats.logits.argmax(dim=1)
    name = "ms_ssim" if real_stats is None else "ms_ssim_within"
    sets = {
        "": (fake, fake_labels),
        "_real": (real, real_labels),
        "_noised": (noised(real, NOISE_STD, seed), real_labels),
    }
    values: dict[str, float] = {}
    card: dict[str, Any] = {}
    for suffix, (x, labels) in sets.items():
        result = ms_ssim_diversity(x, pairs, seed, labels)
        values[name + suffix] = result["ms_ssim_diversity"]
        card = card or result.card
    card |= {"n_real": len(real), "ms_ssim_noise_std": NOISE_STD}
    if fake_stats is not None:
        card |= {"labels": fake_stats.card.get("extractor"), "checksum": fake_stats.card.get("checksum")}
    return Scores(values, card)


def memorisation(fake: Tensor, train: Tensor, test: Tensor, seed: int = 2020) -> Scores:
    """`nearest_neighbour_ratio` of at most 1,000 samples and test images, in pixels 0..255 of at most 32 x 32.

    A copy differs from a training image by a root mean square of two grey values at most.

    Args:
        fake: Generated images, uint8 [M, C, H, W].
        train: Training images.
        test: Unseen images.
        seed: Seed of the choice among more than 1,000.
    """
    rng = torch.Generator().manual_seed(seed)

    def some(x: Tensor) -> Tensor:
        return x if len(x) <= NEIGHBOURS else x[torch.randperm(len(x), generator=rng)[:NEIGHBOURS]]

    samples, known, unseen = _small(some(fake)), _small(train), _small(some(test))
    scores = nearest_neighbour_ratio(samples, known, unseen, COPY * math.sqrt(samples[0].numel()))
    side = min(NEIGHBOUR_SIDE, max(train.shape[2:]))
    return Scores(scores, {**scores.card, "nn_side": side})


def _small(x: Tensor) -> Tensor:
    side = (min(x.shape[2], NEIGHBOUR_SIDE), min(x.shape[3], NEIGHBOUR_SIDE))
    if side == tuple(x.shape[2:]):
        return x
    return torch.cat([F.adaptive_avg_pool2d(part.float(), side) for part in slices(x)])
