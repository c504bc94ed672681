"""The health of the players: a collapse and a player out of play are said once, and looking leaves no trace."""

import logging
import math

import pytest
import torch

from genlab.batch import Batch
from genlab.callbacks.players import Players
from genlab.config.composition import compose
from genlab.runs import running
from tests.callbacks.test_callbacks_scores import same
from tests.models.helpers import METHODS, QUIET, RING, Memory, config

pytestmark = pytest.mark.usefixtures("one_thread")
OFTEN = ["trainer.log_every_n_steps=2"]


@pytest.fixture
def said(monkeypatch):
    """What is warned of, in order."""
    lines = []
    monkeypatch.setattr(logging.getLogger("genlab"), "warning", lambda form, *words: lines.append(form % words))
    return lines


def train(folder, overrides, steps, players, before=None, resume=None):
    parts = running.build(config([*OFTEN, *overrides], steps))
    if players is not None:
        parts.callbacks["players"] = players
    if before is not None:
        before(parts.model)
    memory = Memory()
    trainer = running.make_trainer(parts, folder, logger=[memory])
    trainer.fit(parts.model, datamodule=parts.data, ckpt_path=resume, weights_only=True)
    return memory, trainer


def constant(model):
    for parameter in model.generator.parameters():
        torch.nn.init.zeros_(parameter)


COLLAPSED = [*METHODS["gan"], "model.g_optimizer.lr=0", "data.batch_size=32"]


def test_a_collapse_is_said_once_also_after_a_resume(tmp_path, said):
    memory, trainer = train(tmp_path, COLLAPSED, 12, Players(2, window=3), constant)
    assert set(memory.curves["train/diversity"]) == {2, 4, 6, 8, 10, 12}
    assert max(memory.curves["train/diversity"].values()) < 1e-3
    (words,) = [line for line in said if "collapsed" in line]
    assert "4 iterations before 12" in words and "have never been diverse: it may also have started slowly" in words
    assert all(cure in words for cure in ("penalty=r1", "tricks.minibatch_discrimination=true", "tricks.packing=2"))
    again = Players(2, window=3)
    train(tmp_path, COLLAPSED, 18, again, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert len(again.looks) == 3
    assert sum("collapsed" in line for line in said) == 1


def test_only_switches_that_the_method_takes_are_named(tmp_path, said):
    train(tmp_path, ["model=began", "network=mlp", *RING, "model.g_optimizer.lr=0"], 2, Players(1, window=2), constant)
    (words,) = said
    assert "model=unrolled" in words
    assert "penalty=" not in words and "tricks." not in words


def test_a_healthy_game_is_not_warned_of(tmp_path, said):
    asked = compose(["experiment=gan_ring", *QUIET, "data.batch_size=256", "trainer.log_every_n_steps=20"])
    asked["trainer"]["max_steps"] = 400
    parts = running.build(asked)
    players = parts.callbacks["players"] = Players(20, window=5)
    running.make_trainer(parts, tmp_path, logger=[]).fit(parts.model, datamodule=parts.data)
    assert said == []
    assert len(players.looks) == 5 and all(0.4 < look[0] < 2 for look in players.looks)
    assert all(math.isfinite(value) for look in players.looks for value in look)


def test_a_discriminator_that_is_sure_is_warned_of_where_the_gradient_vanishes(tmp_path, said):
    def far_away(model):
        torch.nn.init.constant_(list(model.generator.parameters())[-1], 30.0)

    asked = [*METHODS["gan"], "model.g_optimizer.lr=0", "model.d_optimizer.lr=0.02", "data.batch_size=32"]
    for loss, verdict in (("minimax", True), ("non_saturating", False)):
        said.clear()
        train(tmp_path / loss, [*asked, f"loss={loss}"], 120, Players(2, window=5), far_away)
        assert sum("The discriminator has won: it is right on 100%" in line for line in said) == verdict


LOOK = [1.0, 0.8, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(
    ("look", "verdicts"),
    [
        (LOOK, []),
        ([0.29, *LOOK[1:]], ["collapse"]),
        ([0.31, *LOOK[1:]], []),
        ([1.0, 0.995, 0.995, 0.009, 1.0], ["discriminator"]),
        ([1.0, 0.995, 0.98, 0.009, 1.0], []),
        ([1.0, 0.995, 0.995, 0.011, 1.0], []),
        ([1.0, 0.3, 0.1, 1.0, 1.0], ["generator"]),
        ([1.0, 1.0, 0.0, 1.0, 1.0], []),  # the equilibrium of least squares with targets 0 and 1
        ([1.0, 1.0, 0.0, 1.0, 0.009], ["generator"]),
        ([1.0, 1.0, 0.2, 1.0, 0.009], []),
        ([1.0, *4 * [math.nan]], []),
        ([0.1, *4 * [math.nan]], ["collapse"]),
    ],
)
def test_verdicts(look, verdicts):
    players = Players(window=3)
    players.largest = [1.0, 1.0]
    for _ in range(2):
        players.add(look)
    assert players.verdicts(0.95) == []  # not yet
    players.add(look)
    assert players.verdicts(0.95) == verdicts
    assert players.verdicts(0.85) == [verdict for verdict in verdicts if verdict != "collapse"]  # not late enough
    players.add(LOOK)  # one good look acquits
    assert players.verdicts(0.6) == []


def said_of(diversity, planned, every=50, window=20):
    """The iterations at which a course of diversity, a value per look, gives the verdict of collapse."""
    players, found = Players(every, window=window), []
    for i, value in enumerate(diversity, 1):
        players.add([value, *4 * [math.nan]])
        if players.verdicts(i * every / planned):
            found.append(i * every)
    return found


# Recorded: the diversity of BEGAN on 10,000 faces (32 px, batch 16, network.width=16) every 50 iterations.
BEGAN = (
    *(0.163, 0.116, 0.099, 0.084, 0.098, 0.086, 0.079, 0.077, 0.079, 0.073, 0.080, 0.090, 0.091, 0.096, 0.111, 0.108),
    *(0.092, 0.103, 0.096, 0.090, 0.097, 0.098, 0.104, 0.113, 0.111, 0.126),
)
# Recorded: of EBGAN on CIFAR-10 (32 px, batch 16, network.width=16), every 100 iterations.
EBGAN = (
    *(0.001, 0.001, 0.015, 0.014, 0.013, 0.011, 0.011, 0.009, 0.009, 0.009),
    *(0.011, 0.011, 0.012, 0.015, 0.018, 0.022, 0.022, 0.021, 0.019, 0.021),
    *(0.018, 0.016, 0.016, 0.016, 0.014, 0.012, 0.015, 0.015, 0.014, 0.014),
    *(0.017, 0.016, 0.016, 0.016, 0.016, 0.017, 0.017, 0.018, 0.017, 0.018),
    *(0.022, 0.025, 0.030, 0.033, 0.036, 0.045, 0.057, 0.092, 0.130, 0.207),
)


def test_a_start_from_below_is_no_collapse():
    """Another such run had 0.075 at iteration 1,000 and drew varied faces by 3,500."""
    assert said_of(BEGAN, 5000) == []
    assert said_of(EBGAN, 5000, every=100, window=10) == []  # all samples were alike for 4,000 iterations
    assert said_of(EBGAN[:15], 1500, every=100, window=10) == [1400]  # and still were at the end of a shorter run
    began = [0.075] * 20 + [0.075 + 0.525 * i / 50 for i in range(50)] + [0.6] * 30
    assert said_of(began, 5000) == []
    assert said_of(began[:20], 1000) == [1000]  # a run that ends there
    assert said_of([0.075] * 100, 5000)[0] == 4500  # and one that never rises
    slowly = [0.05 * 1.02**i for i in range(80)]  # below 0.3 to the end, but rising
    assert said_of(slowly, 4000) == []


def test_a_fall_is_a_collapse_at_once():
    """As soon as the window agrees, from whatever the run had kept for half a window."""
    assert said_of([0.8] * 10 + [0.1] * 25, 10**6)[0] == 30 * 50
    assert said_of([0.28] * 10 + [0.1] * 25, 10**6)[0] == 30 * 50
    assert said_of([0.8] * 9 + [0.1] * 30, 10**6) == []  # too short to have been reached
    assert said_of([0.25] * 10 + [0.15] * 30, 10**6) == []  # no fall to half


def test_what_was_reached_outlives_a_resume():
    players, again = Players(window=4), Players(window=4)
    for value in (0.9, 0.8, *3 * [0.1]):
        players.add([value, *4 * [math.nan]])
    again.load_state_dict(players.state_dict())
    again.add([0.1, *4 * [math.nan]])
    assert again.verdicts(0.0) == ["collapse"]


def test_diversity_is_the_ratio_of_mean_distances(tmp_path):
    """Without features, in the data: a generator that halves its real samples is half as diverse."""
    model = running.build(config(METHODS["began"])).model
    real = torch.randn(16, 2)
    model.sample = lambda n, rng: 0.5 * real + 3
    torch.testing.assert_close(Players().diversity(model, ["discriminator"], Batch({"x": real})), torch.tensor(0.5))
    torch.testing.assert_close(
        Players().diversity(model, ["discriminator"], Batch({"x": real[:1].expand(4, 2)})), torch.tensor(1.0)
    )


def test_diversity_is_taken_in_the_discriminators_features():
    model = running.build(config(METHODS["gan"])).model
    real = torch.randn(16, 2)
    model.sample = lambda n, rng: 0.5 * real
    with torch.no_grad():
        near, far = (torch.pdist(model.discriminator.features(x)).mean() for x in (0.5 * real, real))
    torch.testing.assert_close(Players().diversity(model, ["discriminator"], Batch({"x": real})), near / far)


@pytest.mark.parametrize(
    "overrides",
    [
        [*METHODS["gan"], "tricks.instance_noise=0.1", "tricks.minibatch_discrimination=true"],
        ["model=dcgan", "data=digits", "network.width=4"],
        [*METHODS["wgan_gp"], "tricks.packing=2"],
    ],
)
def test_looking_leaves_no_trace(overrides, tmp_path):
    found = []
    for name, players in (("watched", Players(1, window=2)), ("alone", None)):
        memory, _ = train(tmp_path / name, overrides, 5, players)
        assert ("train/diversity" in memory.curves) == (name == "watched")
        found.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True))
    for part in ("state_dict", "optimizer_states", "genlab"):
        assert same(found[0][part], found[1][part]), part


def test_a_method_without_an_opponent_is_left_alone(tmp_path):
    memory, trainer = train(tmp_path, METHODS["vae"], 4, Players(1, window=1))
    assert "train/diversity" not in memory.curves


def test_it_is_part_of_every_run():
    assert isinstance(running.build(compose(["model=gan", "metrics=none"])).callbacks["players"], Players)


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"window": 0}, {"num_samples": 1}])
def test_sizes_are_checked(wrong):
    with pytest.raises(ValueError, match="callbacks.players needs"):
        Players(**wrong)
