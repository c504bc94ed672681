"""The restricted Boltzmann machine against enumeration of all states, in float64."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.models.rbm import RBM
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, weights
from tests.models.helpers import assert_moves, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, H = (1, 2, 3), 4
SMALL = ["model=rbm", "data=digits", "data.batch_size=16", "model.hidden=8", "model.chain_steps=5"]
QUIET = ["callbacks=none", "logger=none", "trainer=cpu", "threads=1"]


def machine(scale=1.0, **options):
    torch.manual_seed(0)
    made = RBM(SHAPE, H, **options).double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(scale * torch.randn(p.shape, dtype=torch.float64))
        made.base.copy_(torch.randn(6, dtype=torch.float64))
    return made


def states(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def exact_log_z(made):
    return (-made.machine(states(6))).logsumexp(dim=0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_free_energy_sums_the_hidden_units_out():
    made, v, h = machine(), states(6), states(H)
    m = made.machine
    energy = -(v @ m.visible_bias)[:, None] - (h @ m.hidden_bias)[None] - v @ m.weight.T @ h.T
    assert_close(m(v), -(-energy).logsumexp(dim=1))
    assert_close(exact_log_z(made), (-energy).flatten().logsumexp(dim=0))
    on = (-energy).softmax(dim=1) @ h  # p(h = 1 | v), and p(v = 1 | h)
    assert_close(made.encode(2 * v.unflatten(1, SHAPE) - 1), on)
    assert_close(m.visible_logits(h).sigmoid(), (-energy).softmax(dim=0).T @ v)


def test_gibbs_sampling_has_the_machines_law():
    made = machine()
    p = (-made.machine(states(6))).softmax(dim=0).detach()
    v = made.gibbs(torch.zeros(40_000, 6, dtype=torch.float64), 40, rng())
    codes = (v @ (2.0 ** torch.arange(5, -1, -1, dtype=torch.float64))).long()
    found = torch.bincount(codes, minlength=64) / len(v)
    assert (found - p).abs().sum() < 0.05  # 0.03 for independent draws
    assert (torch.full((64,), 1 / 64) - p).abs().sum() > 0.5


def test_annealed_weights_have_mean_z():
    """log Z by enumeration of 2^6 states; and too few temperatures give it a wider spread."""
    made = machine()
    exact = exact_log_z(made).item()
    spread = []
    for steps, chains, tolerance in ((1, 20_000, 0.2), (1000, 500, 0.02)):
        log_w = made.log_partition(steps, chains, rng(1))
        assert log_w.dtype == torch.float64 and log_w.shape == (chains,)
        assert (log_w.logsumexp(dim=0) - math.log(chains)).item() == pytest.approx(exact, abs=tolerance)
        spread.append(log_w.std().item())
    assert spread[1] < 0.2 * spread[0]


def test_annealing_is_exact_where_hidden_units_do_nothing():
    made = machine()
    with torch.no_grad():
        made.machine.weight.zero_(), made.machine.hidden_bias.zero_()
        made.machine.visible_bias.copy_(made.base)
    log_w = made.log_partition(3, 5, rng())
    assert_close(log_w, exact_log_z(made).expand(5).detach())


def test_gradient_is_that_of_the_likelihood_when_chains_have_the_models_law():
    """E F(data) - E F(model) has the gradient of -log p, exactly so if the model's term is enumerated."""
    made = machine()
    data, everything = states(6)[[3, 17, 40]], states(6)
    nll = made.machine(data).mean() + exact_log_z(made)
    exact = torch.autograd.grad(nll, list(made.machine.parameters()))
    p = (-made.machine(everything)).softmax(dim=0).detach()
    contrast = made.machine(data).mean() - (p * made.machine(everything)).sum()
    assert_close(made.machine.contrast(data, everything), made.machine(data).mean() - made.machine(everything).mean())
    for a, b in zip(torch.autograd.grad(contrast, list(made.machine.parameters())), exact, strict=True):
        assert_close(a, b)


def test_contrastive_divergence_by_hand():
    """CD-1: <v p(h|v)> at the data less the same at v_1."""
    made = machine(k=2)
    x = 2 * states(6)[[3, 17, 40]].unflatten(1, SHAPE) - 1
    v, draws = (x.flatten(1) + 1) / 2, rng(4)
    made.objective(x, rng(4))["contrast"].backward()
    torch.rand(3, 6, generator=draws, dtype=torch.float64)  # binary data stay as they are
    v_k = made.gibbs(v, 2, draws)
    p, p_k = (made.machine.hidden_logits(u).sigmoid() for u in (v, v_k))
    assert not torch.equal(v, v_k)
    assert_close(made.machine.weight.grad, -(p.T @ v - p_k.T @ v_k).detach() / 3)
    assert_close(made.machine.visible_bias.grad, -(v - v_k).mean(dim=0))
    assert_close(made.machine.hidden_bias.grad, -(p - p_k).mean(dim=0).detach())


def test_persistent_chains_go_on(tmp_path):
    made = machine(persistent=5)
    made.chains.copy_(states(6)[:5])
    made.train()
    made.stream.rng = rng(2)
    x = torch.ones(3, *SHAPE, dtype=torch.float64)
    made.objective(x)
    expected = made.gibbs(states(6)[:5], 1, rng(2))
    assert torch.equal(made.chains, expected)
    made.eval()
    made.objective(x, rng(3))
    assert torch.equal(made.chains, expected)  # judging moves nothing


@pytest.mark.parametrize("persistent", [0, 12])
def test_a_resumed_run_is_the_same(persistent, tmp_path):
    overrides = [*SMALL, *QUIET, "metrics=none", "data.binarize=dynamic", f"model.persistent={persistent}"]
    train(compose([*overrides, "trainer.max_steps=6"]), tmp_path / "alone")
    train(compose([*overrides, "trainer.max_steps=3"]), tmp_path / "cut")
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    train(compose([*overrides, "trainer.max_steps=6"]), tmp_path / "cut", resume=checkpoint)
    assert_identical(weights(tmp_path / "alone"), weights(tmp_path / "cut"))


def test_all_parameters_move(tmp_path):
    assert_moves(SMALL, ["rbm"] * 2, 2, tmp_path)


def test_log_p_is_judged_with_its_spread(tmp_path):
    """Trained on binary digits: better than base rates, and within the error of the exact value (2^8 hidden states)."""
    overrides = [*SMALL, *QUIET, "metrics=likelihood", "metrics.ais_steps=200", "metrics.ais_samples=100"]
    overrides += ["data.binarize=static", "trainer.max_steps=300", "model.persistent=50"]
    outcome = train(compose(overrides), tmp_path)
    made, scores = outcome.model, outcome.scores
    m, h = made.machine, states(8).float()
    log_z = (h @ m.hidden_bias + torch.nn.functional.softplus(m.visible_logits(h)).sum(dim=1)).logsumexp(dim=0)
    assert scores["test/log_z"] == pytest.approx(log_z.item(), abs=4 * scores["test/log_z_se"] + 0.01)
    assert 0 < scores["test/log_z_se"] < 0.5 and scores["test/ais_200"] > -30


@pytest.mark.parametrize(
    "odd", [["data.batch_size=1"], ["model.hidden=1"], ["model.persistent=1"], ["model.chain_steps=1"]]
)
def test_odd_sizes_train(odd, tmp_path):
    made = fit([*SMALL, *odd], 2, tmp_path).model
    assert made.sample(3).shape == (3, 1, 8, 8) and made.frames(2).shape[1:] == (2, 1, 8, 8)


def test_a_constant_image_trains():
    made = machine(0.01)
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    for i in range(200):
        optimizer.zero_grad(), made.objective(x, rng(i))["contrast"].backward(), optimizer.step()
    assert all(p.isfinite().all() for p in made.parameters()) and made.reconstruct(x).min() > 0.9


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(["model.k=0"], "model.k"), (["model.persistent=-1"], "persistent"), (["data=ring"], "kind image")],
)
def test_mistakes(wrong, words):
    with pytest.raises(UserError, match=words):
        build(compose([*SMALL, *QUIET, "metrics=none", *wrong]))
