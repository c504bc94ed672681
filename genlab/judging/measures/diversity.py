"""Diversity and memorisation: scores on pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from genlab.judging.measure import About, Measure, paired

if TYPE_CHECKING:
    from torch import Tensor

    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores

NOISE_STD = 0.1  # of the noised real images, as a share of the grey range
PAIRS = 1000
NEIGHBOURS = 1000  # samples in the nearest-neighbour search at most
NEIGHBOUR_SIDE = 32  # pixels; larger images are average-pooled to this side before distances are computed
COPY = 2.0  # grey values; a root mean square difference this small is invisible


class Diversity(Measure):
    """1 - MS-SSIM of pairs of samples, of real and of noised images; within classes if the extractor knows them."""

    name, place, section = "ms_ssim", 20, "diversity and memorisation"
    needs = ("pictures", "samples")
    about: Mapping[str, About] = {
        "ms_ssim": About("diversity, 1 - MS-SSIM"),
        "ms_ssim_within": About("diversity within classes"),
    }
    cheap = False

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"ms_ssim", "ms_ssim_real", "ms_ssim_noised"}, and {"ms_ssim_within", ...} where classes are known."""
        from genlab.sharing import by_first

        n = self.number(subject)
        real, fake = subject.real(n), subject.fake(n)
        found = [by_first(lambda: diversity(real, fake, subject.seed))]
        if not subject.lacks("classes"):
            sets = subject.real_features(n), subject.fake_features(n)
            if all(int(each.classes.bincount().max()) >= 2 for each in sets):
                labels = [each.classes for each in sets]
                found.append(by_first(lambda: diversity(real, fake, subject.seed, *labels)))
                found[1].card |= {"labels": sets[1].card["extractor"], "checksum": sets[1].card.get("checksum")}
        return found

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """Those of real images and of noised ones."""
        return [*super().beside(score, scores, card), f"noised {paired(score, scores, 'noised'):.4g}"]


class Memorisation(Measure):
    """The distance of samples to the training images beside that of unseen images, and the share of copies."""

    name, place, section = "nn", 21, "diversity and memorisation"
    needs = ("pictures", "samples", "train")
    about: Mapping[str, About] = {
        "nn_ratio": About("nearest-neighbour ratio"),
        "nn_copies": About("share of copies of training images"),
    }
    cheap = False

    def take(self, subject: Subject) -> Iterable[Scores]:
        """See `memorisation`."""
        from genlab.sharing import by_first

        n = self.number(subject)
        fake, real, train = subject.fake(n), subject.real(n), subject.train()
        found = by_first(lambda: memorisation(fake, train, real, subject.seed))
        found.card["train_fingerprint"] = subject.train_fingerprint()
        if found["nn_test"] == 0:
            subject.note("Most of the unseen images are also training images, so the ratio measures nothing.")
        return [found]

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """Those of unseen images."""
        return ["unseen images 1" if score == "nn_ratio" else f"unseen images {scores['nn_copies_real']:.4g}"]


def diversity(
    real: Tensor, fake: Tensor, seed: int = 2020, of_real: Tensor | None = None, of_fake: Tensor | None = None
) -> Scores:
    """1 - MS-SSIM of pairs of generated, real and noised real images.

    Args:
        real: Real images, uint8 [N, C, H, W].
        fake: Generated images, uint8 [M, C, H, W].
        seed: Seed of pairs and noise.
        of_real: Classes [N] of real images; if given, pairs are of one class.
        of_fake: Classes [M] of generated images.
    """
    from genlab.metrics.diversity import ms_ssim_diversity
    from genlab.metrics.scores import Scores

    name = "ms_ssim" if of_fake is None else "ms_ssim_within"
    of_fakes = ms_ssim_diversity(fake, PAIRS, seed, of_fake)
    values = {name: of_fakes["ms_ssim_diversity"]}
    for suffix, x in (("real", real), ("noised", noised(real, NOISE_STD, seed))):
        values[f"{name}_{suffix}"] = ms_ssim_diversity(x, PAIRS, seed, of_real)["ms_ssim_diversity"]
    return Scores(values, {**of_fakes.card, "n_real": len(real), "ms_ssim_noise_std": NOISE_STD})


def noised(x: Tensor, std: float, seed: int) -> Tensor:
    """uint8 images plus Gaussian noise of standard deviation `std` (a share of the grey range), clamped to 0..255."""
    import torch

    rng, noisy = torch.Generator().manual_seed(seed), torch.empty(x.shape, dtype=torch.uint8)
    for part, out in zip(x.split(1024), noisy.split(1024), strict=True):  # all at once would take 8x the memory
        out.copy_((part.cpu() + torch.randn(part.shape, generator=rng) * (255 * std)).round().clamp(0, 255))
    return noisy


def memorisation(fake: Tensor, train: Tensor, test: Tensor, seed: int = 2020) -> Scores:
    """`nearest_neighbour_ratio` of at most 1,000 samples and test images, in pixels 0..255 of at most 32 x 32.

    A copy differs from a training image by a root mean square of two grey values at most.

    Args:
        fake: Generated images, uint8 [M, C, H, W].
        train: Training images.
        test: Unseen images.
        seed: Seed of the choice among more than 1,000.
    """
    import torch

    from genlab.metrics.diversity import nearest_neighbour_ratio
    from genlab.metrics.scores import Scores

    rng = torch.Generator().manual_seed(seed)

    def some(x: Tensor) -> Tensor:
        return x if len(x) <= NEIGHBOURS else x[torch.randperm(len(x), generator=rng)[:NEIGHBOURS]]

    samples, seen, unseen = _small(some(fake)), _small(train), _small(some(test))
    scores = nearest_neighbour_ratio(samples, seen, unseen, COPY * math.sqrt(samples[0].numel()))
    side = min(NEIGHBOUR_SIDE, max(train.shape[2:]))
    return Scores(scores, {**scores.card, "nn_side": side})


def _small(x: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    side = (min(x.shape[2], NEIGHBOUR_SIDE), min(x.shape[3], NEIGHBOUR_SIDE))
    if side == tuple(x.shape[2:]):
        return x
    return torch.cat([F.adaptive_avg_pool2d(part.float(), side) for part in x.split(256)])
