"""The bounds of InfoGAN."""

import math

import torch
from torch.testing import assert_close

from genlab.losses.information import categorical_information, gaussian_information


def value(number):
    return torch.tensor(number, dtype=torch.float64)


def test_a_uniform_guess_tells_nothing_and_a_sure_one_all():
    category = torch.arange(10).repeat(3)
    assert_close(categorical_information(torch.zeros(30, 10, dtype=torch.float64), category), value(0.0))
    sure = 100 * torch.nn.functional.one_hot(category, 10).double()
    assert_close(categorical_information(sure, category), value(2.302585), rtol=0, atol=1e-6)
    assert categorical_information(-sure, category) < -90  # sure and wrong


def test_the_bound_of_a_noisy_channel():
    """A category that survives with probability 0.7, known to Q: the mutual information itself."""
    k, keep = 4, 0.7
    p = torch.full((k, k), (1 - keep) / (k - 1), dtype=torch.float64).fill_diagonal_(keep)
    found = (p / k).sum(dim=1) @ torch.stack(
        [categorical_information(p.log()[i].expand(k, k), torch.arange(k)) for i in range(k)]
    )
    each = torch.stack(
        [categorical_information(p.log()[i : i + 1], torch.tensor([j])) for i in range(k) for j in range(k)]
    )
    exact = math.log(k) + keep * math.log(keep) + (1 - keep) * math.log((1 - keep) / (k - 1))
    assert_close((p.flatten() / k) @ each, value(exact))
    assert found < exact


def test_codes_of_a_fixed_variance_tell_less_than_nothing():
    """At most log 2 - log(2 pi) / 2 for each; a guess of 0 costs the variance of the codes, 1/3, by half."""
    best = math.log(2) - 0.5 * math.log(2 * math.pi)
    code = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[:, None]
    assert_close(gaussian_information(code, code), value(best))
    assert_close(value(best), value(-0.225791), rtol=0, atol=1e-6)
    assert_close(gaussian_information(0 * code, code), value(best - 1 / 6), rtol=0, atol=1e-4)
    two = code.expand(-1, 2)
    assert_close(gaussian_information(two, two), value(2 * best))
    assert_close(gaussian_information(code[:, :0], code[:, :0]), value(0.0))


def test_gradients():
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: categorical_information(x, torch.tensor([0, 2, 1, 1, 0])), (logits,))
    assert torch.autograd.gradcheck(lambda x: gaussian_information(x, torch.ones_like(x)), (logits,))
