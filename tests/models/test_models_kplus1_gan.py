"""The K + 1 classes: both losses written out, who is told what, and that few labels suffice for a classifier."""

import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.runs.running import build
from tests.models.helpers import assert_moves, config, fit
from tests.models.signs import PaperLosses

pytestmark = pytest.mark.usefixtures("one_thread")
MLP = ["model=kplus1_gan", "data=digits", "network=mlp", "network.hidden=[16]", "model.latent_dim=4", "ema.decay=0"]
NORMED = ["model=kplus1_gan", "data=digits", "network.generator.hidden=[16]", "network.discriminator.hidden=[16]"]
READINGS = {"joint": [], "factored": ["model.joint=false"]}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize("overrides", [MLP, NORMED, ["model=kplus1_gan", "network=dcgan", "network.width=4"]])
def test_each_update_moves_one_player_alone(overrides, reading, tmp_path):
    fitted = assert_moves([*overrides, *reading], ["discriminator", "generator"] * 2, 2, tmp_path)
    own = {id(p) for p in fitted.model.players["discriminator"]}
    assert {id(p) for p in fitted.model.classifier.parameters()} <= own


def log_p(m, x):
    """log p_1 .. log p_{K+1} of samples."""
    f = m.discriminator.features(x)
    return torch.cat([m.classifier(f), -m.discriminator(x)[:, None]], dim=1).log_softmax(dim=1)


def picked(log_p, y):
    return log_p.gather(1, y[:, None])[:, 0]


def joint_d(m, batch, z, told):
    """Cross-entropy of K + 1 classes; of a real sample without a label -log(1 - p_{K+1})."""
    real, fake, known = log_p(m, batch.x), log_p(m, m.generator(z, told)), batch.y >= 0
    unlabelled = (1 - real[:, -1].exp()).log()
    of_real = torch.where(known, picked(real, batch.y.clamp_min(0)), unlabelled)
    return -of_real.mean() - fake[:, -1].mean()


def joint_g(m, batch, z, told):
    return -picked(log_p(m, m.generator(z, told)), told["y"]).mean()


def factored_d(m, batch, z):
    """Salimans et al., from K logits l with the fake one at 0: D = sigmoid(logsumexp l)."""

    def k_logits(x):
        return m.classifier(m.discriminator.features(x)) + m.discriminator(x)[:, None]

    known, d = batch.y >= 0, [k_logits(x).logsumexp(dim=1).sigmoid() for x in (batch.x, m.generator(z))]
    labelled = picked(k_logits(batch.x).log_softmax(dim=1)[known], batch.y[known]).mean()
    return -0.7 * labelled - d[0].log().mean() / 2 - (1 - d[1]).log().mean() / 2


def factored_g(m, batch, z):
    means = [m.discriminator.features(x).mean(dim=0) for x in (batch.x, m.generator(z))]
    return (means[0] - means[1]).square().mean()


LOSSES = {
    "joint": {"discriminator": joint_d, "generator": joint_g},
    "factored": {"discriminator": factored_d, "generator": factored_g},
}


@pytest.mark.parametrize("labelled", ["null", "600"])
@pytest.mark.parametrize("reading", READINGS)
def test_each_gradient_is_that_of_the_papers_loss(reading, labelled, tmp_path):
    expected = PaperLosses(LOSSES[reading])
    overrides = [*MLP, *READINGS[reading], "model.class_weight=0.7", f"data.num_labelled={labelled}"]
    fit(overrides, 2, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ["discriminator", "generator"] * 2


def test_the_joint_generator_is_told_and_the_factored_one_is_not():
    joint, factored = (config([*MLP, *reading])["model"] for reading in READINGS.values())
    assert joint["given"] == ["y"] and joint["generator"]["_target_"].endswith("told.Concat")
    assert factored["given"] == [] and factored["generator"] == joint["generator"]["network"] | {"latent_dim": 4}
    assert joint["discriminator"] == factored["discriminator"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model.joint=false", "conditioning=norm"],
            "conditioning=norm has nothing to tell: model=kplus1_gan is given",
        ),
        (["model.joint=false", "conditioning.words=gru"], "conditioning=concat has nothing to tell"),
        (["model.joint=false", "optim.accumulate=2"], "feature matching of model.joint=false needs the whole batch"),
        (["data=swiss_roll"], "model=kplus1_gan is given y, and data=swiss_roll has x"),
    ],
)
def test_mistakes_are_sentences(overrides, words):
    with pytest.raises(UserError, match=words):
        build(config([*MLP, *overrides]))


def test_what_the_generator_must_be_told():
    for reading, given, words in (("joint", (), "KPlus1GAN is trained to draw given classes"),
                                  ("factored", ("y",), "a generator that is told nothing")):  # fmt: skip
        model = build(config([*MLP, *READINGS[reading]])).model
        model.given = given
        with pytest.raises(UserError, match=words):
            model.initialise(iter(()))


@pytest.mark.parametrize("reading", READINGS)
def test_capabilities_are_those_of_the_logits(reading, tmp_path):
    model = fit([*MLP, *READINGS[reading]], 1, tmp_path).model
    given = Batch({"y": torch.tensor([3, 1, 4])}) if reading == "joint" else None
    x = model.sample(3, given=given, rng=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.inference():
        p = log_p(model, x).exp()
    assert_close(model.classify(x).softmax(dim=1), p[:, :10] / (1 - p[:, 10:]))
    assert_close(model.score_logits(x), ((1 - p[:, 10]) / p[:, 10]).log(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
def test_it_classifies_with_few_labels(reading, tmp_path):
    """100 labels of 1,258 samples."""
    overrides = ["model=kplus1_gan", "data.num_labelled=100", "data.batch_size=64"]
    fitted = fit([*overrides, "ema.decay=0", *READINGS[reading]], 300, tmp_path)
    test = next(iter(fitted.data.batches("test", 359)))
    assert (fitted.model.classify(test.x).argmax(dim=1) == test.y).float().mean() > 0.7
