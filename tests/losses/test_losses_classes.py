"""Losses of classifiers with missing labels, and of K + 1 classes, against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.losses.classes import known_cross_entropy, nats_of_class, nats_of_fake, nats_of_real, real_logits


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alone(value):
    """The mean over processes, of one process."""
    return value


# --- Missing labels ---------------------------------------------------------------------------------------------------


def test_the_mean_is_over_the_labelled_samples():
    logits, y = 3 * draw(6, 4), torch.tensor([2, -1, 0, 3, -1, 1])
    assert_close(known_cross_entropy(logits, y, alone), F.cross_entropy(logits, y, ignore_index=-1))


def test_without_labels_there_is_no_loss_and_no_gradient():
    logits = draw(3, 4).requires_grad_()
    loss = known_cross_entropy(logits, torch.full((3,), -1), alone)
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros(3, 4, dtype=torch.float64))


def test_processes_with_unequal_numbers_of_labels_are_one():
    """Two halves, with three labels and one: the mean of their losses is that of the whole."""
    logits, y = draw(6, 4), torch.tensor([2, 1, 0, -1, -1, 1])
    halves = [
        known_cross_entropy(logits[part], y[part], lambda _: torch.tensor(2.0)) for part in (slice(3), slice(3, 6))
    ]
    assert_close(sum(halves) / 2, known_cross_entropy(logits, y, alone))


def test_labels_say_nothing_of_a_shift_of_all_classes():
    """No gradient along (1, ..., 1): the labelled loss of K classes leaves real and fake to the other terms."""
    logits = draw(5, 4).requires_grad_()
    known_cross_entropy(logits, torch.tensor([0, 3, -1, 2, 2]), alone).backward()
    assert_close(logits.grad.sum(dim=1), torch.zeros(5, dtype=torch.float64))
    assert logits.grad.abs().max() > 0.01


# --- K + 1 classes ----------------------------------------------------------------------------------------------------


def test_at_chance_each_term_is_log_eleven():
    """Ten classes and fakes, all logits 0."""
    logits = torch.zeros(3, 11, dtype=torch.float64)
    for nats in (nats_of_class(logits, torch.tensor([0, 4, 9])), nats_of_fake(logits)):
        assert_close(nats, torch.full((3,), 2.397895, dtype=torch.float64), rtol=0, atol=5e-7)
    assert_close(nats_of_real(logits), torch.full((3,), math.log(1.1), dtype=torch.float64))


def test_the_terms_are_those_of_probabilities():
    logits = 2 * draw(4, 6)
    p, y = logits.softmax(dim=1), torch.tensor([3, -1, 0, 4])
    assert_close(nats_of_fake(logits), -p[:, 5].log())
    assert_close(nats_of_real(logits), -(1 - p[:, 5]).log())
    assert_close(nats_of_class(logits, y), -torch.stack([p[0, 3], 1 - p[1, 5], p[2, 0], p[3, 4]]).log())
    assert_close(real_logits(logits), ((1 - p[:, 5]) / p[:, 5]).log())


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_sure_logits_stay_finite_and_keep_their_gradient(size):
    logits = torch.tensor([[size, 0.0, -size], [0.0, -size, size]], dtype=torch.float64, requires_grad=True)
    loss = (nats_of_class(logits, torch.tensor([1, 0])) + nats_of_fake(logits) + nats_of_real(logits)).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.abs().max() > 0.5


def test_a_constant_on_all_logits_changes_nothing():
    logits, y = draw(4, 6), torch.tensor([3, -1, 0, 4])
    for nats in (nats_of_real, nats_of_fake, real_logits, lambda x: nats_of_class(x, y)):
        assert_close(nats(logits + 7.5), nats(logits))


def test_the_best_discriminator_of_a_discrete_toy():
    """p_k = p(x, k) / (p(x) + q(x)), and q / (p + q) for fakes, which is the plain GAN's 1 - D."""
    p = torch.tensor([[0.3, 0.1], [0.05, 0.05], [0.2, 0.0], [0.1, 0.2]], dtype=torch.float64)
    q = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    logits = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        real = sum((p[:, k] * nats_of_class(logits, torch.full((4,), k))).sum() for k in range(2))
        loss = real + (q * nats_of_fake(logits)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found, total = logits.detach().softmax(dim=1), p.sum(dim=1) + q
    assert_close(found, torch.cat([p, q[:, None]], dim=1) / total[:, None], rtol=0, atol=1e-3)
    assert_close(real_logits(logits.detach()), (p.sum(dim=1) / q).log(), rtol=0, atol=1e-3)
