"""Priors in the plane: densities that integrate to one and fit their draws, and parts for labels."""

import math

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.networks.posteriors import Universal
from genlab.networks.priors import GaussianMixture, StandardNormal, SwissRoll

PRIORS = {
    "ten": lambda: GaussianMixture(2),
    "three": lambda: GaussianMixture(2, components=3, radius=0.9, radial_std=0.3, tangential_std=0.2),
    "roll": lambda: SwissRoll(2, classes=5, std=0.1),
    "wide roll": lambda: SwissRoll(2, radius=1.0, turns=1.0, std=0.3),
}


def draws(prior, n=200_000, y=None):
    eps = torch.randn(n, 2 + prior.extra, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return prior.draw(eps) if y is None else prior.draw_given(eps, torch.full((n,), y))


@pytest.mark.parametrize("name", PRIORS)
def test_the_density_is_that_of_the_draws(name):
    """It integrates to one, and to the moments and the probability of a disc that the draws have."""
    prior = PRIORS[name]().double()
    side = torch.linspace(-4, 4, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    mass = prior.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    assert mass.sum().item() == pytest.approx(1, abs=2e-3)
    z = draws(prior)
    for of in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z[:, 0] * z[:, 1], lambda z: z.square().sum(dim=1)):
        assert (mass * of(grid)).sum().item() == pytest.approx(of(z).mean().item(), abs=0.02)
    inside = [((p - torch.tensor([0.9, 0.3])).norm(dim=1) < 0.7).double() for p in (grid, z)]
    assert (mass * inside[0]).sum().item() == pytest.approx(inside[1].mean().item(), abs=0.01)


def test_the_mixtures_density_is_that_of_torch_distributions():
    prior = PRIORS["three"]().double()
    angle = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    centres = 0.9 * torch.stack([angle.cos(), angle.sin()], dim=1)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    cov = turn @ torch.diag(torch.tensor([0.09, 0.04], dtype=torch.float64)) @ turn.mT
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3, dtype=torch.float64)),
        torch.distributions.MultivariateNormal(centres, cov),
    )
    z = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_close(prior.log_prob(z), mixture.log_prob(z), rtol=1e-5, atol=1e-5)  # its centres are kept in float32


def test_the_rolls_density_of_one_point_is_that_of_a_mixture_of_its_points():
    """A mean over a hundred thousand points of the curve, at even probabilities: the integral by another rule."""
    prior = SwissRoll(2, std=0.2)
    z = torch.tensor([[0.0, 0.0], [1.2, -0.4], [2.0, 0.1], [-3.0, 0.0]], dtype=torch.float64)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    points = torch.stack([2 * u.sqrt() * f(4 * math.pi * u.sqrt()) for f in (torch.cos, torch.sin)], dim=1)
    each = -0.5 * (z[:, None] - points).square().sum(dim=2) / 0.04 - math.log(2 * math.pi * 0.04)
    assert_close(prior.log_prob(z), each.logsumexp(dim=1) - math.log(100_000), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ten", "three", "roll"])
def test_labels_choose_parts_of_equal_probability(name):
    """A missing label draws from the whole; all labels together are the whole, and each has its own place."""
    prior = PRIORS[name]().double()
    whole, unknown = draws(prior, 2000), draws(prior, 2000, -1)
    assert torch.equal(whole, unknown)
    parts = [draws(prior, 20_000, y) for y in range(prior.classes)]
    assert_close(torch.cat(parts).mean(dim=0), draws(prior).mean(dim=0), rtol=0, atol=0.03)
    if name == "roll":
        radii = [z.norm(dim=1).mean() for z in parts]
        assert all(a < b for a, b in zip(radii, radii[1:], strict=False))
        assert (parts[2].norm(dim=1) / 2).square().mean().item() == pytest.approx(0.5, abs=0.02)  # t^2 in [0.4, 0.6]
    else:
        angles = 2 * math.pi * torch.arange(prior.classes, dtype=torch.float64) / prior.classes
        means = torch.stack([z.mean(dim=0) for z in parts])
        radius = 1.4 if name == "ten" else 0.9
        assert_close(means, radius * torch.stack([angles.cos(), angles.sin()], dim=1), rtol=0, atol=0.02)
        along, across = parts[0].std(dim=0).tolist()
        wanted = (0.5, 0.1) if name == "ten" else (0.3, 0.2)
        assert (along, across) == pytest.approx(wanted, rel=0.03)


def test_their_variances_are_about_one():
    """As those of the standard normal prior, so that decoders and discriminators meet numbers of the same size."""
    for name in ("ten", "roll"):
        assert draws(PRIORS[name]().double()).var(dim=0).tolist() == pytest.approx([1, 1], abs=0.2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianMixture(3), "prior=gaussian_mixture lies in the plane, got model.latent_dim=3"),
        (lambda: SwissRoll(1), "prior=swiss_roll lies in the plane"),
        (lambda: GaussianMixture(2, components=0), "prior.components must be positive"),
        (lambda: SwissRoll(2, std=0), "prior.std must be positive"),
        (lambda: StandardNormal().draw_given(torch.zeros(2, 2), torch.zeros(2)), "has no classes"),
        (lambda: SwissRoll(2).draw_given(torch.zeros(2, 3), torch.zeros(2)), "has no classes"),
    ],
)
def test_they_refuse(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_universal_posterior_may_have_any_form():
    """Codes of one sample vary with the noise, its mean is the code of no noise, and its density is not known."""
    torch.manual_seed(0)
    family = Universal(2, 5, [7]).double()
    q = family(torch.randn(3, 5, dtype=torch.float64))
    eps = torch.randn(4, 3, 2, dtype=torch.float64)
    z, log_q = q.draw(eps)
    assert z.shape == (4, 3, 2) and log_q.shape == (4, 3) and log_q.isnan().all() and not family.density
    assert z.std(dim=0).min() > 0.01
    assert torch.equal(q.mean, q.draw(torch.zeros(3, 2, dtype=torch.float64))[0])
