"""Sampling in latent space: the prior, truncation, and Langevin dynamics on a discriminator's energy."""

import math

import pytest
import torch

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.runs import running
from genlab.sampling.ddls import DDLS
from genlab.sampling.prior import Prior, Truncated
from tests.models.helpers import config
from tests.sampling.toys import Codes, Shifted, small_gan, small_vae


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_prior_is_the_models_own_way():
    model = small_gan()
    assert torch.equal(Prior().sample(model, 9, rng=rng(1)), model.sample(9, rng=rng(1)))
    assert not Prior().report and not Prior().state_dict()


@pytest.mark.parametrize("make", [small_gan, small_vae])
def test_no_truncation_is_the_prior(make):
    model = make()
    expected = model.sample(9, rng=rng(1))
    assert torch.equal(Truncated(psi=1.0).sample(model, 9, rng=rng(1)), expected)
    torch.testing.assert_close(Truncated(threshold=20.0).sample(model, 9, rng=rng(1)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.01, 0.5, 1.0, 2.0])
def test_truncated_latents_have_the_law_of_draws_that_are_taken_again(threshold):
    """A standard normal within [-t, t]: variance 1 - 2 t phi(t) / (2 Phi(t) - 1), and the quartile of that law."""
    z = Truncated(threshold=threshold).latents(Codes(4), 50_000, rng(2)).double()
    assert z.abs().max() <= threshold + 1e-6
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    mass = math.erf(threshold / math.sqrt(2))
    assert z.var().item() == pytest.approx(1 - 2 * threshold * density / mass, rel=0.02)
    assert z.mean().item() == pytest.approx(0, abs=0.01 * threshold)
    assert (z.abs() < threshold / 2).double().mean().item() == pytest.approx(
        math.erf(threshold / 2 / math.sqrt(2)) / mass, abs=0.01
    )


def test_psi_shrinks():
    z = Truncated(psi=0.5).latents(Codes(4), 10_000, rng(3))
    assert z.std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("metropolis", [False, True])
def test_langevin_dynamics_reach_the_analytic_gaussian(metropolis):
    """G = id, p0 = N(0, 1) and d = mu x - mu^2 / 2 make the energy of N(mu, 1)."""
    sampler, model = DDLS(steps=2000, step_size=0.01, metropolis=metropolis, calibrate=False), Shifted(1.0)
    sampler.fit(model)
    x = sampler.sample(model, 5000, rng=rng(4))
    assert x.mean().item() == pytest.approx(1, abs=0.05)
    assert x.var().item() == pytest.approx(1, abs=0.07)
    assert ("acceptance" in sampler.report) == metropolis
    if metropolis:
        assert 0.95 < sampler.report["acceptance"] <= 1


def test_the_correction_removes_the_bias_of_a_large_step():
    """On N(mu, 1) the uncorrected chain has the variance 1 / (1 - step / 4): 1.6 for a step of 1.5."""
    spread = {}
    for metropolis in (False, True):
        sampler, model = DDLS(steps=60, step_size=1.5, metropolis=metropolis, calibrate=False), Shifted(0.5)
        sampler.fit(model)
        spread[metropolis] = sampler.sample(model, 20_000, rng=rng(5)).var().item()
    assert spread[False] == pytest.approx(1.6, abs=0.06)
    assert spread[True] == pytest.approx(1, abs=0.04)


def test_the_gradient_is_that_of_the_trained_copy():
    """Finite differences in float64, with convolutions and a copy of the discriminator that differs from its own."""
    words = ["model=gan", "data=digits", "data.image_size=16", "network=dcgan", "network.width=8", "model.latent_dim=6"]
    model = running.build(config(words)).model.double()
    torch.manual_seed(0)
    sampler = DDLS(d_steps=10, d_lr=0.01, batch_size=32)
    sampler.fit(model, torch.randn(200, 1, 16, 16, dtype=torch.float64, generator=rng(1)).clamp(-1, 1), rng(2))
    z = torch.randn(4, 6, dtype=torch.float64, generator=rng(3))
    _, slope = sampler.energy(model, z)
    step = 1e-6
    for i in range(6):
        along = torch.zeros(6, dtype=torch.float64)
        along[i] = step
        rise = sampler.energy(model, z + along)[0] - sampler.energy(model, z - along)[0]
        torch.testing.assert_close(slope[:, i], rise / (2 * step), rtol=1e-5, atol=1e-7)
    own = sampler.ratio.weights
    assert own and any(not torch.equal(weight, dict(model.named_parameters())[name]) for name, weight in own.items())


def test_the_energy_and_its_gradient():
    """E(z) = z^2 / 2 - mu z + mu^2 / 2, so its gradient is z - mu."""
    sampler, model = DDLS(calibrate=False), Shifted(2.0)
    sampler.fit(model)
    z = torch.randn(7, 1, generator=rng(6))
    energy, slope = sampler.energy(model, z)
    torch.testing.assert_close(energy, (0.5 * (z - 2) ** 2)[:, 0].double())
    torch.testing.assert_close(slope, z - 2)


def test_langevin_dynamics_on_a_network_do_not_disturb_it():
    model = small_gan()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sampler = DDLS(steps=5, d_steps=3, batch_size=16)
    sampler.fit(model, torch.randn(50, 2, generator=rng(7)), rng(8))
    x = sampler.sample(model, 6, rng=rng(9))
    assert x.shape == (6, 2) and not x.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training and sampler.report["gradient_norm"] > 0


class Uniform(Codes):
    latent_prior = "uniform"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Truncated(), "either sampler.threshold or sampler.psi"),
        (lambda: Truncated(threshold=1.0, psi=0.5), "either sampler.threshold or sampler.psi"),
        (lambda: Truncated(threshold=0.0), "above 0"),
        (lambda: Truncated(psi=1.5), "from 0 to 1"),
        (lambda: Truncated(psi=0.5).sample(Uniform(), 3), "those of Uniform are uniform"),
        (lambda: Truncated(psi=0.5).sample(small_gan(), 3, given=Batch({"y": torch.zeros(3)})), "takes no y"),
        (lambda: Prior().sample(small_gan(), 0), "at least one"),
        (lambda: DDLS(steps=0), "steps"),
        (lambda: DDLS(step_size=0.0), "step_size"),
        (lambda: DDLS().fit(Codes()), "sampler=ddls does not fit Codes: it has no discriminator"),
        (lambda: DDLS().sample(Shifted(1.0), 3), "must be fitted"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(UserError, match=words) as refused:
        build()
    assert "\n" not in str(refused.value)


def test_a_chain_that_runs_away_is_named():
    sampler, model = DDLS(steps=500, step_size=50.0, calibrate=False), Shifted(1.0)
    sampler.fit(model)
    with pytest.raises(UserError, match="sampler.metropolis=true"):
        sampler.sample(model, 4, rng=rng())
