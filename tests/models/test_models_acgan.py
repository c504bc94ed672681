"""AC-GAN: values at chance, who moves on what, missing labels, and the drift away from the overlap of the classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.runs.running import build
from tests.models.helpers import SGD, Batches, assert_moves, config, fit, log_d, log_not_d
from tests.models.signs import ROWS, SIGNS, PaperLosses, quantiles, sign

pytestmark = pytest.mark.usefixtures("one_thread")
MLP = ["model=acgan", "data=digits", "network=mlp", "network.hidden=[16]", "model.latent_dim=4", "ema.decay=0"]
NORMED = ["model=acgan", "data=digits", "network.generator.hidden=[16]", "network.discriminator.hidden=[16]"]
TOY = {
    "_target_": "genlab.models.acgan.ACGAN",
    "generator": {"_target_": "tests.models.signs.Signed", "theta": 1.0},
    "discriminator": {"_target_": "tests.models.signs.Unsure"},
    "loss": {"_target_": "genlab.losses.adversarial.NonSaturating"},
    "shape": [1],
    "latent_dim": 1,
    "classes": 2,
    "given": ["y"],
    "g_optimizer": SGD,
    "d_optimizer": {**SGD, "lr": 0.0},
}


@pytest.mark.parametrize("overrides", [MLP, NORMED, ["model=acgan", "network=dcgan", "network.width=4"]])
def test_each_update_moves_one_player_alone(overrides, tmp_path):
    fitted = assert_moves(overrides, ["discriminator", "generator"] * 2, 2, tmp_path)
    own = {id(p) for p in fitted.model.players["discriminator"]}
    assert {id(p) for p in fitted.model.classifier.parameters()} <= own


def test_at_chance_the_losses_are_those_of_ten_classes(tmp_path):
    """All logits 0: L_D = 2 log 2 + 2 log 10 and L_G = log 2 + log 10."""
    losses = {}

    def silenced(model):
        for part in (model.discriminator, model.classifier):
            for parameter in part.parameters():
                torch.nn.init.zeros_(parameter)
        for name, turn in model.moves.turns.items():
            minimise = turn.minimise
            turn.minimise = lambda loss, name=name, minimise=minimise: (
                losses.update({name: loss.detach()}),
                minimise(loss),
            )

    fit([*MLP, "model.d_optimizer.lr=0"], 1, tmp_path, before=silenced, trainer={"precision": "64-true"})
    assert_close(losses["discriminator"].item(), 5.991465, rtol=0, atol=1e-6)
    assert_close(losses["generator"].item(), 2.995732, rtol=0, atol=1e-6)


def d_loss(m, batch, z, told):
    """-L_S - L_C of Eq. 2 and 3, with weights 0.7 and, among real samples, labelled ones alone."""
    fake, known = m.generator(z, told), batch.y >= 0
    log_p = [m.classifier(m.discriminator.features(x)).log_softmax(dim=1) for x in (batch.x, fake)]
    of_real = log_p[0][known].gather(1, batch.y[known, None]).mean()
    of_fake = log_p[1].gather(1, told["y"][:, None]).mean()
    return -log_d(m.discriminator(batch.x)) - log_not_d(m.discriminator(fake)) - 0.7 * (of_real + of_fake)


def g_loss(m, batch, z, told):
    """L_S - L_C of fakes, the former in its non-saturating form, with weight 0.3."""
    fake = m.generator(z, told)
    log_p = m.classifier(m.discriminator.features(fake)).log_softmax(dim=1)
    return -log_d(m.discriminator(fake)) - 0.3 * log_p.gather(1, told["y"][:, None]).mean()


@pytest.mark.parametrize("labelled", ["null", "600"])
def test_each_gradient_is_that_of_the_papers_loss(labelled, tmp_path):
    weights = ["model.d_class_weight=0.7", "model.g_class_weight=0.3", f"data.num_labelled={labelled}"]
    expected = PaperLosses({"discriminator": d_loss, "generator": g_loss})
    fit([*MLP, *weights], 2, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ["discriminator", "generator"] * 2


def test_missing_labels_are_drawn_for_fakes(tmp_path):
    """Known ones stay; the others are any of the ten, and the same in both turns."""
    calls, batches = [], Batches()

    def spy(model):
        model.generator.register_forward_pre_hook(lambda _, args: calls.append(args[1]["y"]))

    fit([*MLP, "data.num_labelled=600", "data.batch_size=64"], 3, tmp_path, [batches], spy)
    drawn = []
    for number, batch in enumerate(batches.seen):
        shown, again = calls[2 * number : 2 * number + 2]
        known = batch.y >= 0
        assert 10 < known.sum() < 54
        assert torch.equal(shown, again) and torch.equal(shown[known], batch.y[known])
        drawn.append(shown[~known])
    found = torch.cat(drawn)
    assert set(found.tolist()) == set(range(10))


def exact(model):
    """The classifier P(y | x) = sigmoid(2 s x) of the data, and noise whose products with the signs are quantiles."""
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.classifier.bias.zero_()
    step = model.training_step

    def training_step(batch, batch_idx):
        model.noise = lambda n, rng=None: (sign(batch.y) * quantiles(n))[:, None]
        step(batch, batch_idx)

    model.training_step = training_step


@pytest.mark.parametrize(("weight", "drift"), [(1.0, 0.449600), (0.0, 0.0)])
def test_the_data_are_no_optimum_where_classes_overlap(weight, drift, tmp_path):
    """At theta = 1 fakes are the data and D is unsure; the cross-entropy .356316 still has the gradient -.449600."""
    toy = {**TOY, "g_class_weight": weight}
    fitted = fit(["data=ring"], 1, tmp_path, before=exact, trainer={"precision": "64-true"}, model=toy, data=SIGNS)
    recorded = fitted.model.watching.recorded
    assert_close(recorded["g_loss"].item(), math.log(2))
    for name in ("class_real", "class_fake"):
        assert_close(recorded[name].item(), 0.356316, rtol=0, atol=2e-4)  # by midpoints
    assert_close((fitted.model.generator.theta - 1).item() / SGD["lr"], drift, rtol=0, atol=2e-6)
    assert len(fitted.data.split("train")) == ROWS


def test_it_classifies_scores_and_draws_what_it_is_told(tmp_path):
    model = fit(MLP, 1, tmp_path).model
    y = Batch({"y": torch.tensor([3, 1, 4])})
    x = model.sample(3, given=y, rng=torch.Generator().manual_seed(0))
    z = model.noise(3, torch.Generator().manual_seed(0))
    assert torch.equal(model.decode(z, y), x)
    assert (model.decode(z, Batch({"y": torch.tensor([3, 1, 5])})) - x).abs().amax(dim=(1, 2, 3))[2] > 1e-4
    with torch.no_grad(), model.inference():
        assert_close(model.classify(x), model.classifier(model.discriminator.features(x)))
        assert_close(model.score_logits(x), model.discriminator(x))


def test_it_learns_the_classes(tmp_path):
    """After 300 iterations most test images are classified, and most samples taken for what they were told."""
    overrides = ["model=acgan", "network.hidden=[64,64]", "data.batch_size=64", "ema.decay=0"]
    fitted = fit(overrides, 300, tmp_path)
    test = next(iter(fitted.data.batches("test", 359)))
    assert (fitted.model.classify(test.x).argmax(dim=1) == test.y).float().mean() > 0.8
    y = torch.arange(10).repeat(30)
    x = fitted.model.sample(300, given=Batch({"y": y}), rng=torch.Generator().manual_seed(0))
    assert (fitted.model.classify(x).argmax(dim=1) == y).float().mean() > 0.8
    assert F.cross_entropy(fitted.model.classify(test.x), test.y) < 1


def test_refusals(tmp_path):
    model = build(config(MLP)).model
    model.given = ("caption",)
    with pytest.raises(UserError, match=r"^The generator of ACGAN is trained to draw given classes, .*\['caption'\]"):
        model.initialise(iter(()))
    with pytest.raises(UserError, match="acgan is given y, and data=swiss_roll has x"):
        config(["model=acgan", "data=swiss_roll"])
