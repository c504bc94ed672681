"""Discriminator rejection sampling and the calibrated ratio that it stands on."""

import logging
import math

import pytest
import torch
from scipy.stats import chisquare

from genlab.errors import UserError
from genlab.sampling.drs import DRS
from genlab.sampling.ratio import LogRatio, logistic_regression
from tests.sampling.toys import P, ThreePoints, small_gan, small_vae


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(**kwargs):
    """Plain rejection sampling on raw logits."""
    return DRS(gamma_percentile=None, gamma=0.0, epsilon=0.0, calibrate=False, **kwargs)


def test_three_points_accept_two_fifths_and_give_the_law_of_the_data():
    """q = (.2, .3, .5) against p = (.5, .3, .2): M = 2.5, so 1 / M are accepted, distributed as p."""
    sampler, model = exact(), ThreePoints()
    sampler.fit(model, rng=rng(1))
    assert sampler.maximum == pytest.approx(math.log(2.5), abs=1e-6)
    assert sampler.report["mean_ratio"] == pytest.approx(1, abs=0.03)
    x = sampler.sample(model, 20_000, rng=rng(2))
    assert x.shape == (20_000, 1)
    counts = torch.bincount(x[:, 0].long(), minlength=3).double()
    assert chisquare(counts.numpy(), (P * 20_000).numpy()).pvalue > 0.01
    assert sampler.report["acceptance"] == pytest.approx(0.4, abs=0.01)


def test_fitting_and_drawing_tell_how_far_they_are():
    """From their start to their end, for the bars of genlab-sample."""
    sampler, model = exact(burn_in=1000), ThreePoints()
    told = {}
    sampler.progress = lambda what, share: told.setdefault(what, []).append(share)
    sampler.fit(model, rng=rng(1))
    sampler.sample(model, 2000, rng=rng(2))
    for shares in (told["fitting"], told["drawing"]):
        assert len(shares) > 3 and shares == sorted(shares) and shares[0] < 0.3 and shares[-1] == 1


def test_without_epsilon_and_gamma_the_probability_is_the_ratio_to_the_maximum():
    sampler = exact()
    sampler.maximum = torch.tensor(3.0, dtype=torch.float64)
    ratios = torch.tensor([3.0, 2.9, 0.0, -5.0, -40.0], dtype=torch.float64)
    torch.testing.assert_close(sampler.accept_probability(ratios), (ratios - 3).exp())


def test_gamma_as_a_percentile_accepts_half_at_that_percentile():
    """sigmoid(F - gamma) is 1/2 where F is gamma; more is accepted of better samples."""
    sampler = DRS(gamma_percentile=80.0, calibrate=False)
    sampler.maximum = torch.tensor(5.0, dtype=torch.float64)
    ratios = torch.linspace(-4, 4, 101, dtype=torch.float64)
    probability = sampler.accept_probability(ratios)
    assert probability[80] == pytest.approx(0.5)
    assert (probability.diff() > 0).all()
    wider = DRS(gamma_percentile=50.0, calibrate=False)
    wider.maximum = sampler.maximum
    assert (wider.accept_probability(ratios) > probability).all()


def test_the_maximum_grows_while_drawing():
    """A burn-in of one draw seldom sees the largest ratio; drawing finds it and keeps it in the state."""
    sampler, model = exact(burn_in=1), ThreePoints()
    sampler.fit(model, rng=rng(3))
    sampler.maximum = torch.tensor(-9.0, dtype=torch.float64)
    sampler.sample(model, 100, rng=rng(4))
    assert sampler.state_dict()["maximum"] == pytest.approx(math.log(2.5), abs=1e-6)


def test_logistic_regression_finds_the_log_ratio():
    """Samples of N(1, 1) and N(0, 1): the log-ratio of the densities is x - 1/2."""
    real, drawn = torch.randn(200_000, generator=rng(5)) + 1, torch.randn(200_000, generator=rng(6))
    slope, offset = logistic_regression(real, drawn, ridge=0.0)
    assert slope == pytest.approx(1, abs=0.02) and offset == pytest.approx(-0.5, abs=0.02)
    # Other numbers of real than of drawn samples leave the ratio of the densities as it is.
    slope, offset = logistic_regression(real[:50_000], drawn, ridge=0.0)
    assert slope == pytest.approx(1, abs=0.02) and offset == pytest.approx(-0.5, abs=0.02)
    slope, offset = logistic_regression(torch.ones(50), -torch.ones(50))  # could be parted by any slope
    assert 1 < slope < 20 and offset == pytest.approx(0, abs=1e-6)
    assert logistic_regression(torch.ones(50), torch.ones(50)) == (0, 0)


def test_calibration_mends_stretched_logits():
    """Three times the log-ratio plus seven is brought back, and the mean ratio over the model's samples is 1."""
    sampler, model = DRS(gamma_percentile=None, epsilon=0.0), ThreePoints(slope=3.0, offset=7.0)
    data = torch.multinomial(P, 20_000, replacement=True, generator=rng(7))[:, None].float()
    sampler.fit(model, data, rng(8))
    assert sampler.report["slope"] == pytest.approx(1 / 3, abs=0.02)
    assert sampler.report["mean_ratio"] == pytest.approx(1, abs=0.04)
    x = sampler.sample(model, 5_000, rng=rng(9))
    share = torch.bincount(x[:, 0].long(), minlength=3) / 5_000
    torch.testing.assert_close(share.double(), P, atol=0.03, rtol=0)


def test_further_training_learns_what_the_discriminator_did_not_know():
    """An untrained discriminator tells nothing; its copy learns to, and leaves the model's own as it is."""
    model = small_gan()
    data = 2 * torch.randn(2_000, 2, generator=rng(10))  # around the drawn ones: no line parts them
    before = {k: v.clone() for k, v in model.state_dict().items()}
    raw = LogRatio(calibrate=True, d_steps=0, d_lr=1e-2, batch_size=64)
    raw.fit(model, data, rng(11))
    trained = LogRatio(calibrate=True, d_steps=150, d_lr=1e-2, batch_size=64)
    trained.fit(model, data, rng(11))
    assert trained.report["cross_entropy"] < 0.8 * raw.report["cross_entropy"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {name.split(".")[0] for name in trained.weights} == {"discriminator"}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_without_data_it_warns_and_says_how_little_it_accepts(caplog):
    model = small_gan()
    with caplog.at_level(logging.WARNING, "genlab"):
        DRS(burn_in=100).fit(model, None, rng())
        assert "as they are" in caplog.text
        caplog.clear()
        DRS(burn_in=100, calibrate=False, d_steps=0).fit(model, None, rng())
        assert not caplog.text
    sampler = exact(max_tries=5)
    sampler.fit(ThreePoints(), rng=rng())
    sampler.maximum = torch.tensor(30.0, dtype=torch.float64)
    with pytest.raises(UserError, match="sampler.gamma_percentile=80"):
        sampler.sample(ThreePoints(), 100, rng=rng())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DRS(gamma_percentile=101), "from 0 to 100"),
        (lambda: DRS(epsilon=0.0), "fixed gamma"),
        (lambda: DRS(burn_in=0), "burn_in"),
        (lambda: DRS(d_lr=0.0), "d_lr"),
        (lambda: DRS().fit(small_vae(), rng=rng()), "sampler=drs does not fit VAE: it has no discriminator"),
        (lambda: DRS().sample(small_gan(), 4), "must be fitted"),
        (lambda: DRS().fit(small_gan(), torch.zeros(3, 2)), "at least 20 real samples"),
        (lambda: DRS(d_steps=1).fit(ThreePoints(), torch.zeros(40, 1)), "no weights to train"),
        (lambda: exact().fit(ThreePoints(offset=math.inf), rng=rng()), "not finite"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(UserError, match=words) as refused:
        build()
    assert "\n" not in str(refused.value)
