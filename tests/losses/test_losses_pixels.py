"""The discretised logistic mixture is a distribution over bytes; the optimal variance is one."""

import math

import pytest
import torch
from torch.testing import assert_close

from genlab.losses.likelihoods import Bernoulli, Gaussian, LogisticMixture, OptimalGaussian

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(channels, components=3, height=1, width=1, scale=1.0, seed=0):
    likelihood = LogisticMixture((channels, height, width), components)
    raw = scale * draw(1, LogisticMixture.raw_channels(channels, components), height, width, seed=seed)
    return likelihood, raw


# ----------------------------------------------------------------------------------------- discretised logistic mixture


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
def test_the_levels_of_a_grey_pixel_sum_to_one(scale):
    likelihood, raw = mixture(1, scale=scale)
    log_p = likelihood.log_prob(LEVELS.view(256, 1, 1, 1), raw.expand(256, -1, -1, -1))
    assert log_p.shape == (256,) and (log_p <= 1e-12).all()
    assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0)


def test_all_pairs_of_two_channels_sum_to_one():
    """The second channel's mean depends on the first: all 65,536 pairs."""
    likelihood, raw = mixture(2, components=2)
    pairs = torch.cartesian_prod(LEVELS, LEVELS).view(-1, 2, 1, 1)
    log_p = torch.cat([likelihood.log_prob(part, raw.expand(len(part), -1, -1, -1)) for part in pairs.split(8192)])
    assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0)
    table = log_p.exp().view(256, 256)
    conditional = table / table.sum(dim=1, keepdim=True)
    assert (conditional[20] - conditional[230]).abs().max() > 1e-3  # it does depend


def test_three_channels_by_hand():
    """One component, one pixel: the product of three differences of sigmoids, means shifted by the channels before."""
    likelihood, raw = mixture(3, components=1)
    x = LEVELS[torch.tensor([40, 128, 255])].view(1, 3, 1, 1)
    _, m, s, c = raw.flatten().split([1, 3, 3, 3])
    c = c.tanh()
    r, g, b = x.flatten()
    means = [m[0], m[1] + c[0] * r, m[2] + c[1] * r + c[2] * g]

    def cdf(v, i):
        return torch.sigmoid((v - means[i]) / s[i].exp())

    p = (cdf(r + 1 / 255, 0) - cdf(r - 1 / 255, 0)) * (cdf(g + 1 / 255, 1) - cdf(g - 1 / 255, 1))
    p = p * (1 - cdf(b - 1 / 255, 2))  # the last level takes all that lies beyond
    assert_close(likelihood.log_prob(x, raw), p.log().view(1))


def test_pixels_are_independent_and_add_up():
    likelihood, raw = mixture(3, height=2, width=5)
    x = LEVELS[torch.randint(256, (4, 3, 2, 5), generator=torch.Generator().manual_seed(1))]
    whole = likelihood.log_prob(x, raw.expand(4, -1, -1, -1))
    single = sum(
        likelihood.log_prob(x[:, :, i : i + 1, j : j + 1], raw[:, :, i : i + 1, j : j + 1].expand(4, -1, -1, -1))
        for i in range(2)
        for j in range(5)
    )
    assert_close(whole, single)


def test_draws_follow_the_distribution():
    likelihood, raw = mixture(2, components=3, seed=5)
    many = 40_000
    x = likelihood.sample(raw.expand(many, -1, -1, -1), torch.Generator().manual_seed(0))
    levels = ((x.flatten(1) + 1) * 127.5).round().long()
    assert_close(levels.double() / 127.5 - 1, x.flatten(1), rtol=0, atol=1e-9)  # bytes
    pairs = torch.cartesian_prod(LEVELS, LEVELS).view(-1, 2, 1, 1)
    p = torch.cat([likelihood.log_prob(part, raw.expand(len(part), -1, -1, -1)) for part in pairs.split(8192)]).exp()
    coarse = p.view(4, 64, 4, 64).sum(dim=(1, 3))
    found = torch.zeros(4, 4, dtype=torch.float64)
    found.index_put_((levels[:, 0] // 64, levels[:, 1] // 64), torch.tensor(1 / many, dtype=torch.float64), True)
    assert (found - coarse).abs().max() < 4 * 0.5 / math.sqrt(many), found - coarse


def test_the_mean_is_that_of_the_means():
    """Of narrow components well inside the range, where discretisation and ends do not matter."""
    likelihood, raw = mixture(3, components=2, seed=3)
    weights, means, log_scales, coefficients = raw.split([2, 6, 6, 6], dim=1)
    raw = torch.cat([weights, 0.2 * means.tanh(), log_scales - 8, 0.3 * coefficients], dim=1)
    x = likelihood.sample(raw.expand(20_000, -1, -1, -1), torch.Generator().manual_seed(0))
    assert_close(likelihood.mean(raw)[0], x.mean(dim=0), rtol=0, atol=0.01)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_far_outputs_have_finite_gradients(value):
    """Where a plain difference of sigmoids is 0 and its logarithm -inf."""
    likelihood, raw = mixture(3, height=2, width=2, scale=300.0)
    raw.requires_grad_()
    log_p = likelihood.log_prob(torch.full((1, 3, 2, 2), value, dtype=torch.float64), raw)
    log_p.sum().backward()
    assert log_p.isfinite().all() and raw.grad.isfinite().all() and raw.grad.abs().sum() > 0


def test_its_start_fits_the_data_better_than_zeros():
    likelihood = LogisticMixture((1, 4, 4), 5)
    x = LEVELS[torch.randint(100, 140, (50, 1, 4, 4), generator=torch.Generator().manual_seed(1))]
    bias = likelihood.visible_bias(x)
    assert bias.shape == (15, 4, 4)
    fitted = likelihood.log_prob(x, bias.expand(50, -1, -1, -1)).mean()
    assert fitted > likelihood.log_prob(x, torch.zeros_like(bias).expand(50, -1, -1, -1)).mean() + 10
    assert likelihood.visible_bias(torch.ones(3, 1, 4, 4)).isfinite().all()


def test_mixture_mistakes():
    with pytest.raises(ValueError, match="components must be at least 1"):
        LogisticMixture((3, 4, 4), 0)
    with pytest.raises(ValueError, match=r"raw_shape must be \[100, 4, 4\]"):
        LogisticMixture((3, 4, 4), 10, raw_shape=(99, 4, 4))


# ----------------------------------------------------------------------------------------------------- optimal variance


def test_the_optimal_variance_has_the_gradient_of_half_d_log_mse():
    """Rybkin et al. (2021), Eq. 6, although sigma itself is held."""
    x, raw = draw(2, 6, 1, 3, 4)
    raw.requires_grad_()
    likelihood = OptimalGaussian().double()
    found = torch.autograd.grad(-likelihood.log_prob(x, raw).mean(), raw)[0]
    expected = torch.autograd.grad(0.5 * 12 * (x - raw).square().mean().log(), raw)[0]
    assert_close(found, expected, rtol=1e-5, atol=1e-9)  # log sigma passes through float32
    mse = (x - raw).square().mean().detach()
    assert_close((2 * likelihood.log_sigma).exp(), mse, rtol=1e-5, atol=0)


def test_judging_leaves_the_optimal_variance_alone():
    likelihood = OptimalGaussian().double()
    x, raw = draw(2, 6, 4)
    likelihood.log_prob(x, raw)
    before = likelihood.log_sigma.clone()
    likelihood.eval()
    alone = likelihood.log_prob(x[:1], raw[:1])
    assert torch.equal(likelihood.log_sigma, before)
    assert_close(alone, likelihood.log_prob(x, raw)[:1])
    reference = Gaussian(before.exp().item()).double()
    assert_close(alone, reference.log_prob(x[:1], raw[:1]), rtol=1e-6, atol=1e-6)


def test_a_perfect_fit_has_a_floor():
    likelihood = OptimalGaussian(min_sigma=0.01).double()
    x = torch.ones(3, 4, dtype=torch.float64)
    assert likelihood.log_prob(x, x).isfinite().all()
    assert_close(likelihood.log_sigma.exp(), torch.tensor(0.01, dtype=torch.float64), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="min_sigma must be positive"):
        OptimalGaussian(0.0)


# ---------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.3).double()])
def test_draws_have_the_stated_mean(likelihood):
    raw = draw(1, 5)
    x = likelihood.sample(raw.expand(20_000, -1), torch.Generator().manual_seed(0))
    assert_close(x.mean(dim=0), likelihood.mean(raw)[0], rtol=0, atol=0.04)
    if likelihood.support == "binary":
        assert (x.abs() == 1).all()
    else:
        assert_close(x.std(dim=0), torch.full((5,), 0.3, dtype=torch.float64), rtol=0.03, atol=0)
