"""Divergences by a classifier: trained ones against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.losses.adversarial import NonSaturating
from genlab.losses.density_ratio import DensityRatio, forward_kl, ratio_loss, reverse_kl, synthetic_likelihood

N = 40_000


def normal(seed, *size):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(features, p, q):
    """The best logistic classifier on these features of draws of p and q: a function to logits."""
    weights = torch.zeros(features(p[:1]).shape[1], dtype=torch.float64, requires_grad=True)
    of_p, of_q = features(p), features(q)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = ratio_loss(of_p @ weights, of_q @ weights)
        value.backward()
        return value

    optimizer.step(loss)
    return lambda x: (features(x) @ weights).detach()


def quadratic(x):
    """1, x and all products of two entries."""
    pairs = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i + 1)]
    return torch.cat([torch.ones_like(x[:, :1]), x, torch.stack(pairs, dim=1)], dim=1)


@pytest.mark.parametrize(("mean", "std"), [(1.5, 1.0), (0.0, 0.5), (-1.0, 0.6)])
def test_the_kl_of_two_gaussians_within_five_percent(mean, std):
    """Of p = N(mean, std^2) and q = N(0, 1), both ways, on fresh draws."""
    p, q = mean + std * normal(0, N, 1), normal(1, N, 1)
    logit = trained(quadratic, p, q)
    fresh_p, fresh_q = mean + std * normal(2, N, 1), normal(3, N, 1)
    forward = 0.5 * (std**2 + mean**2 - 1 - math.log(std**2))
    backward = 0.5 * ((1 + mean**2) / std**2 - 1 + math.log(std**2))
    assert forward_kl(logit(fresh_p)).item() == pytest.approx(forward, rel=0.05)
    assert reverse_kl(logit(fresh_q)).item() == pytest.approx(backward, rel=0.05)
    assert forward_kl(logit(fresh_q)) < 0 < forward  # which side is looked at matters


def test_the_logit_of_two_shifted_gaussians_is_a_line():
    """log N(x; m, 1) / N(x; 0, 1) = m x - m^2 / 2."""
    logit = trained(lambda x: torch.cat([torch.ones_like(x), x], dim=1), 1.5 + normal(0, N, 1), normal(1, N, 1))
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert_close(logit(x), torch.tensor([-1.125, 0.375], dtype=torch.float64), rtol=0, atol=0.03)


def test_the_kl_to_the_prior_of_pairs_within_five_percent():
    """AVB's T: (x, z ~ N(0.8 x, 0.36)) against (x, z ~ N(0, 1)), x ~ N(0, 1), has mean E_x KL(q(z | x) || p)."""

    def pairs(seed):
        x = normal(seed, N, 1)
        return torch.cat([x, 0.8 * x + 0.6 * normal(seed + 1, N, 1)], dim=1)

    x = normal(2, N, 1)
    t = trained(quadratic, pairs(0), torch.cat([x, normal(3, N, 1)], dim=1))
    exact = 0.5 * (0.8**2 + 0.36 - 1 - math.log(0.36))
    assert forward_kl(t(pairs(4))).item() == pytest.approx(exact, rel=0.05)
    joint = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    log_q = -0.5 * (-1.0 - 0.4) ** 2 / 0.36 - 0.5 * math.log(0.36)
    assert t(joint).item() == pytest.approx(log_q + 0.5, abs=0.1)


def test_r_is_minus_the_logit():
    logits = torch.linspace(-30, 30, 13, dtype=torch.float64)
    assert_close(synthetic_likelihood(logits), -F.logsigmoid(logits) + F.logsigmoid(-logits))
    assert_close(reverse_kl(logits[3:]), -logits[3:].mean())


def test_the_loss_of_a_gan():
    """The discriminator is that of the plain GAN, the generator's slope is the same everywhere."""
    real, fake = normal(0, 7), normal(1, 5).requires_grad_()
    loss = DensityRatio()
    assert_close(loss.discriminator(real, fake), ratio_loss(real, fake))
    assert_close(loss.discriminator(real, fake), NonSaturating().discriminator(real, fake))
    (slope,) = torch.autograd.grad(loss.generator(fake), fake)
    assert_close(slope, torch.full_like(fake, -1 / 5))
