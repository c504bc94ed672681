"""Objectives on the features of a network."""

from __future__ import annotations

from torch import Tensor

from genlab.losses.numerics import exact


@exact
def feature_matching(features_real: Tensor, features_fake: Tensor) -> Tensor:
    """|E f(x) - E f(G(z))|^2 / F: squared differences of the batch means, averaged over the F features.

    Salimans et al. (2016), arXiv:1606.03498, section 3.1; the mean over features, not the sum, follows their code.

    Args:
        features_real: [N, F].
        features_fake: [M, F].

    Returns:
        A scalar.
    """
    return (features_real.mean(dim=0) - features_fake.mean(dim=0)).square().mean()
