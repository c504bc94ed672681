"""Mixtures of bivariate Gaussians: densities against torch.distributions, and draws."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from genlab.losses.mixtures import LEAST_LOG_SIGMA, choose, draw_mixture, log_mixture, numbers_of


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normals(parameters):
    """The components, from the definition, and the weights' logits."""
    logits, mx, my, sx, sy, r = parameters.chunk(6, dim=-1)
    rho, sx, sy = 0.99 * r.tanh(), sx.exp(), sy.exp()
    covariance = torch.stack([torch.stack([sx**2, rho * sx * sy], -1), torch.stack([rho * sx * sy, sy**2], -1)], -2)
    return logits, MultivariateNormal(torch.stack([mx, my], dim=-1), covariance)


@pytest.mark.parametrize("components", [1, 5])
def test_the_density(components):
    parameters, points = draw(7, numbers_of(components)), draw(7, 2, seed=1)
    logits, gaussians = normals(parameters)
    if components == 1:
        assert_close(log_mixture(points, parameters), gaussians.log_prob(points.unsqueeze(1)).squeeze(1))
    mixture = MixtureSameFamily(Categorical(logits=logits), gaussians)
    assert_close(log_mixture(points, parameters), mixture.log_prob(points))


@pytest.mark.parametrize("components", [1, 3, 20])
def test_equal_components_are_one(components):
    """All numbers 0: log 2 pi + (x^2 + y^2) / 2 for any number of components."""
    points = draw(6, 4, 2)
    zeros = torch.zeros(6, 4, numbers_of(components), dtype=torch.float64)
    assert_close(-log_mixture(points, zeros), math.log(2 * math.pi) + points.square().sum(dim=-1) / 2)
    one = draw(6, 4, 6, seed=2)
    many = one.repeat_interleave(components, dim=-1)
    assert_close(log_mixture(points, many), log_mixture(points, one))


def test_data_on_a_line_have_a_finite_density():
    """With deviations and correlation driven to their limits, and with a gradient."""
    parameters = torch.tensor([0.0, 0, 0, -50, -50, 50], dtype=torch.float64, requires_grad=True)
    value = log_mixture(torch.zeros(2, dtype=torch.float64), parameters)
    assert_close(value.item(), -math.log(2 * math.pi) - 2 * LEAST_LOG_SIGMA - 0.5 * math.log(1 - 0.99**2))
    assert torch.autograd.grad(value, parameters)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_draws_have_the_moments(temperature):
    """Sharper weights and smaller variances at a low temperature."""
    parameters = draw(1, numbers_of(2), seed=3)
    n = 200_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    points = draw_mixture(parameters.expand(n, -1), u, draw(n, 2, seed=5), temperature)
    logits, gaussians = normals(parameters)
    weights = (logits[0] / temperature).softmax(dim=0)
    mean = weights @ gaussians.mean[0]
    apart = gaussians.mean[0] - mean
    covariance = torch.einsum("m,mij->ij", weights, temperature * gaussians.covariance_matrix[0])
    covariance = covariance + torch.einsum("m,mi,mj->ij", weights, apart, apart)
    assert_close(points.mean(dim=0), mean, rtol=0, atol=0.02)
    assert_close(points.T.cov(), covariance, rtol=0.02, atol=0.02)


def test_choices():
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log().expand(5, 3)
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.999999], dtype=torch.float64)
    assert choose(logits, u).tolist() == [0, 0, 1, 1, 2]
