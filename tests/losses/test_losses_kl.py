"""What an objective makes of the KL: every schedule and floor by hand, axes of unequal sizes."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from genlab.losses.divergences import kl_uniform_categorical
from genlab.losses.kl import Capacity, Constant, Cyclical, FreeBits, WarmUp

KL = torch.tensor([[0.1, 2.0, 0.5], [0.5, 4.0, 0.1]], dtype=torch.float64)  # [N, G] = [2, 3]; means 0.3, 3, 0.3
MEAN = 3.6


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("iteration", [0, 10**6])
def test_constant_is_the_mean_over_samples_of_the_sum_over_latents(iteration):
    assert_close(Constant()(KL, iteration), number(MEAN))


@pytest.mark.parametrize(("iteration", "factor"), [(0, 0.0), (5, 0.05), (50, 0.5), (100, 1.0), (1000, 1.0)])
def test_warm_up_rises_and_stays(iteration, factor):
    assert_close(WarmUp(100)(KL, iteration), number(factor * MEAN))


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 0.0), (10, 0.4), (25, 1.0), (99, 1.0), (100, 0.0), (112, 0.48), (350, 1.0)]
)
def test_cycles(iteration, factor):
    assert_close(Cyclical(100, rising=0.25)(KL, iteration), number(factor * MEAN))


def test_free_bits_take_the_mean_before_the_maximum():
    """sum_g max(lambda, mean_n): the other order, or a mean over g, gives other numbers."""
    assert_close(FreeBits(0.4)(KL, 0), number(0.4 + 3.0 + 0.4))
    assert_close(FreeBits(0.0)(KL, 0), number(MEAN))
    kl = KL.clone().requires_grad_()
    FreeBits(0.4)(kl, 0).backward()
    assert_close(kl.grad, torch.tensor([[0, 0.5, 0], [0, 0.5, 0]], dtype=torch.float64))


@pytest.mark.parametrize(("iteration", "capacity"), [(0, 0.0), (25, 2.0), (50, 4.0), (100, 8.0), (999, 8.0)])
def test_capacity_pulls_from_both_sides(iteration, capacity):
    term = Capacity(8.0, 100)
    kl = KL.clone().requires_grad_()
    loss = term(kl, iteration)
    assert_close(loss, number(abs(MEAN - capacity)))
    loss.backward()
    assert_close(kl.grad, torch.full_like(KL, 0.5 if capacity < MEAN else -0.5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WarmUp(0), "kl.steps must be at least 1"),
        (lambda: Cyclical(0), "kl.period"),
        (lambda: Cyclical(10, rising=0.0), "kl.rising must lie in"),
        (lambda: FreeBits(-1.0), "kl.nats"),
        (lambda: Capacity(-1.0, 10), "kl.nats"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_kl_of_a_categorical_to_the_uniform_one():
    logits = 3 * torch.randn(4, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uniform = Categorical(logits=torch.zeros_like(logits))
    assert_close(kl_uniform_categorical(logits), kl_divergence(Categorical(logits=logits), uniform))
    sure = torch.tensor([800.0, 0.0, 0.0], dtype=torch.float64)
    assert_close(kl_uniform_categorical(sure), number(3.0).log())
