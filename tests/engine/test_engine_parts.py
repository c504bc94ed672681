"""The parts of the engine, each alone: no Trainer, no method."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genlab.engine.averages import Averages
from genlab.engine.looking import looking
from genlab.engine.noise import Noise, random_states, restore_random_states
from genlab.engine.players import Players
from genlab.engine.pools import Pool
from genlab.engine.settings import Settings, Tricks
from genlab.engine.state import checkpoint_section
from genlab.engine.watch import WATCHED_AT_MOST, Watch, check_parameters, of_gradients
from genlab.errors import NotFinite, UserError

CPU = torch.device("cpu")


# --- Noise ----------------------------------------------------------------------------------------------------------


def stream(rank=0, world=1, seed=3):
    noise = Noise()
    noise.rng.manual_seed(seed)
    noise.rank, noise.world = rank, world
    return noise


def draw(noise, n=4, rng=None):
    return noise.draw(torch.randn, n, (2,), rng, CPU, torch.float64)


def test_processes_take_slices_of_one_draw():
    whole = draw(stream(), 8)
    parts = [draw(stream(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)


def test_common_draws_are_the_same_on_all_processes():
    noises = [stream(rank, 2) for rank in (0, 1)]
    found = []
    for noise in noises:
        with noise.common():
            found.append(draw(noise))
        draw(noise)
    assert torch.equal(*found)
    assert torch.equal(noises[0].rng.get_state(), noises[1].rng.get_state())


def test_another_stream_leaves_the_trainings_alone():
    noise = stream()
    before = noise.rng.get_state()
    own = draw(noise, rng=torch.Generator().manual_seed(1))
    assert torch.equal(noise.rng.get_state(), before)
    assert torch.equal(own, draw(stream(1, 4), rng=torch.Generator().manual_seed(1)))  # no slice of anything


def test_random_states_come_back():
    import random

    import numpy as np

    noise = stream()
    states = random_states(noise.rng)

    def drawn():
        return draw(noise), torch.rand(2), random.random(), np.random.rand()

    first = drawn()
    restore_random_states(states, noise.rng)
    again = drawn()
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2:] == again[2:]


# --- Pools ----------------------------------------------------------------------------------------------------------


def test_a_pool_fills_up_and_then_mixes():
    pool, rng = Pool(), torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=rng)

    def batch(value):
        return torch.full((4, 3), float(value))

    for value in (1, 2):  # room for eight
        assert torch.equal(pool.mixed(batch(value), 0.5, 8, rand), batch(value))
    assert pool.held[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    shown = pool.mixed(batch(3), 0.5, 8, rand)
    assert (shown[:, 0] == 3).sum() == 2 and (pool.held[:, 0] == 3).sum() == 2 and len(pool.held) == 8
    assert torch.equal(pool.mixed(batch(4), 0.0, 8, rand), batch(4)) and not (pool.held == 4).any()


def test_a_pool_survives_a_checkpoint():
    pool, other = Pool(), Pool()
    assert pool.state(1) == []
    other.load(pool.state(1), 0, CPU)
    assert len(other.held) == 0
    pool.mixed(torch.ones(4, 2), 0.5, 8, torch.rand)
    other.load([torch.zeros(1), *pool.state(1)], 5, CPU)  # of fewer processes than there are now: the last one's
    assert torch.equal(other.held, pool.held) and other.held is not pool.held


# --- Averages -------------------------------------------------------------------------------------------------------


class Part(nn.Module):
    """A model of one averaged layer and one that is not."""

    ema_modules = ("layer",)

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.differentiable = False
        self.averages = Averages(self)


def test_averages_follow_and_step_aside():
    model = Part()
    model.averages.start(0.9, CPU)
    with torch.no_grad():
        model.layer.weight += 1
    model.averages.update(0.9, 0)  # at the start the decay is 2/11
    assert model.averages.values["layer.weight"].tolist() == pytest.approx([1 + 9 / 11] * 2)
    assert set(model.averages.values) == {f"layer.{name}" for name in model.layer.state_dict()}
    with model.averages.inside(), model.averages.inside():
        assert model.layer.weight.tolist() == pytest.approx([1 + 9 / 11] * 2)
    assert model.layer.weight.tolist() == [2, 2]
    model.averages.settle()
    assert model.averages.settled and model.averages.values == {}
    assert model.layer.weight.tolist() == pytest.approx([1 + 9 / 11] * 2)


def test_averages_of_another_model_are_refused():
    model = Part()
    with pytest.raises(UserError, match=r"do not fit the model: layer\.bias is missing from the checkpoint"):
        model.averages.load({"layer.weight": torch.ones(2)})
    model.averages.start(0.0, CPU)
    assert model.averages.values == {}  # no decay, no average


def test_a_look_leaves_no_trace():
    model = Part()
    model.averages.start(0.9, CPU)
    model.other.eval()
    with torch.no_grad():
        model.layer.weight += 1
    with looking(model):
        assert not model.layer.training and not torch.is_grad_enabled() and model.layer.weight.tolist() == [1, 1]
    with looking(model, gradients=True), looking(model):
        assert torch.is_grad_enabled() and not model.layer.weight.requires_grad
    assert model.training and model.layer.training and not model.other.training
    assert model.layer.weight.requires_grad and model.layer.weight.tolist() == [2, 2] and not model.differentiable


# --- Watch ----------------------------------------------------------------------------------------------------------


def mean(value):
    return value


def test_the_first_bad_value_is_named_with_its_terms():
    watch = Watch()
    for done in range(4):
        watch.begin(done, False, mean)
        watch.recorded["kl"] = torch.tensor(float("inf") if done == 2 else 1.0)
        watch.recorded["grad_norm_vae"] = torch.tensor(float("nan"))
        watch.note("vae", torch.tensor(float("nan") if done >= 2 else 1.0), "loss")
    with pytest.raises(NotFinite, match=r"the vae's loss became nan in iteration 3 \(not finite: kl\)"):
        watch.check(mean)
    watch.check(mean)  # what was told is forgotten


def test_a_long_watch_looks_by_itself():
    watch = Watch()
    with pytest.raises(NotFinite, match="iteration 1"):
        for done in range(WATCHED_AT_MOST + 1):
            watch.begin(done, False, mean)
            watch.note("gan", torch.tensor(float("nan")), "loss")
    assert Watch().values(mean) == {}


def test_gradients_and_parameters_are_watched():
    layer = nn.Linear(2, 2)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
    assert of_gradients(list(layer.parameters())) == 0
    layer.bias.grad[1] = float("inf")
    assert of_gradients(list(layer.parameters())) == 1
    check_parameters({"a": list(layer.parameters()), "empty": []}, 5)
    with torch.no_grad():
        layer.weight[0, 0] = 1e30  # large, and finite
        check_parameters({"a": list(layer.parameters())}, 5)
        layer.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="parameters of the a are no longer finite after iteration 5"):
        check_parameters({"a": list(layer.parameters())}, 5)


# --- Players --------------------------------------------------------------------------------------------------------


class Game:
    """Two layers that play."""

    def __init__(self, **settings):
        self.settings, self.seen = Settings(**settings), []
        self.layers = {name: nn.Linear(1, 1, bias=False) for name in ("a", "b")}
        self.players = Players(self)
        for name, layer in self.layers.items():
            self.players.add(name, layer, lambda ps: torch.optim.SGD(ps, lr=0.5))
        self.optimizers, _ = self.players.optimizers()
        self.players.take(self.optimizers)

    def manual_backward(self, loss):
        loss.backward()

    def watch(self, name, value, what="loss"):
        self.seen.append((name, what))

    def step(self, *names):
        self.players.step(names, None)


def test_one_player_moves_and_the_others_are_frozen():
    game = Game(lr_scale=2.0)
    assert game.players.rates() == {"lr/a": 1.0, "lr/b": 1.0}
    before = {name: layer.weight.item() for name, layer in game.layers.items()}
    with game.players.turn("a") as a:
        assert not game.layers["b"].weight.requires_grad
        a.minimise(3 * game.layers["a"].weight.sum() + game.layers["b"].weight.sum())
    assert game.layers["a"].weight.item() == pytest.approx(before["a"] - 3)
    assert game.layers["b"].weight.item() == before["b"] and game.layers["b"].weight.requires_grad
    with game.players.turn("a", "b") as both:
        both.minimise(game.layers["a"].weight.sum() - game.layers["b"].weight.sum())
    assert game.layers["b"].weight.item() == pytest.approx(before["b"] + 1)
    assert game.seen == [("a", "loss"), ("a and b", "loss")]
    with pytest.raises(ValueError, match="players share no parameter"):
        game.players.add("c", game.layers["a"], torch.optim.SGD)


def test_before_a_step_gradients_are_remembered_watched_and_clipped():
    game = Game(clip=1.0, tricks=Tricks(historical_averaging=0.5))
    trainer = SimpleNamespace(optimizers=game.optimizers, precision_plugin=SimpleNamespace(scaler=None))
    watching, weight = Watch(), game.layers["b"].weight
    weight.grad = torch.full_like(weight, 7.0)
    game.players.before_step(game.optimizers[1], trainer, watching)
    assert weight.grad.item() == pytest.approx(1.0, abs=1e-5) and watching.recorded["grad_norm_b"].item() == 7
    assert game.seen == [("b", "gradient")] and game.players.turns["b"].updates == 1
    other = Game()
    other.players.load(game.players.state(), CPU)
    assert other.players.turns["b"].updates == 1 and other.players.turns["a"].updates == 0
    trainer.precision_plugin.scaler = object()  # float16's own watch
    game.players.before_step(game.optimizers[0], trainer, watching)
    assert game.seen == [("b", "gradient")]


# --- State ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [({}, "no complete section"), ({"genlab": {"format": 99, "config": 0, "ema": 0, "random": 0}}, "has format 99")],
)
def test_a_strangers_checkpoint_is_refused(checkpoint, words):
    with pytest.raises(UserError, match=words):
        checkpoint_section(checkpoint)
