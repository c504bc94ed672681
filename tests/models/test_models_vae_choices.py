"""The VAE's choices of likelihood, prior, posterior and weight of the KL: each trains, resumes, and is what it says."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.judging.judge import Judge
from genlab.losses.divergences import kl_standard_normal_terms
from genlab.metrics.likelihood import importance_bounds
from genlab.networks.posteriors import log_standard_normal
from tests.models.helpers import Memory, assert_moves, fit, moved

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["model=vae", "data=ring", "network.hidden=[16]", "likelihood=gaussian", "model.latent_dim=3"]
DIGITS = ["model=vae", "data=digits", "network=mlp", "network.hidden=[16]", "model.latent_dim=3"]
CHOICES = {
    "vamp": [*RING, "prior=vamp", "prior.components=5"],
    "maf": [*RING, "prior=maf", "prior.hidden=[8]"],
    "iaf": [*RING, "posterior=iaf", "posterior.hidden=[8]"],
    "iaf and maf": [*RING, "posterior=iaf", "posterior.hidden=[8]", "prior=maf", "prior.hidden=[8]"],
    "flow": [*RING, "posterior=flow", "posterior.hidden=[8]"],
    "learned": [*RING, "likelihood.learned=true"],
    "optimal": [*RING, "likelihood=optimal_gaussian"],
    "logistic": [*DIGITS, "likelihood=logistic_mixture", "likelihood.components=2"],
    "vamp of images": [*DIGITS, "prior=vamp", "prior.components=5"],
}


@pytest.fixture(autouse=True)
def _zuko(request):
    """Parts that stand on zuko are left out where it is not installed."""
    values = getattr(getattr(request.node, "callspec", None), "params", {}).values()
    if any(value in ("maf", "iaf and maf", "flow") for value in values if isinstance(value, str)):
        pytest.importorskip("zuko", reason="the extra `flows` is not installed")


@pytest.mark.parametrize("name", CHOICES)
def test_all_that_is_learned_moves(name, tmp_path):
    """One player with the parameters of every part; none is left behind."""
    assert_moves([*CHOICES[name], "model.optimizer.lr=0.1"], ["vae"] * 3, 3, tmp_path)


@pytest.mark.parametrize("name", CHOICES)
def test_parts_agree_with_one_another(name, tmp_path):
    """Shapes of all capabilities; `objective` has log p(x, z) - log q(z | x) of its draws but for its exact part."""
    model = fit(CHOICES[name], 3, tmp_path).model
    x = next(iter(model.trainer.datamodule.batches("val", 7))).x
    rng = torch.Generator().manual_seed
    z, log_q = model.sample_posterior(x, 4, rng(0))
    assert z.shape == (4, 7, 3) and log_q.shape == (4, 7)
    assert model.sample(5, rng=rng(1)).shape == (5, *x.shape[1:])
    assert torch.equal(model.sample(5, rng=rng(1)), model.sample(5, rng=rng(1)))
    assert model.encode(x).shape == (7, 3) and model.reconstruct(x).shape == x.shape
    with model.inference():
        terms = model.objective(x, rng(2))
        drawn, one = model.sample_posterior(x, 1, rng(2))
        elbo = (model.log_joint(x, drawn[0]) - one[0]).mean()
        q = model.posterior(x)
        base = getattr(q, "base", q)
        z_0, log_q_0 = base.draw(model.randn(7, 3, rng=rng(2)))
        chance = log_q_0 - log_standard_normal(z_0) - kl_standard_normal_terms(base.mu, base.logvar).sum(dim=1)
    assert_close(terms["elbo"], elbo + chance.mean(), rtol=1e-4, atol=1e-3)
    assert_close(terms["elbo"], -(terms["recon"] + terms["kl"]))
    bounds = importance_bounds(model, [x], samples=50)
    assert bounds.iwae.mean() > bounds.elbo.mean()
    assert_close(bounds.elbo, bounds.recon - bounds.kl)


def test_a_posterior_of_the_vamp_prior_needs_a_density(tmp_path):
    with pytest.raises(UserError, match="prior=vamp needs posterior=diagonal"):
        fit([*RING, "prior=vamp", "posterior=iaf"], 1, tmp_path)


def test_between_gaussians_nothing_of_the_kl_is_left_to_the_draw(tmp_path):
    """The same posterior and prior, once with the closed form and once as if the prior were none to have one."""
    model = fit(RING, 5, tmp_path).model.double().eval()
    x = 2 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = model.posterior(x)
    model.prior.standard = False
    kl = model.draw(x, torch.Generator().manual_seed(0))[1]
    assert_close(kl.squeeze(1), kl_standard_normal_terms(q.mu, q.logvar).sum(dim=1))


@pytest.mark.parametrize("name", ["vamp", "maf", "iaf", "iaf and maf", "flow"])
def test_an_estimated_kl_has_the_mean_of_its_draws_and_less_noise(name, tmp_path):
    """E[log q(z) - log p(z)] over other draws, within four standard errors; and a smaller variance."""
    model = fit(CHOICES[name], 5, tmp_path).model.double().eval()
    x = 2 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n, rng = 1000, torch.Generator().manual_seed(1)
    with torch.no_grad():
        kl = torch.stack([model.draw(x, rng)[1].squeeze(1) for _ in range(n)])
        z, log_q = model.sample_posterior(x, n, rng)
        plain = log_q - model.log_prior(z.flatten(0, 1)).unflatten(0, (n, 4))
    error = ((kl.var(dim=0) + plain.var(dim=0)) / n).sqrt()
    assert ((kl.mean(dim=0) - plain.mean(dim=0)).abs() < 4 * error).all()
    assert (kl.var(dim=0) < plain.var(dim=0)).all()


# ------------------------------------------------------------------------------------------------- the weight of the KL


def curves(overrides, steps, folder, **kwargs):
    memory = Memory()
    fit([*overrides, "trainer.log_every_n_steps=1"], steps, folder, trainer={"logger": [memory]}, **kwargs)
    return {name.removeprefix("train/"): values for name, values in memory.curves.items()}


@pytest.mark.parametrize(
    ("kl", "weigh"),
    [
        (["kl=warm_up", "kl.steps=4"], lambda kl, t: min(1, t / 4) * kl),
        (["kl=cyclical", "kl.period=3", "kl.rising=1"], lambda kl, t: t % 3 / 3 * kl),
        (["kl=capacity", "kl.nats=8", "kl.steps=4"], lambda kl, t: abs(kl - 8 * min(1, t / 4))),
    ],
)
def test_the_schedule_follows_the_iteration(kl, weigh, tmp_path):
    """loss = recon + beta (what the schedule makes of the KL), iteration by iteration; the ELBO stays the ELBO."""
    found = curves([*RING, *kl, "model.kl_weight=3"], 6, tmp_path)
    for step in range(1, 7):
        loss, recon, one, elbo = (found[name][step] for name in ("loss", "recon", "kl", "elbo"))
        assert loss == pytest.approx(recon + 3 * weigh(one, step - 1), rel=1e-5, abs=1e-5)
        assert elbo == pytest.approx(-(recon + one), rel=1e-5, abs=1e-5)


def test_a_schedule_goes_on_after_a_resume(tmp_path):
    """3 + 3 iterations are 6, bit for bit, in the middle of a warm-up; it would not if it began anew."""
    overrides = [*RING, "kl=warm_up", "kl.steps=5", "prior=vamp", "prior.components=4"]
    whole = fit(overrides, 6, tmp_path / "whole")
    fit(overrides, 3, tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = fit(overrides, 6, tmp_path / "on", resume=last)
    assert moved(whole.model.state_dict(), resumed.model.state_dict()) == set()
    fresh = fit(overrides, 6, tmp_path / "other", before=lambda m: m.load_state_dict(torch.load(last)["state_dict"]))
    assert moved(whole.model.state_dict(), fresh.model.state_dict()) != set()


def test_free_bits_keep_latents_in_use(tmp_path):
    """A decoder that needs no latent lets the KL go to nothing; with free bits it stays at the floor."""
    common = [*DIGITS, "model.kl_weight=20", "model.optimizer.lr=0.003"]
    plain = curves(common, 150, tmp_path / "plain")
    free = curves([*common, "kl=free_bits", "kl.nats=1"], 150, tmp_path / "free")
    assert plain["kl"][150] < 0.1
    assert 0.5 < free["kl"][150] < 4  # at most a nat for each of three latents is free


def test_validation_has_the_weights_of_training(tmp_path):
    """`objective` under `inference`, on the training batch: the same loss as training recorded, EMA aside."""
    overrides = [*RING, "kl=warm_up", "kl.steps=10", "model.kl_weight=4", "ema.decay=0"]
    fitted = fit(overrides, 5, tmp_path)
    judge = Judge(["objective"], num_samples=40, batch_size=16)
    scores = judge.validate(fitted.model, fitted.data)
    recon, kl = scores["val/recon"], scores["val/kl"]
    assert scores["val/loss"] == pytest.approx(recon + 4 * 0.5 * kl, rel=1e-5)  # iteration 5 of 10
    assert scores["val/elbo"] == pytest.approx(-(recon + kl), rel=1e-5)
    assert judge.mode("loss") == "min" and judge.mode("elbo") == judge.mode("bound") == "max"
    both = Judge(["objective", "likelihood"], num_samples=40, iwae_samples=100)
    assert not any("iwae" in name for name in both.validate(fitted.model, fitted.data))
    final = both.final(fitted.model, fitted.data)
    assert final["test/iwae_100"] > final["test/elbo"] and 0 <= final["test/active_units"] <= 3


@pytest.mark.parametrize(("binarize", "named"), [("none", "objective"), ("static", "elbo")])
def test_grey_values_under_a_bernoulli_have_no_likelihood(binarize, named, tmp_path):
    fitted = fit([*DIGITS, f"data.binarize={binarize}"], 2, tmp_path)
    judge = Judge(["objective", "likelihood"], num_samples=30, iwae_samples=5)
    for scores in (judge.validate(fitted.model, fitted.data), judge.final(fitted.model, fitted.data)):
        bounds = {n.partition("/")[2].partition("_")[0] for n in scores} & {"elbo", "objective", "iwae", "bits"}
        assert bounds <= ({"objective"} if named == "objective" else {"elbo", "iwae", "bits"}) and bounds
    assert {name for name, _ in judge.lines()} >= {named, "loss"}


# ------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("name", ["vamp", "maf", "iaf", "flow", "learned", "optimal"])
def test_it_learns(name, tmp_path):
    """On the ring, in a plane: the density of eight modes against that of one Gaussian (-4.2 nats)."""
    overrides = [*CHOICES[name], "network.hidden=[64]", "likelihood.sigma=0.3", "data.batch_size=128"]
    if name in ("learned", "optimal"):
        overrides = [o for o in overrides if not o.startswith("likelihood.sigma")] + ["model.optimizer.lr=0.01"]
    fitted = fit(overrides, 400, tmp_path)
    x = torch.cat([b.x for b in fitted.data.batches("val", 200, limit=200)])
    assert importance_bounds(fitted.model, [x], samples=50).iwae.mean() > -3.6


# ----------------------------------------------------------------------------------------------------- numerical safety


@pytest.mark.parametrize("name", ["vamp of images", "logistic", "maf", "iaf", "optimal", "plain"])
@pytest.mark.parametrize("what", ["constant image", "batch of one", "one latent", "512 latents", "bf16"])
def test_extremes_train_without_nan(name, what, tmp_path):
    images = name in ("vamp of images", "logistic", "plain")
    chosen = DIGITS if name == "plain" else CHOICES[name]
    overrides = {
        "constant image": ["data.limit_train=1"],
        "batch of one": ["data.batch_size=1"],
        "one latent": ["model.latent_dim=1"],
        "512 latents": ["model.latent_dim=512"],
        "bf16": [],
    }[what]
    trainer = {"precision": "bf16-mixed"} if what == "bf16" else {}
    lr = "model.optimizer.lr=0.01" if images else "model.optimizer.lr=0.003"
    fitted = fit([*chosen, *overrides, lr], 25, tmp_path, trainer=trainer)  # a NaN would stop it at the checkpoint
    assert all(p.isfinite().all() for p in fitted.model.parameters())
    assert fitted.model.sample(2, rng=torch.Generator().manual_seed(0)).isfinite().all()
