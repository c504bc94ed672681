"""Autoregressive networks, flows, and the posteriors and priors made of them."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.networks.flows import MADE, InverseAutoregressiveFlow, zuko_flow
from genlab.networks.posteriors import IAF, Diagonal, DiagonalGaussian, ZukoFlow, log_standard_normal
from genlab.networks.priors import FlowPrior, StandardNormal, VampPrior, first_samples

Z, C, K, N = 4, 3, 5, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scrambled(module, seed=0):
    """All weights random: none of the zeros of a start."""
    torch.manual_seed(seed)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return module.double()


# ----------------------------------------------------------------------------------------------------------------- MADE


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("hidden", [[16], [7, 9], [2]])
def test_made_reads_the_dimensions_before_and_no_other(dim, reverse, hidden):
    made = scrambled(MADE(dim, C, hidden, outputs=2, reverse=reverse))
    x, c = draw(dim), draw(C, seed=1)
    for output in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda x, output=output: made(x, c)[output], x)
        if reverse:
            jacobian = jacobian.flip(0, 1)
        assert (jacobian.triu() == 0).all()
        if hidden == [16]:
            assert (jacobian.tril(-1).abs().sum() > 0) == (dim > 1)
    if min(hidden) >= dim:  # wide enough for a unit of each degree
        of_context = torch.autograd.functional.jacobian(lambda c: made(x, c)[0], c)
        assert (of_context.abs().sum(dim=1) > 0).all()  # the first dimension too


# ------------------------------------------------------------------------------------------------------------------ IAF


def test_the_log_determinant_is_that_of_the_jacobian():
    flow = scrambled(InverseAutoregressiveFlow(Z, C, steps=3, hidden=[16, 16]))
    for seed in range(4):
        z, h = draw(Z, seed=seed), draw(C, seed=9 + seed)
        _, log_det = flow(z, h)
        jacobian = torch.autograd.functional.jacobian(lambda z, h=h: flow(z, h)[0], z)
        assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=1e-10, atol=1e-12)


def test_one_step_is_triangular_and_the_order_turns():
    flow = scrambled(InverseAutoregressiveFlow(Z, C, steps=2, hidden=[16]))
    z, h = draw(Z), draw(C)
    m, s = flow.steps[0](z, h)
    sigma = torch.sigmoid(s + flow.bias)
    first = sigma * z + (1 - sigma) * m  # Eq. 14
    m, s = flow.steps[1](first, h)
    sigma = torch.sigmoid(s + flow.bias)
    assert_close(flow(z, h)[0], sigma * first + (1 - sigma) * m)
    for made, part in zip(flow.steps, ("lower", "upper"), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z, made=made: made(z, h)[0], z)
        assert ((jacobian.triu() if part == "lower" else jacobian.tril()) == 0).all() and jacobian.abs().sum() > 0


def test_it_starts_near_the_identity():
    """Every gate at sigmoid(bias), nothing added: z shrinks by one factor."""
    torch.manual_seed(0)
    flow = InverseAutoregressiveFlow(Z, C, steps=2, bias=20.0).double()
    for made in flow.steps:
        torch.nn.init.zeros_(made.last.bias)
        torch.nn.init.zeros_(made.last.weight)
    z = draw(N, Z)
    found, log_det = flow(z, draw(N, C))
    assert_close(found, z, rtol=0, atol=1e-6)
    assert_close(log_det, torch.zeros(N, dtype=torch.float64), rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- posteriors


FAMILIES = {
    "diagonal": lambda: Diagonal(Z, 2 * Z).double(),
    "iaf": lambda: scrambled(IAF(Z, 2 * Z + C, steps=2, hidden=[16])),
    "nsf": lambda: ZukoFlow(Z, 2 * Z + C, kind="nsf", hidden=[16]).double(),
    "maf": lambda: ZukoFlow(Z, 2 * Z + C, kind="maf", hidden=[16]).double(),
}


def need_zuko():
    pytest.importorskip("zuko", reason="the extra `flows` is not installed")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_draws_density_is_that_of_its_map(name):
    """log q(z) = log N(eps) - log |det dz/deps|, for each sample and draw; k != N != Z."""
    if name in ("nsf", "maf"):
        need_zuko()
    torch.manual_seed(0)
    family = FAMILIES[name]()
    features = 0.5 * draw(N, family.features, seed=2)
    eps = draw(K, N, Z, seed=3)
    z, log_q = family(features).draw(eps)
    assert z.shape == (K, N, Z) and log_q.shape == (K, N)
    for k, n in ((0, 0), (K - 1, 2), (1, N - 1)):
        alone = family(features[n : n + 1])
        jacobian = torch.autograd.functional.jacobian(lambda e, alone=alone: alone.draw(e[None])[0][0], eps[k, n])
        expected = log_standard_normal(eps[k, n]) - torch.linalg.slogdet(jacobian)[1]
        assert_close(log_q[k, n], expected, rtol=1e-7, atol=1e-8)
        assert_close(alone.draw(eps[k, n][None])[0][0], z[k, n], rtol=1e-7, atol=1e-8)
    assert_close(family(features).mean, family(features).draw(torch.zeros(N, Z).double())[0])


def test_a_diagonal_gaussian_is_that_of_torch():
    mu, logvar, z = draw(3, N, Z)
    q = DiagonalGaussian(mu, logvar)
    expected = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    assert_close(q.log_prob(z), expected.log_prob(z))
    drawn, log_q = q.draw(z)
    assert_close(log_q, expected.log_prob(drawn))
    assert_close(q.rsample(z), drawn, rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------------- priors


def no_posterior(_):
    raise AssertionError("it is not asked for")


def test_the_standard_normal():
    z = draw(K, N, Z)
    prior = StandardNormal()
    assert_close(prior.log_prob(z, no_posterior), Independent(Normal(0 * z, 1.0), 1).log_prob(z))
    assert prior.draw(z[0], no_posterior) is z[0] or torch.equal(prior.draw(z[0], no_posterior), z[0])


@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_a_flow_prior_draws_what_it_gives_density_to(kind):
    need_zuko()
    torch.manual_seed(1)
    prior = FlowPrior(2, kind=kind, hidden=[16]).double()
    eps = draw(N, 2)
    z = prior.draw(eps, no_posterior)
    for i in range(N):
        jacobian = torch.autograd.functional.jacobian(lambda e: prior.draw(e[None], no_posterior)[0], eps[i])
        expected = log_standard_normal(eps[i]) - torch.linalg.slogdet(jacobian)[1]
        assert_close(prior.log_prob(z[i], no_posterior), expected, rtol=1e-5, atol=1e-6)
    side = torch.linspace(-9, 9, 181, dtype=torch.float64)
    density = prior.log_prob(torch.cartesian_prod(side, side), no_posterior).exp()
    assert_close(density.sum() * (side[1] - side[0]) ** 2, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=2e-3)


def test_a_flow_prior_of_one_latent():
    need_zuko()
    torch.manual_seed(0)
    prior = FlowPrior(1).double()
    side = torch.linspace(-15, 15, 4001, dtype=torch.float64)[:, None]
    mass = prior.log_prob(side, no_posterior).exp().sum() * (side[1] - side[0])
    assert_close(mass, torch.ones(1, dtype=torch.float64), rtol=0, atol=1e-3)


def linear_posterior(u):
    return DiagonalGaussian(u.flatten(1), -0.5 * u.flatten(1).abs())


def test_the_vamp_prior_is_the_mean_of_its_posteriors():
    prior = VampPrior((Z,), components=3).double()
    prior.initialise(first_samples(iter([draw(2, Z, seed=4), draw(2, Z, seed=5)])))
    assert_close(prior.pseudo_inputs.detach(), torch.cat([draw(2, Z, seed=4), draw(2, Z, seed=5)])[:3])
    z = draw(K, N, Z)
    parts = [linear_posterior(u[None]).log_prob(z.unsqueeze(2))[..., 0].exp() for u in prior.pseudo_inputs.detach()]
    found = prior.log_prob(z, linear_posterior)
    assert found.shape == (K, N)
    assert_close(found.detach(), torch.stack(parts).mean(dim=0).log())
    found.sum().backward()
    assert prior.pseudo_inputs.grad.abs().min() > 0
    large = draw(1300, Z, seed=8)  # more rows than are taken at a time
    assert_close(prior.log_prob(large, linear_posterior)[700:701], prior.log_prob(large[700:701], linear_posterior))


def test_draws_of_the_vamp_prior():
    """Each component as often as the others, and each with its own mean and spread."""
    prior = VampPrior((1,), components=4).double()
    with torch.no_grad():
        prior.pseudo_inputs.copy_(torch.tensor([[-30.0], [-10.0], [10.0], [30.0]]))
    z = prior.draw(draw(20_000, 2), linear_posterior)
    for centre in (-30.0, -10.0, 10.0, 30.0):
        own = z[(z - centre).abs() < 10]
        assert abs(len(own) / len(z) - 0.25) < 0.015
        assert abs(own.std() / math.exp(-0.25 * abs(centre)) - 1) < 0.05


def test_one_pseudo_input_of_a_data_point_cancels_its_kl():
    """K = 1 and u = x: log q(z | x) - log p(z) = 0 for every z."""
    prior = VampPrior((Z,), components=1).double()
    x, eps = draw(1, Z), draw(K, 1, Z, seed=1)
    with torch.no_grad():
        prior.pseudo_inputs.copy_(x)
    z, log_q = linear_posterior(x).draw(eps)
    assert_close(log_q, prior.log_prob(z, linear_posterior).detach(), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zuko_flow("planar", 2, 0, 2, [8], "prior=maf"), "prior.kind must be one of maf, nsf"),
        (lambda: zuko_flow("maf", 2, 0, 0, [8], "prior=maf"), "prior.transforms must be at least 1"),
        (lambda: InverseAutoregressiveFlow(2, 2, steps=0), "posterior.steps"),
        (lambda: MADE(2, 2, hidden=[0]), "hidden must be a positive"),
        (lambda: Diagonal(3, 7), "must give 2 \\* latent_dim = 6 numbers, not 7"),
        (lambda: IAF(3, 6), "posterior.features must exceed"),
        (lambda: VampPrior((2,), 0), "prior.components"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_without_zuko(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zuko", None)
    with pytest.raises(UserError, match=r'prior=maf needs the package zuko: pip install -e ".*\[flows\]"'):
        FlowPrior(2)
