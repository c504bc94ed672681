"""Densities fitted to codes: mixtures and flows."""

import math
import sys

import pytest
import torch

from genlab.errors import UserError
from genlab.sampling.latent import GMM, Flow, gaussian_log_prob
from tests.sampling.toys import Codes, small_gan, small_vae


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def two_modes(n, seed=0):
    """Codes [n, 2] near (-2, 0) with weight 0.3 and near (2, 0): standard deviations 0.3 and 0.5."""
    g = rng(seed)
    right = torch.rand(n, generator=g) < 0.7
    eps = torch.randn(n, 2, generator=g)
    return torch.where(right[:, None], torch.tensor([2.0, 0.0]) + 0.5 * eps, torch.tensor([-2.0, 0.0]) + 0.3 * eps)


def test_the_mixture_is_recovered():
    sampler, model = GMM(k=2), Codes()
    sampler.fit(model, two_modes(5000), rng(1))
    order = sampler.means[:, 0].argsort()
    torch.testing.assert_close(sampler.weights[order], torch.tensor([0.3, 0.7]).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(
        sampler.means[order], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double(), atol=0.03, rtol=0
    )
    covariances = sampler.scales @ sampler.scales.mT
    expected = torch.stack((0.09 * torch.eye(2), 0.25 * torch.eye(2))).double()
    torch.testing.assert_close(covariances[order], expected, atol=0.02, rtol=0)
    x = sampler.sample(model, 5000, rng=rng(2))
    left = x[:, 0] < 0
    assert left.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert x[left].std(dim=0).tolist() == pytest.approx([0.3, 0.3], abs=0.03)
    assert x.dtype == torch.float32


def test_the_density_of_a_mixture_is_that_of_torch_distributions():
    sampler = GMM(k=2)
    sampler.fit(Codes(), two_modes(500), rng(1))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(sampler.weights),
        torch.distributions.MultivariateNormal(sampler.means, scale_tril=sampler.scales),
    )
    x = two_modes(20, seed=3)
    torch.testing.assert_close(sampler.log_prob(x), mixture.log_prob(x.double()))


def test_one_component_is_the_gaussian():
    sampler = GMM(k=1)
    sampler.fit(Codes(), two_modes(500), rng(1))
    assert sampler.report["log_likelihood"] == pytest.approx(sampler.report["log_likelihood_gaussian"], abs=1e-3)


def test_the_reference_gaussian_has_its_closed_form():
    """For standard normal codes the mean log density is -(Z / 2) (log 2 pi + 1)."""
    value = gaussian_log_prob(
        torch.randn(100_000, 3, generator=rng(3)).double(), torch.randn(100_000, 3, generator=rng(4)).double()
    )
    assert value.mean().item() == pytest.approx(-1.5 * (math.log(2 * math.pi) + 1), abs=0.02)


@pytest.mark.parametrize("kind", ["nsf", "maf"])
def test_the_flow_beats_a_gaussian_on_two_modes(kind):
    pytest.importorskip("zuko", reason="the extra `flows` is not installed")
    sampler, model = Flow(kind=kind, hidden=[32, 32], steps=400, lr=3e-3), Codes()
    sampler.fit(model, two_modes(4000), rng(5))
    gain = sampler.report["log_likelihood"] - sampler.report["log_likelihood_gaussian"]
    assert gain > 0.5  # the truth gains 0.99 nats
    x = sampler.sample(model, 4000, rng=rng(6))
    assert (x[:, 0] < 0).double().mean().item() == pytest.approx(0.3, abs=0.05)


def test_the_flows_density_is_normalised_in_the_units_of_the_codes():
    """A sum over a fine grid of the plane is 1: the standardisation's Jacobian is counted."""
    pytest.importorskip("zuko", reason="the extra `flows` is not installed")
    sampler = Flow(hidden=[16], transforms=1, steps=30)
    sampler.fit(Codes(), 3 * two_modes(500), rng(7))
    line = torch.arange(-40, 40, 0.1)
    total = sampler.log_prob(torch.cartesian_prod(line, line)).exp().sum() * 0.01
    assert total.item() == pytest.approx(1, abs=0.01)


def test_a_missing_zuko_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(UserError, match=r'pip install -e ".*\[flows\]"'):
        Flow()


@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("name", ["gmm", "flow"])
def test_codes_of_any_length(name, dim):
    if name == "flow":
        pytest.importorskip("zuko", reason="the extra `flows` is not installed")
    sampler = GMM(k=2) if name == "gmm" else Flow(hidden=[8], steps=5, transforms=1)
    model = Codes(dim)
    sampler.fit(model, torch.randn(200, dim, generator=rng(8)), rng(9))
    assert sampler.sample(model, 7, rng=rng(10)).shape == (7, dim)


class Images(Codes):
    """Its codes are maps."""

    def encode(self, x):
        return x[:, None, None]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GMM(k=0), "sampler.k must be at least 1"),
        (lambda: GMM(k=50).fit(Codes(), two_modes(20)), "Raise sampler.data_samples"),
        (lambda: GMM().fit(Codes()), "there are none"),
        (lambda: GMM().fit(small_gan(), two_modes(50)), "sampler=gmm does not fit GAN: it has no encoder"),
        (lambda: GMM().fit(Images(), two_modes(50)), r"\[N, 1, 1, 2\]"),
        (lambda: GMM().fit(Codes(), two_modes(50) / 0), "not finite"),
        (lambda: GMM().sample(small_vae(), 3), "must be fitted"),
        (lambda: Flow(kind="glow"), "nsf or maf"),  # said before zuko is asked for
        (lambda: Flow(steps=0), "sampler.steps"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(UserError, match=words) as refused:
        build()
    assert "\n" not in str(refused.value)
