"""The objective of discriminators of pairs: a sample and what it was told."""

from __future__ import annotations

from torch import Tensor

from genlab.losses.adversarial import AdversarialLoss


def matching_loss(loss: AdversarialLoss, right: Tensor, wrong: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x, t) - 1/2 E log(1 - D(x, t')) - 1/2 E log(1 - D(G(z, t), t)), by any adversarial loss.

    Reed et al. (2016), arXiv:1605.05396, Algorithm 1, line 10. Half of what is wrong are real samples with mismatched
    conditions t'; without them a discriminator need not read the conditions. At the optimum D = p_r / (p_r + p_w / 2 +
    p_f / 2): of a perfect generator and pairs that are never right by accident, 2/3 on real samples and fakes.

    Args:
        loss: The losses of both kinds of logits.
        right: Logits [N] of real samples with their own conditions.
        wrong: Logits [N] of real samples with mismatched conditions.
        fake: Logits [M] of fakes with the conditions that they were drawn for.

    Returns:
        A scalar; for the non-saturating loss .954771 in that optimum, and 2 log 2 where all logits are 0.
    """
    return loss.real(right) + 0.5 * (loss.fake(wrong) + loss.fake(fake))
