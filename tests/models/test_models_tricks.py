"""Stabilisers: each does what its paper says, composes with the GANs that take it, and survives a resume."""

import math
import shutil

import pytest
import torch
from torch import nn

from genlab.config.composition import compose
from genlab.config.shipped import options
from genlab.engine.players import Turn
from genlab.engine.settings import Settings, Tricks
from genlab.errors import UserError
from genlab.losses.adversarial import NonSaturating
from genlab.losses.features import feature_matching
from genlab.models.base import ALL_TRICKS, GenerativeModel
from genlab.networks.packing import Packed
from genlab.networks.virtual_batch_norm import VirtualBatchNorm, VirtuallyNormalised
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, weights
from tests.models.helpers import METHODS, QUIET, config, fit

ON = {
    "historical_averaging": ["tricks.historical_averaging=0.1"],
    "virtual_batch_norm": ["tricks.virtual_batch_norm=true", "network.generator_norm=batch", "data.batch_size=64"],
    "replay": ["tricks.replay=0.5", "tricks.replay_size=16"],
    "feature_matching": ["tricks.feature_matching=true"],
    "minibatch_discrimination": ["tricks.minibatch_discrimination=true"],
    "instance_noise": ["tricks.instance_noise=0.1"],
    "augment": ["tricks.augment=true", "data=digits", "network=mlp"],
    "packing": ["tricks.packing=2"],
}
GANS = {
    "gan": ["model=gan"],
    "hinge": ["model=gan", "loss=hinge", "penalty=r1"],
    "wgan_gp": ["model=wgan_gp", "model.n_critic=2"],
    "wgan": ["model=wgan", "model.n_critic=2", "model.n_critic_long=3"],
}
RING = ["data=ring", "network.hidden=[16]"]


def test_every_trick_is_tried():
    assert set(ON) == set(ALL_TRICKS)


@pytest.mark.parametrize("trick", ON)
@pytest.mark.parametrize("gan", GANS)
def test_it_trains_with_it_and_differs(gan, trick, tmp_path):
    asked = [*RING, *GANS[gan], "ema.decay=0"]
    if trick == "minibatch_discrimination" and gan in ("hinge", "wgan_gp"):
        with pytest.raises(UserError, match="penalty needs a gradient per sample, and minibatch discrimination"):
            build(config([*asked, *ON[trick]]))
        return
    with_it = fit([*asked, *ON[trick]], 4, tmp_path / "with").model
    assert all(p.isfinite().all() for p in with_it.parameters())
    assert with_it.sample(3).isfinite().all()
    if trick not in ("augment", "virtual_batch_norm"):  # those come with other data or networks
        without = fit(asked, 4, tmp_path / "without").model
        pair = zip(with_it.generator.parameters(), without.generator.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pair)


OFF = {  # and what belongs to it set to something else
    "historical_averaging": ["tricks.historical_averaging=0"],
    "virtual_batch_norm": ["tricks.virtual_batch_norm=false"],
    "replay": ["tricks.replay=0", "tricks.replay_size=5"],
    "feature_matching": ["tricks.feature_matching=false"],
    "minibatch_discrimination": ["tricks.minibatch_discrimination=false", "tricks.minibatch_kernels=3"],
    "instance_noise": ["tricks.instance_noise=0", "tricks.instance_noise_until=0.9"],
    "augment": ["tricks.augment=false"],
    "packing": ["tricks.packing=1"],
    "label smoothing": ["loss.real_labels=[1,1]", "loss.fake_labels=[0,0]", "loss.flip=0"],
}


def algorithm_1(model):
    """Makes a GAN train by Goodfellow's algorithm as one would write it by hand, which knows no stabiliser."""

    def step(batch, batch_idx):
        with torch.no_grad():
            x_fake = model.generator(model.noise(len(batch.x)))
        with model.turn("discriminator") as discriminator:
            logits_real, logits_fake = model.discriminator(batch.x), model.discriminator(x_fake)
            loss = -torch.nn.functional.logsigmoid(logits_real).mean()
            discriminator.minimise(loss - torch.nn.functional.logsigmoid(-logits_fake).mean())
        with model.turn("generator") as generator:
            x_fake = model.generator(model.noise(len(batch.x)))
            generator.minimise(-torch.nn.functional.logsigmoid(model.discriminator(x_fake)).mean())

    model.training_step = step


def test_switched_off_it_leaves_training_bit_identical(tmp_path):
    asked = [*RING, "model=gan", "ema.decay=0"]
    by_hand = fit(asked, 4, tmp_path / "hand", before=algorithm_1, trainer={"precision": "64-true"}).model
    plain = fit(asked, 4, tmp_path / "plain", trainer={"precision": "64-true"}).model.state_dict()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-12, atol=1e-13)  # softplus rounds otherwise
    assert {*ON} <= {*OFF}
    for trick, off in OFF.items():
        without = fit([*asked, *off], 4, tmp_path / trick, trainer={"precision": "64-true"}).model.state_dict()
        assert without.keys() == plain.keys(), trick
        assert all(torch.equal(without[name], plain[name]) for name in plain), trick


@pytest.mark.parametrize("last", ["replay", "packing"])
def test_all_together_resume_bit_for_bit(last, tmp_path):
    """Buffers of fakes, means of the past and the clock of the noise are part of the checkpoint."""
    asked = [*QUIET, *RING, "model=gan", "loss.real_labels=[0.7,1.2]", "loss.flip=0.1", "checkpoint.every_n_steps=4"]
    asked += [word for trick in ("historical_averaging", "instance_noise", last) for word in ON[trick]]
    whole = compose([*asked, "trainer.max_steps=8", "tricks.instance_noise_until=0.75", "checkpoint.keep=2"])
    train(whole, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    files = (tmp_path / "resumed" / "checkpoints").iterdir()
    (earlier,) = [p for p in files if p.name not in ("last.ckpt", "best.ckpt")]
    buffers = torch.load(earlier, weights_only=True)["genlab"]["tricks"]["replay"]
    assert [tuple(each.shape) for each in buffers] == ([(16, 2)] if last == "replay" else [])
    train(whole, tmp_path / "resumed", resume=earlier)
    assert_identical(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))


def test_what_tricks_remember_is_resumed_where_the_weights_are(tmp_path):
    """A checkpoint is read on the CPU: earlier fakes and past means go to the model's device, here one without data."""
    words = ["model=gan", "data=ring", *ON["replay"], *ON["historical_averaging"]]
    fit(words, 4, tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for moved_first in (True, False):  # a rollback reads it in mid-training, Lightning before the model is moved
        model = build(config(words)).model
        if moved_first:
            model.to("meta")
        model.on_load_checkpoint(checkpoint)
        if not moved_first:
            model.to("meta")
        kept = [model.pool.held, *(mean for turn in model.moves.turns.values() for mean in turn.history)]
        assert len(kept) > 2 and all(x.device.type == "meta" and x.dim() > 0 for x in kept)


@pytest.mark.matrix
@pytest.mark.parametrize("model", options("model"))
def test_virtual_batch_norm_is_there_or_refused(model):
    """No method takes it and then has no use for it."""
    words = [f"model={model}", "tricks.virtual_batch_norm=true"]
    try:
        built = build(config(words)).model
    except UserError as error:
        said = ("tricks.virtual_batch_norm is not for", "the generator has none", "whose networks are told")
        assert any(words in str(error) for words in said)
        return
    wrapped = [m for m in built.children() if isinstance(m, VirtuallyNormalised)]
    assert len(wrapped) == 1 and any(isinstance(m, VirtualBatchNorm) for m in wrapped[0].modules())


@pytest.mark.parametrize("model", ["gan", "infogan", "began"])
def test_the_reference_batch_is_of_the_methods_own_latents(model, tmp_path):
    """Uniform for BEGAN, with a one-hot category for InfoGAN, whose generators see no others."""
    words = [f"model={model}", "data=digits", "network=mlp", "network.hidden=[16]", "network.generator_norm=batch"]
    fitted = fit([*words, "tricks.virtual_batch_norm=true", "data.batch_size=64"], 1, tmp_path).model
    reference = fitted.generator.reference
    assert torch.equal(reference, fitted.noise(len(reference), torch.Generator().manual_seed(0)))
    assert bool((reference.abs() <= 1).all()) == (model != "gan")


@pytest.mark.parametrize("model", ["vae", "began", "infogan"])
def test_a_method_that_takes_no_part_says_so(model):
    data = ["data=digits", "network=mlp_image"]
    with pytest.raises(UserError, match=rf"tricks.packing is not for model={model}, which takes tricks.hist"):
        build(config([f"model={model}", *data, "tricks.packing=2"]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["tricks.packing=2", "tricks.replay=0.5"], "tricks.replay does not go with tricks.packing"),
        (
            ["tricks.minibatch_discrimination=true", "tricks.replay=0.5"],
            "tricks.replay does not go with tricks.minibatch_discrimination",
        ),
        (["tricks.virtual_batch_norm=true", "network.generator_norm=none"], "batch norms, but the generator has none"),
        (["tricks.packing=3"], "tricks.packing=3 must divide data.batch_size=8"),
        (["tricks.packing=0"], "a whole number of at least 1"),
        (["tricks.replay=1.5"], "in \\[0, 1\\]"),
        (["loss.real_labels=[2.0,3.0]"], "with a mean in \\[0, 1\\]"),
        (["loss.flip=2"], "loss.flip must be in \\[0, 1\\]"),
    ],
)
def test_mistakes_are_sentences(wrong, words):
    with pytest.raises(UserError, match=words):
        build(config([*METHODS["gan"], *wrong]))


def test_the_networks_are_wrapped_from_the_inside_out():
    asked = [*METHODS["gan"], "tricks.packing=2", "tricks.instance_noise=0.1", "tricks.minibatch_discrimination=true"]
    model = build(config(asked)).model
    kinds = []
    network = model.discriminator
    while hasattr(network, "discriminator"):
        kinds.append(type(network).__name__)
        network = network.discriminator
    assert kinds == ["Viewed", "Packed", "MinibatchDiscriminator"]
    assert model.discriminator(torch.randn(6, 2)).shape == (3,)
    assert not model.can("score_logits") and build(config(METHODS["gan"])).model.can("score_logits")


# --- Historical averaging -------------------------------------------------------------------------------------------


class Bilinear(GenerativeModel):
    """min over x, max over y of x y."""

    def __init__(self):
        super().__init__()
        self.x = nn.ParameterList([nn.Parameter(torch.ones((), dtype=torch.float64))])
        self.y = nn.ParameterList([nn.Parameter(torch.ones((), dtype=torch.float64))])
        for name in ("x", "y"):
            self.add_player(name, getattr(self, name), lambda ps: torch.optim.SGD(ps, lr=0.1))


@pytest.mark.parametrize(("weight", "radius"), [(0.0, 3.825), (0.1, 0.068), (0.5, 0.356), (2.0, 1.169)])
def test_historical_averaging_calms_the_bilinear_game(weight, radius):
    """Simultaneous gradient steps of 0.1 from (1, 1), 200 of them."""
    game = Bilinear()
    x, y = game.x[0], game.y[0]
    turns: list[Turn] = [game.turn("x"), game.turn("y")]
    for _ in range(200):
        x.grad, y.grad = y.detach().clone(), -x.detach().clone()
        for turn in turns:
            if weight:
                turn.remember(weight)
        with torch.no_grad():
            x -= 0.1 * x.grad
            y -= 0.1 * y.grad
    assert math.hypot(float(x.detach()), float(y.detach())) == pytest.approx(radius, abs=6e-4)


# --- Labels ---------------------------------------------------------------------------------------------------------


def test_one_sided_smoothing_has_its_closed_form():
    """At p = q the best D is 0.45 and its loss 1.376278; found by minimising over one logit."""
    loss, s = NonSaturating(real_labels=(0.9, 0.9)), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], max_iter=50, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss.discriminator(s, s)
        value.backward()
        return value

    optimizer.step(closure)
    assert float(s.sigmoid()) == pytest.approx(0.45, abs=1e-6)
    assert float(loss.discriminator(s, s)) == pytest.approx(1.376278, abs=1e-6)


def test_hard_labels_are_the_plain_loss_and_the_generator_is_never_softened():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 50, dtype=torch.float64)
    soft, plain = NonSaturating(real_labels=(0.9, 0.9)), NonSaturating()
    assert torch.equal(soft.generator(fake), plain.generator(fake))
    almost = NonSaturating(real_labels=(1.0, 1.0), fake_labels=(1e-15, 1e-15))
    torch.testing.assert_close(almost.discriminator(real, fake), plain.discriminator(real, fake))


def test_labels_are_drawn_in_their_ranges_and_flipped_at_their_rate():
    loss = NonSaturating(real_labels=(0.7, 1.2), fake_labels=(0.0, 0.3), flip=0.05)

    class Owner:
        rng = torch.Generator().manual_seed(1)

        def rand(self, n, *shape):
            return torch.rand(n, *shape, generator=self.rng)

    owner = Owner()
    loss.adopt(owner)
    labels = loss.labels(10_000, torch.zeros(1), loss.real_labels, loss.fake_labels)
    flipped = labels < 0.5
    assert 0.04 < float(flipped.float().mean()) < 0.06
    assert labels[flipped].max() <= 0.3 and labels[~flipped].min() >= 0.7 and labels.max() <= 1.2


# --- Feature matching and replay ------------------------------------------------------------------------------------


def test_feature_matching_is_zero_for_equal_means_and_has_its_gradient():
    torch.manual_seed(0)
    x, a = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    fake = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert float(feature_matching(x @ a, x.flip(0) @ a)) == pytest.approx(0, abs=1e-30)
    feature_matching(x @ a, fake @ a).backward()
    gap = (fake.mean(0) - x.mean(0)).detach() @ a
    expected = (2 / 5) * (gap @ a.T) / 4  # over F = 4 features, for each of the 5 fakes
    torch.testing.assert_close(fake.grad, expected.expand(5, 3))


def test_feature_matching_replaces_the_generators_loss(tmp_path):
    """The adversarial side of the loss has no say in the generator's update."""
    asked = [*METHODS["gan"], *ON["feature_matching"], "model.d_optimizer.lr=0.0"]
    a = fit([*asked, "loss=non_saturating"], 3, tmp_path / "a").model
    b = fit([*asked, "loss=hinge"], 3, tmp_path / "b").model
    assert_identical(dict(a.generator.state_dict()), dict(b.generator.state_dict()))


def test_replay_mixes_in_earlier_fakes_and_keeps_the_buffers_size():
    model = build(config(METHODS["gan"])).model
    model.settings = Settings(tricks=Tricks(replay=0.5, replay_size=8))
    for batch in range(2):  # fills up first
        new = torch.full((4, 2), float(batch), requires_grad=True)
        assert torch.equal(model.mixed(new), new) and not model.mixed(new.detach()[:0]).numel()
    shown = model.mixed(torch.full((4, 2), 7.0))
    assert len(model.pool.held) == 8 and (shown == 7).all(dim=1).sum() == 2 and (model.pool.held == 7).sum() == 4
    assert set(shown[::2].unique().tolist()) <= {0.0, 1.0}
    model.settings = Settings()
    x = torch.randn(4, 2, requires_grad=True)
    assert torch.equal(model.mixed(x), x)


def test_a_pack_of_one_is_the_discriminator_itself():
    torch.manual_seed(0)
    network = build(config(METHODS["gan"])).model.discriminator
    x = torch.randn(6, 2)
    assert torch.equal(Packed(network, 1)(x), network(x))


# --- What the switches of the players give by themselves -------------------------------------------------------------


def test_adam_for_the_generator_and_sgd_for_the_discriminator(tmp_path):
    asked = ["model.d_optimizer._target_=torch.optim.SGD", "~model.d_optimizer.betas", "model.d_optimizer.lr=0.1"]
    fitted = fit([*METHODS["gan"], *asked], 3, tmp_path)
    assert [type(optimizer) for optimizer in fitted.trainer.optimizers] == [torch.optim.SGD, torch.optim.Adam]
    assert all(p.isfinite().all() for p in fitted.model.parameters())


def test_real_samples_and_fakes_go_through_the_discriminator_apart(tmp_path):
    """A discriminator with batch norm takes the statistics of one kind at a time."""
    seen = []
    fit(
        ["model=dcgan", "data=digits", "data.image_size=16", "network.width=4"],
        1,
        tmp_path,
        before=lambda model: model.discriminator.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach())),
    )
    assert [len(x) for x in seen] == [8, 8, 8]  # real, fake; the generator's fakes
    network = build(config(["model=dcgan", "data=digits", "data.image_size=16", "network.width=4"])).model.discriminator
    with torch.no_grad():
        apart, together = network(seen[0]), network(torch.cat(seen[:2]))[:8]
    assert (apart - together).abs().max() > 1e-3
