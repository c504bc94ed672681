"""CVAE and semi-supervised VAE with a discriminator of classes and fakes: its losses, and whose gradient they are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.losses.classes import nats_of_class, nats_of_fake, real_logits
from genlab.runs.running import build
from genlab.runs.start import train
from tests.models.helpers import Batches, assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["data=digits", "network=mlp", "network.hidden=[16]", "model.latent_dim=3", "ema.decay=0"]
SHELF = {
    "cvae_gan": ["model=cvae_gan", *SMALL],
    "ssl_vae_gan": ["model=ssl_vae_gan", *SMALL, "model.encoder_features=12", "data.num_labelled=100"],
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def test_losses_of_equal_logits():
    """log 11 of a class and of a fake, log(11 / 10) of a real sample without a label."""
    logits = torch.zeros(4, 11, dtype=torch.float64)
    assert_close(nats_of_class(logits, torch.tensor([3, 0, 9, 1])), torch.full((4,), math.log(11)).double())
    assert_close(nats_of_fake(logits), torch.full((4,), math.log(11)).double())
    assert_close(nats_of_class(logits, torch.full((4,), -1)), torch.full((4,), math.log(11 / 10)).double())
    assert math.isclose(math.log(11 / 10), 0.095310, abs_tol=1e-6)


def test_losses_are_those_of_the_probabilities():
    logits, y = 3 * draw(6, 4), torch.tensor([0, -1, 2, 1, -1, 0])
    p = logits.softmax(dim=1)
    known = y >= 0
    each = torch.where(known, p[range(6), y.clamp_min(0)], 1 - p[:, 3])
    assert_close(nats_of_class(logits, y), -each.log())
    assert_close(nats_of_fake(logits), -p[:, 3].log())
    assert_close(real_logits(logits), ((1 - p[:, 3]) / p[:, 3]).log())
    assert_close(nats_of_class(logits + 7, y), nats_of_class(logits, y))
    far = torch.tensor([[-300.0, -300.0, 300.0]], requires_grad=True)  # sure of a fake: the gradient lives
    nats_of_class(far, torch.tensor([-1])).sum().backward()
    assert far.grad.isfinite().all() and far.grad[0, 2] > 0.99


@pytest.mark.parametrize("name", SHELF)
def test_discriminator_and_model_take_turns(name, tmp_path):
    fitted = assert_moves(SHELF[name], ["discriminator", "vae"] * 2, 2, tmp_path)
    assert not fitted.model.can("score_logits")
    assert set(fitted.model.players) == {"vae", "discriminator"}


def spied(model, calls):
    """Notes what the discriminator and the decoder are called with."""
    for name in ("adversary.discriminator", "decoder"):
        network = model.get_submodule(name)
        network.register_forward_pre_hook(lambda _, args, name=name: calls.append((name.rpartition(".")[2], *args)))


@pytest.mark.parametrize("name", SHELF)
def test_fakes_are_draws_from_the_prior_with_a_known_class(name, tmp_path):
    """Of the CVAE with the batch's labels, of the semi-supervised one with classes that are drawn evenly."""
    calls, batches = [], Batches()
    fit(SHELF[name], 1, tmp_path, [batches], lambda model: spied(model, calls))
    (batch,) = batches.seen
    assert [who for who, *_ in calls] == [
        "decoder",
        "discriminator",
        "discriminator",
        *2 * ["decoder"],
        "discriminator",
    ]
    told = calls[0][2]["y"]
    assert torch.equal(calls[4][2]["y"], told) and torch.equal(calls[1][1], batch.x)
    assert (told >= 0).all() and torch.equal(told, batch.y) is (name == "cvae_gan")
    assert not torch.equal(calls[0][1], calls[4][1])  # noise of its own in each turn


@pytest.mark.parametrize("name", SHELF)
def test_the_adversarial_loss_reaches_the_decoder_alone(name):
    """Neither q(z | x, y) nor q(y | x), and not the discriminator within the model's turn."""
    model = build(config(SHELF[name])).model
    x, told = torch.zeros(8, 1, 8, 8), Batch({"y": torch.arange(8)})
    with model.turn("vae"):
        model.deception(x, told).backward()
    moved = {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"decoder"}


@pytest.mark.parametrize("name", SHELF)
def test_the_players_minimise_what_they_say(name):
    """Discriminator: -log p_y of real samples + -log p_K of fakes; model: its bound + w (-log p_y of the fakes)."""
    overrides = [*SHELF[name], "adversary.weight=3"]
    model = build(config(overrides)).model.double()
    x, y = draw(6, 1, 8, 8).clamp(-1, 1), torch.tensor([2, 0, 1, 2, 1, 0])
    y = torch.where(torch.tensor([True, False] * 3), y, -1) if name == "ssl_vae_gan" else y
    real, fake = Batch({"y": y}), Batch({"y": torch.arange(6)})
    z = draw(6, 3, seed=1)
    model.randn = lambda n, *shape, rng=None: z
    x_fake = model.likelihood.mean(model.decoder(z, fake))
    assert torch.equal(model.imitate(x, fake), x_fake)
    verdict = model.adversary.judge(x, x_fake.detach(), (real,), (fake,))
    p, p_fake = (model.adversary.discriminator(each).softmax(dim=1) for each in (x, x_fake))
    each = torch.where(y >= 0, p[range(6), y.clamp_min(0)], 1 - p[:, 10])
    assert_close(verdict.loss, -each.log().mean() - p_fake[:, 10].log().mean())
    assert_close(verdict.logits_fake.sigmoid(), 1 - p_fake[:, 10])
    assert_close(model.deception(x, fake), -3 * p_fake[range(6), range(6)].log().mean())
    assert_close(F.cross_entropy(model.adversary.discriminator(x_fake), torch.arange(6)), model.deception(x, fake) / 3)


@pytest.mark.parametrize("name", SHELF)
def test_a_weight_of_zero_is_the_model_without_it(name):
    """The same gradient, bit for bit, at the same noise."""
    x, y = torch.zeros(8, 1, 8, 8), Batch({"y": torch.arange(8)})
    grown = []
    model, *rest = SHELF[name]
    for overrides in ([model, *rest, "adversary.weight=0"], [model.removesuffix("_gan"), *rest]):
        model = build(config(overrides)).model
        model.zero_grad()
        (model.objective(x, rng(), given=y)["loss"] + model.deception(x, y)).backward()
        grown.append({n: p.grad for n, p in model.named_parameters() if not n.startswith("adversary")})
    assert grown[0].keys() == grown[1].keys()
    assert all(torch.equal(grown[0][n], grown[1][n]) for n in grown[0])


def test_a_model_that_is_told_no_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="^adversary=classes needs a model that is given the classes y. Try model=cvae"):
        fit(["model=vae", *SMALL, "adversary=classes"], 1, tmp_path)


@pytest.mark.parametrize("name", SHELF)
def test_classifier_and_discriminator_have_an_error_each(name, tmp_path):
    quiet = ["callbacks=none", "logger=none", "trainer=cpu", "threads=1", "trainer.max_steps=2", "data.batch_size=8"]
    result = train(compose([*SHELF[name], *quiet, "metrics=classification"]), tmp_path)
    expected = {"test/classifier_error"} if name == "ssl_vae_gan" else set()
    assert result.scores.keys() == {*expected, "test/classifier_error/discriminator"}
    batches = list(build(config(SHELF[name])).data.batches("test", 256))
    wrong = [result.model.discern(b.x).argmax(dim=1) != b.y for b in batches]
    assert result.scores["test/classifier_error/discriminator"] == torch.cat(wrong).double().mean().item()
    assert result.model.discern(batches[0].x).shape == (256, 10)
    assert not build(config([*SHELF[name], "adversary=gan"])).model.can("discern")
