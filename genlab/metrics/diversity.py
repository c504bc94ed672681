"""Scores on pixels: the diversity of samples, and their distance to the training images."""

import math

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics.scores import Scores, distances
from genlab.metrics.ssim import BETAS, MultiScaleSSIM

TINY_DISTANCE = 1e-4  # bound on the rounding error between equal images


def ms_ssim_settings(height: int, width: int) -> dict[str, float | int]:
    """Scales, window and sigma that fit the images; five scales of an 11 pixel window need a side of 176.

    For smaller images, as many scales as leave the coarsest image 8 pixels (at least two scales; one below 8 pixels),
    and the largest odd window up to 11 that fits the coarsest image, with sigma in proportion (1.5 at 11).
    """
    side = min(height, width)
    scales = 1 if side < 8 else max(2, min(len(BETAS), int(math.log2(side / 8)) + 1))
    window = min(11, side >> (scales - 1))
    window -= 1 - window % 2
    return {"ms_ssim_scales": scales, "ms_ssim_window": window, "ms_ssim_sigma": 1.5 * window / 11}


def ms_ssim_diversity(
    x: Tensor, pairs: int = 1000, seed: int = 2020, labels: Tensor | None = None, batch_size: int = 256
) -> Scores:
    """1 - mean MS-SSIM of random pairs: 0 for identical images, about 1 for unrelated ones.

    Rosca et al. (2018), arXiv:1802.06847; MS-SSIM of Wang et al. (2003), negative contrast terms clamped to 0, the
    weights of the scales in use normalised to sum to 1. Compare it with the test set's value: a lower one means
    collapse, a higher one noise.

    Args:
        x: uint8 images [N, C, H, W], N >= 2.
        pairs: Pairs of two different images, drawn with replacement.
        seed: Seed of the pairs; the global random stream is not used.
        labels: Labels [N]; if given, pairs are drawn within classes, as Odena et al. (2017) do for conditional models.
        batch_size: Pairs at a time.

    Returns:
        {"ms_ssim_diversity"}; the card holds scales, window, sigma, pairs and seed.

    Raises:
        UserError: If there are no two images to compare, or images are below 3 pixels.
    """
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ValueError(f"x must be uint8 images [N, C, H, W], got {x.dtype} {tuple(x.shape)}.")
    if min(x.shape[2:]) < 3:
        raise UserError(f"MS-SSIM needs images of at least 3x3 pixels, got {x.shape[2]}x{x.shape[3]}.")
    generator = torch.Generator().manual_seed(seed)
    first, second = _pairs(len(x), pairs, generator, labels)
    settings = ms_ssim_settings(x.shape[2], x.shape[3])
    how = int(settings["ms_ssim_scales"]), int(settings["ms_ssim_window"]), float(settings["ms_ssim_sigma"])
    metric = MultiScaleSSIM(*how)
    for i, j in zip(first.split(batch_size), second.split(batch_size), strict=True):
        metric.update(x[i.to(x.device)].float() / 255, x[j.to(x.device)].float() / 255)
    card = {**settings, "ms_ssim_pairs": pairs, "ms_ssim_seed": seed, "ms_ssim_within_class": labels is not None}
    return Scores({"ms_ssim_diversity": 1 - torch.as_tensor(metric.compute()).mean().item()}, card | {"n_fake": len(x)})


def _pairs(count: int, pairs: int, generator: torch.Generator, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Indices [pairs] of two different images each; within one class if labels are given."""
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels.cpu()
    order = labels.argsort(stable=True)  # each class is contiguous in `order`
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(count)
    places = places[sizes[inverse[order]] > 1]  # images that have a partner
    if len(places) == 0:
        raise UserError(f"MS-SSIM needs two images (of one class) to compare, got {count}. Raise metrics.num_samples.")
    first = places[torch.randint(len(places), (pairs,), generator=generator)]
    group = inverse[order[first]]
    # A step of 1..size-1 around the class reaches each other image of the class with equal probability.
    step = 1 + (torch.rand(pairs, generator=generator, dtype=torch.float64) * (sizes[group] - 1)).long()
    second = starts[group] + (first - starts[group] + step) % sizes[group]
    return order[first], order[second]


def nearest_neighbour_ratio(samples: Tensor, train: Tensor, test: Tensor, copy: float = 0.0) -> Scores:
    """Distance of samples to the training images, relative to that of unseen data: far below 1 means memorised.

    Args:
        samples: Images or points [N, ...], any type.
        train: Training images [M, ...].
        test: Unseen images [L, ...], the reference.
        copy: Distance up to which a sample counts as a copy of a training image, in pixel values as given.

    Returns:
        {"nn_ratio", "nn_samples", "nn_test"}: median distance of a sample to its nearest training image over the median
        for test images, and the two medians (in pixel values as given); {"nn_copies", "nn_copies_real"}: the shares of
        samples and of test images that are copies, which a median does not show. Memory is bounded by 1024 x 4096
        distances, for any number of training images.
    """
    flat = [x.flatten(1) for x in (samples, train, test)]

    def nearest(x: Tensor) -> tuple[float, float]:
        parts = [distances(x, part.to(x.device), lambda d: d.min(dim=1).values) for part in flat[1].split(4096)]
        closest = torch.stack(parts).min(dim=0).values
        return closest.median().item(), (closest <= copy + TINY_DISTANCE).double().mean().item()

    (of_samples, copies), (of_test, known) = nearest(flat[0]), nearest(flat[2])
    ratio = of_samples / of_test if of_test > 0 else math.nan  # 0: the test images are training images
    values = {"nn_ratio": ratio, "nn_samples": of_samples, "nn_test": of_test}
    values |= {"nn_copies": copies, "nn_copies_real": known}
    return Scores(values, {"n_fake": len(samples), "n_train": len(train), "n_test": len(test), "nn_copy": copy})


def diversity_ratio(fake: Tensor, real: Tensor) -> Scores:
    """Mean pairwise distance of samples, divided by that of data; below 0.3 the generator has collapsed.

    Args:
        fake: [N, ...], N >= 2.
        real: [M, ...], M >= 2.
    """

    def spread(x: Tensor) -> float:
        return distances(x.flatten(1), x.flatten(1), lambda d: d.sum(dim=1)).sum().item() / (len(x) * (len(x) - 1))

    return Scores({"diversity_ratio": spread(fake) / spread(real)}, {"n_fake": len(fake), "n_real": len(real)})
