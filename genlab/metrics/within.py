"""Scores within classes: of samples beside real images of the class that they were told."""

import math
import warnings

import torch
from torch import Tensor

from genlab.metrics.features import Features
from genlab.metrics.images import fid
from genlab.metrics.scores import Scores

MOST = 1000  # images of a class whose distances are taken


def class_sizes(of_real: Tensor, of_fake: Tensor) -> tuple[list[int], int]:
    """The classes of real images, and the number of images of the rarest among real or generated ones.

    Args:
        of_real: Labels [N]; -1 (no label) is left out.
        of_fake: Labels [M].
    """
    classes = of_real[of_real >= 0].unique().tolist()
    fewest = min((int((y == k).sum()) for y in (of_real, of_fake) for k in classes), default=0)
    return classes, fewest


def fid_within(real: Features, fake: Features, of_real: Tensor, of_fake: Tensor) -> Scores:
    """Mean over classes of the FID of a class. Miyato & Koyama (2018), arXiv:1802.05637, section 4: "intra FID".

    Their samples are 5,000 of each class, and the real images are those of training. Biased upwards by few images, as
    FID is: compare equal numbers of images of each class only.

    Args:
        real: Features of real images.
        fake: Features of the samples.
        of_real: Classes [N] of the real images.
        of_fake: Classes [M] that the samples were told.

    Returns:
        {"fid_within"}; the card holds the number of classes and of images of the rarest.

    Raises:
        UserError: If a class has fewer than 20 images in one of the sets.
    """
    classes, fewest = class_sizes(of_real, of_fake)
    values = []
    with warnings.catch_warnings():  # of few images, ten times; see `Within`
        warnings.simplefilter("ignore")
        for k in classes:
            values.append(fid(_of_class(real, of_real == k), _of_class(fake, of_fake == k))["fid"])
    card = {**fake.card, "n_real": real.n, "n_fake": fake.n, "classes": len(classes), "rarest_class": fewest}
    return Scores({"fid_within": math.fsum(values) / len(values)}, card)


def _of_class(features: Features, rows: Tensor) -> Features:
    return Features(features.features[rows], features.logits[rows], features.card)


def spread_within(real: Tensor, fake: Tensor, of_real: Tensor, of_fake: Tensor) -> Scores:
    """Mean over classes of the mean distance between two samples, relative to that between two real images.

    1 for samples as diverse as real images, 0 for one sample a class. Noise, and samples of other classes, raise it.

    Args:
        real: Real images [N, ...] of any type.
        fake: Samples [M, ...].
        of_real: Classes [N] of the real images.
        of_fake: Classes [M] that the samples were told.

    Returns:
        {"spread_within", "spread_within_least"}: the mean over classes, and the least of a class.

    Raises:
        ValueError: If a class has fewer than two images in one of the sets.
    """
    classes, fewest = class_sizes(of_real, of_fake)
    if fewest < 2:
        raise ValueError(f"A spread needs two images of each class, got {fewest}.")
    ratios = [_spread(fake[of_fake == k]) / (_spread(real[of_real == k]) or math.nan) for k in classes]
    values = {"spread_within": math.fsum(ratios) / len(ratios), "spread_within_least": min(ratios)}
    card = {"n_real": len(real), "n_fake": len(fake), "classes": len(classes), "rarest_class": fewest}
    return Scores(values, {**card, "spread_most": MOST})


def _spread(x: Tensor) -> float:
    """The mean distance of two of the first images [N, ...]."""
    return torch.pdist(x[:MOST].flatten(1).double()).mean().item()
