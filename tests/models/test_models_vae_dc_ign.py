"""DC-IGN: what is clamped and what gets which gradient, by hand; units that come to stand for the factors."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import genlab
from genlab.batch import Batch
from genlab.cli.evaluate import evaluate_run
from genlab.cli.visualize import visualize
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.losses.likelihoods import Bernoulli
from genlab.metrics.factors import factor_scores
from genlab.models.dc_ign import DCIGN
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, weights
from tests.models.helpers import fit

pytestmark = pytest.mark.usefixtures("one_thread")
N, Z, SCENE = 7, 5, 3  # all unequal: an axis taken for another shows
SMALL = ["model=dc_ign", "data.image_size=8", "data.num_train=64", "data.batch_size=16", "network.hidden=[16]"]
QUIET = ["metrics=none", "callbacks=none", "logger=none", "trainer=cpu", "threads=1"]


class Codes(nn.Module):
    """An encoder whose output is a parameter: gradients of single samples' codes can be looked at."""

    def __init__(self):
        super().__init__()
        self.out = nn.Parameter(torch.randn(N, 2 * Z, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.out


def model(**arguments):
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(Z, 8), nn.Tanh(), nn.Linear(8, 6))
    made = DCIGN(Codes(), decoder, Bernoulli(), Z, 2 * Z, scene_units=SCENE, **arguments)
    return made.double()


def images():
    uniform = torch.rand(N, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return 2 * (uniform < 0.5).double() - 1


def rng():
    return torch.Generator().manual_seed(3)


def gradients(made, term, group):
    """Of a term by means and by log-variances, [N, Z] each."""
    terms = made.clamped_objective(images(), torch.tensor(group), rng())
    (grad,) = torch.autograd.grad(terms[term], made.encoder.out)
    return grad.chunk(2, dim=1)


# -------------------------------------------------------------------------------------------------- clamped minibatches


@pytest.mark.parametrize(("group", "active"), [(0, [0]), (2, [2]), (3, [3, 4]), (6, [3, 4])])
def test_a_known_factor_has_its_unit_and_all_else_the_others(group, active):
    assert model().active(torch.tensor(group)).nonzero().flatten().tolist() == active


@pytest.mark.parametrize("group", [0, 2, 3])
def test_clamped_latents_are_the_batchs_means_in_both_numbers(group):
    made = model()
    active = made.active(torch.tensor(group))
    q = made.posterior(images())
    shown, mean = made.clamped(q, active)
    for own, clamped, middle in zip(q, shown, mean, strict=True):
        assert_close(middle, own.mean(dim=0))
        assert torch.equal(clamped[:, active], own[:, active])
        assert torch.equal(clamped[:, ~active], middle[~active].expand(N, -1))


@pytest.mark.parametrize("group", [0, 2, 3])
def test_reconstruction_reaches_only_active_latents(group):
    made = model()
    active = made.active(torch.tensor(group))
    for grad in (*gradients(made, "recon", group), *gradients(made, "kl", group)):
        assert torch.equal(grad[:, ~active], torch.zeros(N, int((~active).sum())).double())
        assert (grad[:, active] != 0).all()


@pytest.mark.parametrize("group", [0, 2, 3])
def test_the_pull_is_the_papers_gradient(group):
    made = model(invariance=0.7)
    active = made.active(torch.tensor(group))
    mu = made.encoder.out[:, :Z].detach()
    of_mu, of_logvar = gradients(made, "pull", group)
    assert_close(of_mu, torch.where(active, 0.0, 0.7 * (mu - mu.mean(dim=0)) / N))
    assert torch.equal(of_logvar, torch.zeros(N, Z).double())


def test_the_terms_make_the_loss_and_clamped_latents_pay_no_kl():
    made = model(kl_weight=0.3, invariance=2.0)
    terms = made.clamped_objective(images(), torch.tensor(1), rng())
    q = made.posterior(images())
    kl = 0.5 * (q.mu[:, 1].square() + q.logvar[:, 1].exp() - 1 - q.logvar[:, 1])
    assert_close(terms["kl"], kl.mean())
    assert_close(terms["loss"], terms["recon"] + 0.3 * terms["kl"] + terms["pull"])
    variance = q.mu.var(dim=0, correction=0)
    assert_close(terms["active_variance"], variance[1])
    assert_close(terms["clamped_variance"], variance[[0, 2, 3, 4]].mean())
    assert_close(terms["pull"], variance[[0, 2, 3, 4]].sum())


def test_unclamped_and_judged_it_is_the_vae():
    made = model(clamp=False)
    terms = made.objective(images(), rng())
    assert terms.keys() == {"loss", "recon", "kl", "elbo"} and not made.needs
    assert_close(terms["loss"], -terms["elbo"])


# ------------------------------------------------------------------------------------------------- it comes out as told


def blobs(places, side=8):
    """Gaussian blobs, 8 x 8, at places [N, 2] in [1, 6]^2; in [-1, 1]."""
    line = torch.arange(side, dtype=torch.float32)
    across, down = ((line - places[:, k, None]).square() for k in (0, 1))
    return 2 * (-(across[:, None, :] + down[:, :, None]) / 2).exp() - 1


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_units_come_to_stand_for_the_factors(seed):
    """The check that clamping is for: a unit for each coordinate, where a VAE would mix them."""
    torch.manual_seed(seed)
    net = [nn.Sequential(nn.Linear(a, 64), nn.ELU(), nn.Linear(64, b)) for a, b in ((64, 6), (3, 64))]
    made = DCIGN(net[0], net[1], Bernoulli(), 3, 6, scene_units=2, invariance=1.0)
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-3)
    draws = torch.Generator().manual_seed(seed)
    for i in range(2000):
        places = (1 + 5 * torch.rand(1, 2, generator=draws)).repeat(32, 1)
        places[:, i % 2] = 1 + 5 * torch.rand(32, generator=draws)
        loss = made.clamped_objective(blobs(places).flatten(1), torch.tensor(i % 2), draws)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    places = 1 + 5 * torch.rand(1000, 2, generator=draws)
    scores = factor_scores(made.encode(blobs(places).flatten(1)), places, ("x", "y"), made.factor_units)
    assert scores["factor_unit"] > 0.98 and scores["factor_leak"] < 0.15, dict(scores)


# ------------------------------------------------------------------------------------------------------------- the runs


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    fit(SMALL, 6, tmp_path / "whole")
    cut = fit(SMALL, 3, tmp_path / "cut")
    fit(SMALL, 6, tmp_path / "resumed", resume=str(cut.folder / "checkpoints" / "last.ckpt"))
    assert_identical(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))


def test_scores_and_pictures_of_a_run(tmp_path):
    overrides = [*SMALL, *QUIET[1:], "trainer.max_steps=2", "metrics.iwae_samples=2"]
    result = train(compose(overrides), tmp_path)
    for name in ("factor_corr", "factor_gap", "factor_r2", "factor_unit", "factor_leak", "factor_corr_light"):
        assert 0 <= abs(result.scores[f"test/{name}"]) <= 1
    found = evaluate_run(tmp_path, {"scores": ["factors"], "n": 200})
    assert found["cards"][found["group"]["factor_corr"]]["n_real"] == 200 and "factor_corr_rotation" in found["scores"]
    pictures = visualize({"run": str(tmp_path), "what": "factors,traversals"})
    assert all(path.stat().st_size > 1000 for path in pictures.values()) and set(pictures) == {"factors", "traversals"}
    assert genlab.load(tmp_path).factor_units == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("clamp", ["true", "false"])
def test_it_can_be_dry_run_and_trains_on_a_batch_of_one(clamp, tmp_path, capsys):
    overrides = [*SMALL, *QUIET, f"model.clamp={clamp}", "trainer.max_steps=2"]
    train({**compose(overrides), "dry_run": True}, tmp_path / "dry")
    assert "iterations" in capsys.readouterr().out
    trained = train(compose([*overrides, "data.batch_size=1"]), tmp_path / "one").model
    assert all(p.isfinite().all() for p in trained.parameters())


def test_data_without_groups_are_refused_before_they_are_read():
    for data in (["data=digits"], ["data=shapes", "data.grouped=false"]):
        with pytest.raises(UserError, match="needs the column group, .*Try data=shapes data.grouped=true"):
            build(compose(["model=dc_ign", *data]))
    build(compose(["model=dc_ign", "data=digits", "model.clamp=false"]))
    with pytest.raises(UserError, match="no column 'group', only x"):
        model().training_step(Batch({"x": images()}), 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scene_units": 16}, "model.scene_units"),
        ({"scene_units": 0}, "model.scene_units"),
        ({"invariance": -1}, "inv"),
    ],
)
def test_mistakes_are_answered(arguments, sentence):
    overrides = [f"model.{key}={value}" for key, value in arguments.items()]
    with pytest.raises(UserError, match=sentence):
        build(compose([*SMALL, *overrides]))
