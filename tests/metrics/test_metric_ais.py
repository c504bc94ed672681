"""Annealed importance sampling against marginals that are known, and where it is switched on."""

import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.cli import evaluate
from genlab.errors import UserError
from genlab.judging.judge import Judge
from genlab.judging.measure import known
from genlab.judging.records import rows
from genlab.losses.likelihoods import Bernoulli, Gaussian
from genlab.metrics import ais as module
from genlab.metrics.ais import ais, ais_scores, can_anneal, schedule
from genlab.metrics.likelihood import importance_bounds
from genlab.models.iwae import IWAE
from genlab.models.vae import VAE
from genlab.networks.posteriors import DiagonalGaussian
from genlab.networks.priors import StandardNormal
from genlab.runs import running, start
from tests.models.helpers import config, fit

SIGMA, LATENT, DIM, COUNT = 0.5, 2, 4, 12


class Shifted(StandardNormal):
    """N(m, diag s^2), so that a prior that is not standard is met."""

    standard = False

    def log_prob(self, z, posterior):
        return DiagonalGaussian(torch.full_like(z, 0.7), torch.full_like(z, 2 * math.log(1.5))).log_prob(z)

    def draw(self, eps, posterior):
        return 0.7 + 1.5 * eps


def linear_gaussian(prior=None):
    """x = W z + b + sigma eps, an encoder that knows nothing, samples and their exact log p(x), in float64."""
    generator = torch.Generator().manual_seed(0)
    w, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((DIM, LATENT), (DIM,)))
    decoder = nn.Linear(LATENT, DIM)
    model = VAE(nn.Linear(DIM, 2 * LATENT), decoder, Gaussian(SIGMA), LATENT, 2 * LATENT, prior=prior).double()
    with torch.no_grad():
        decoder.weight.copy_(w), decoder.bias.copy_(b)
    mean, scale = (0.7, 1.5) if prior else (0.0, 1.0)
    noise = torch.randn(COUNT, LATENT + DIM, generator=generator, dtype=torch.float64)
    x = (mean + scale * noise[:, :LATENT]) @ w.T + b + SIGMA * noise[:, LATENT:]
    covariance = scale**2 * w @ w.T + SIGMA**2 * torch.eye(DIM, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(b + mean * w.sum(dim=1), covariance)
    return model, x, marginal.log_prob(x)


@pytest.mark.parametrize("prior", [None, Shifted()], ids=["standard normal", "another prior"])
def test_a_linear_gaussian_decoder(prior):
    """Within 0.05 nats of log p(x) in the mean and 0.2 for each sample, whatever the encoder."""
    model, x, exact = linear_gaussian(prior)
    found = ais(model, x.split(6), steps=200, chains=300)
    assert found.log_p.dtype == torch.float64 and found.log_p.shape == found.ess.shape == (COUNT,)
    assert abs(found.log_p.mean() - exact.mean()) < 0.05
    assert (found.log_p - exact).abs().max() < 0.2
    assert 0.5 < found.acceptance.mean() < 0.8 and found.ess.min() > 80


def test_few_temperatures_bound_from_below():
    """Jensen: with hardly any annealing the estimate is too low by nats, and rises with the temperatures."""
    model, x, exact = linear_gaussian()
    gaps = [(exact - ais(model, [x], steps=steps, chains=4).log_p).mean().item() for steps in (1, 10, 200)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[2] < 0.4


def test_one_temperature_is_plain_importance_sampling_from_the_prior():
    model, x, _ = linear_gaussian()
    found = ais(model, [x], steps=1, chains=3, seed=5)
    seen = []
    draw = model.sample_prior

    def sample_prior(n, rng):
        seen.append(draw(n, rng))
        return seen[-1]

    model.sample_prior = sample_prior
    again = ais(model, [x], steps=1, chains=3, seed=5)
    assert_close(found.log_p, again.log_p, rtol=0, atol=0)
    z = seen[-1].view(3, COUNT, LATENT)  # after those of the tuning
    with torch.no_grad():
        log_p = torch.stack([model.likelihood.log_prob(x, model.decoder(part)) for part in z])
    assert_close(found.log_p, log_p.logsumexp(dim=0) - math.log(3))


def test_weights_are_unbiased():
    """The mean of exp(log w) is p(x) after few temperatures too, with steps that are far from well tuned."""
    model, x, exact = linear_gaussian()
    found = ais(model, [x[:1].expand(400, -1)], steps=3, chains=50)
    assert_close(found.log_p.logsumexp(dim=0) - math.log(400), exact[0], rtol=0, atol=0.1)


def test_two_stochastic_layers():
    """A linear model of two layers has a Gaussian marginal as well: all latents are annealed together."""
    torch.manual_seed(0)
    model = IWAE(
        nn.Linear(DIM, 6), nn.Linear(3, DIM), Gaussian(SIGMA), 3, upper_dim=2,
        upper_encoder=nn.Linear(3, 4), upper_decoder=nn.Linear(2, 6),
    ).double()  # fmt: skip
    with torch.no_grad():
        model.decoders[1].weight[3:].zero_()  # a variance that does not depend on z_2
    down, up = model.decoders
    w, v = down.weight.detach(), up.weight.detach()[:3]
    inner = v @ v.T + up.bias.detach()[3:].exp().diag()
    mean = down.bias.detach() + w @ up.bias.detach()[:3]
    marginal = torch.distributions.MultivariateNormal(mean, w @ inner @ w.T + SIGMA**2 * torch.eye(DIM).double())
    x = marginal.sample((COUNT,))
    assert model.sample_prior(7).shape == (7, 5)
    assert abs(ais(model, [x], steps=200, chains=100).log_p.mean() - marginal.log_prob(x).mean()) < 0.05


def test_chunks_batches_and_seeds():
    """The same again from the same seed; the global random stream, modes and gradients are left alone."""
    model, x, exact = linear_gaussian()
    model.train()
    state = torch.get_rng_state()
    first, again = (ais(model, [x], steps=30, chains=6) for _ in range(2))
    assert torch.equal(first.log_p, again.log_p) and torch.equal(state, torch.get_rng_state())
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    small = ais(model, [x], steps=30, chains=6, at_a_time=2 * COUNT)
    assert not torch.equal(small.log_p, first.log_p)
    assert_close(small.log_p.mean(), exact.mean(), rtol=0, atol=0.3)
    assert not torch.equal(ais(model, [x], steps=30, chains=6, seed=1).log_p, first.log_p)


def test_step_sizes_follow_each_sample():
    """A posterior that is a hundred times narrower gets shorter steps, in the same batch."""
    model, x, _ = linear_gaussian()
    sizes = {}
    for sigma in (0.5, 0.005):
        model.likelihood.log_sigma.fill_(math.log(sigma))
        with model.inference(gradients=True):
            pilot = module._Chains(model, x, 2, torch.Generator().manual_seed(0))
            sizes[sigma] = module._tuned(pilot, schedule(150).tolist())[-1]
    assert sizes[0.005].max() < 0.1 * sizes[0.5].min()


def test_the_schedule():
    beta = schedule(1000)
    assert beta[0] == 0 and beta[-1] == 1 and len(beta) == 1001 and (beta.diff() > 0).all()
    assert_close(beta + beta.flip(0), torch.ones_like(beta))
    assert beta.diff()[0] < 0.1 * beta.diff()[500]
    assert schedule(1).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"chains": 0}])
def test_mistakes(wrong):
    model, x, _ = linear_gaussian()
    with pytest.raises(UserError, match="at least 1"):
        ais(model, [x], **wrong)
    with pytest.raises(ValueError, match="samples"):
        ais(model, [])


def test_what_is_not_finite_is_rejected():
    """A likelihood that is NaN beyond a border: chains stay inside, and the estimate is finite."""
    model, x, _ = linear_gaussian()

    class Fenced(Gaussian):
        def log_prob(self, x, raw):
            return super().log_prob(x, torch.where(raw.abs() < 50, raw, raw * torch.nan))

    model.likelihood = Fenced(SIGMA).double()
    assert ais(model, [x * 10], steps=20, chains=2).log_p.isfinite().all()


# ------------------------------------------------------------------------------------------ where it is switched

VAE_ON_DIGITS = ["model=vae", "data=digits", "data.binarize=static", "network=mlp", "network.hidden=[16]",
                 "model.latent_dim=3", "metrics=likelihood", "metrics.iwae_samples=200"]  # fmt: skip


def test_it_agrees_with_the_importance_weighted_bound(tmp_path):
    """A trained VAE on digits: both bound the same log p(x), AIS without the encoder."""
    fitted = fit([*VAE_ON_DIGITS, "data.batch_size=64", "model.optimizer.lr=0.003"], 150, tmp_path)
    x = next(iter(fitted.data.batches("test", 20))).x
    annealed = ais(fitted.model, [x], steps=100, chains=8).log_p.mean()
    weighted = importance_bounds(fitted.model, [x], samples=2000).iwae.mean()
    assert abs(annealed - weighted) < 0.15


def test_the_judge_takes_it_on_test_data_alone(tmp_path):
    whole = config(VAE_ON_DIGITS, 2)
    whole["metrics"] |= {"ais_steps": 5, "ais_samples": 2, "num_samples": 20}
    parts = running.build(whole)
    scores = parts.judge.final(parts.model, parts.data)
    assert {"test/ais_5", "test/ais_5_se", "test/ais_ess", "test/ais_acceptance"} <= scores.keys()
    assert not any("ais" in name for name in parts.judge.validate(parts.model, parts.data))
    card = parts.judge.found.cards[parts.judge.found.group["ais_5"]]
    assert card["ais_steps"] == 5 and card["ais_samples"] == 2 and "HMC" in card["ais_transitions"]
    assert (card["support"], card["dequantised"]) == ("binary", "no")  # as on the card of the bounds
    assert "ais_steps" not in parts.judge.found.cards[parts.judge.found.group["iwae_200"]]
    told = dict(parts.judge.lines())
    assert " ± " in told["ais_5"] and "20 real, test" in told["ais_5"] and "(of 2, " in told["ais_ess"]
    assert parts.judge.mode("ais_5") == "max"
    with pytest.raises(UserError, match=r"metrics\.ais_steps"):
        Judge(["likelihood"], ais_steps=-1)


def test_evaluate_puts_it_into_the_record(tmp_path):
    start.train(config(VAE_ON_DIGITS[:-2], 2), tmp_path / "run")
    options = {"scores": ["likelihood"], "n": 20, "iwae_samples": 5, "ais_steps": 4, "ais_samples": 3}
    record = evaluate.evaluate_run(tmp_path / "run", options)
    assert record["cards"][record["group"]["ais_4"]]["ais_samples"] == 3
    assert record["about"]["ais_4"]["measure"] == "ais"
    assert math.isfinite(record["scores"]["ais_4"])
    assert json.loads((tmp_path / "run" / "scores" / "test-none-seed2020.json").read_text())["scores"]["ais_4"]
    assert any(record["about"][name]["title"].startswith("annealed") for name, *_ in rows(record))
    assert (
        "ais_4"
        not in evaluate.evaluate_run(tmp_path / "run", {**options, "ais_steps": 0, "out": tmp_path / "o"})["scores"]
    )


def test_models_without_continuous_latents_are_passed_over(tmp_path):
    tiny = ["model=gumbel", "data=digits", "data.binarize=static", "network=mlp", "network.hidden=[8]"]
    start.train(config(tiny, 1), tmp_path / "run")
    options = {"scores": ["likelihood"], "n": 20, "iwae_samples": 2, "ais_steps": 4}
    record = evaluate.evaluate_run(tmp_path / "run", options)
    assert not any(name.startswith("ais") for name in record["scores"])
    assert any("ais_steps is ignored" in note for note in record["notes"])


def test_names_and_directions():
    annealed, bounds = known()["ais"](), known()["likelihood"]()
    assert annealed.kind("ais_1000") == "ais" and annealed.kind("ais_ess") == "ais_ess"
    assert bounds.kind("iwae_50_se") == "iwae_50_se" and bounds.kind("iwae_50_se") not in bounds.about
    assert annealed.title("ais_1000") == "annealed estimate, nats, 1000 temperatures"
    assert annealed.direction("ais_1000") == "higher" and annealed.direction("ais_1000_se") is None
    assert ais_scores(ais(linear_gaussian()[0], [linear_gaussian()[1]], steps=2, chains=2)).card["n_real"] == COUNT
    assert can_anneal(linear_gaussian()[0]) and not can_anneal(nn.Linear(1, 1))
    assert Bernoulli.support == "binary"
