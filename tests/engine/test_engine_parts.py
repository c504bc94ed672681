"""The parts of the engine, each alone: no Trainer, no method."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genlab.engine.averages import Averages
from genlab.engine.fakes import Fakes
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


def test_two_processes_have_the_pool_of_one():
    """Each sees its rows of the mixed global batch, and as many earlier ones as the other."""
    alone, shared = Pool(), [Pool(), Pool()]
    for step in range(6):
        whole = 10.0 * step + torch.arange(8.0)[:, None]

        def rand(*shape, step=step):
            return torch.rand(*shape, generator=torch.Generator().manual_seed(step))

        expected = alone.mixed(whole, 0.5, 16, rand)
        parts = [
            pool.mixed(x, 0.5, 16, rand, whole, i)
            for i, (pool, x) in enumerate(zip(shared, whole.chunk(2), strict=True))
        ]
        assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(shared[0].held, alone.held) and torch.equal(shared[1].held, alone.held)
        earlier = [int((part < 10 * step).sum()) for part in parts]
        assert earlier == ([2, 2] if step > 1 else [0, 0])


def test_a_pool_survives_a_checkpoint():
    pool, other = Pool(), Pool()
    assert pool.state() == []
    other.load(pool.state(), CPU)
    assert len(other.held) == 0
    pool.mixed(torch.ones(4, 2), 0.5, 8, torch.rand)
    other.load(pool.state(), CPU)
    assert torch.equal(other.held, pool.held) and other.held is not pool.held


# --- Fakes ----------------------------------------------------------------------------------------------------------


def fakes(reuse, mixed=lambda x: x):
    """G(z) = w z of the latents 1, 2, ...; returns w and the fakes."""
    w, latents = torch.tensor(3.0, requires_grad=True), iter(range(1, 9))
    return w, Fakes(lambda z: w * z, lambda: torch.tensor([float(next(latents))]), reuse, mixed)


def test_fakes_are_drawn_anew_for_the_generator():
    w, own = fakes(reuse=False)
    assert own.shown.item() == 3 and own.z.item() == 1 and not own.shown.requires_grad
    again = own.again()
    assert again.item() == 6 and own.z.item() == 2 and own.shown.item() == 3
    again.sum().backward()
    assert w.grad == 2


def test_fakes_are_reused_with_their_graph():
    w, own = fakes(reuse=True)
    assert own.shown.item() == 3 and not own.shown.requires_grad
    again = own.again()
    assert again.item() == 3 and own.z.item() == 1
    again.sum().backward()
    assert w.grad == 1


def test_earlier_fakes_are_mixed_in_once_and_for_the_discriminator_alone():
    calls = []
    _, own = fakes(reuse=True, mixed=lambda x: calls.append(1) or -x)
    assert calls == [] and own.shown.item() == -3 and own.shown.item() == -3 and calls == [1]
    assert own.again().item() == 3


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

    idle_optimizers = ("idle_optimizer",)

    def __init__(self, **settings):
        self.settings, self.seen = Settings(**settings), []
        self.layers = {name: nn.Linear(1, 1, bias=False) for name in ("a", "b")}
        self.players = Players(self)
        for name, layer in self.layers.items():
            self.players.add(name, layer, "optimizer")
        self.players.use({"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.5)})
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
        game.players.add("c", game.layers["a"], "optimizer")


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


def test_players_get_the_optimizers_of_their_keys():
    """Two players may share a key; a schedule belongs to the optimizer of the same prefix."""
    players = Players(Game())
    layers = {name: nn.Linear(1, 1) for name in ("one", "two", "three")}
    for name, key in (("one", "d_optimizer"), ("two", "d_optimizer"), ("three", "game.optimizer")):
        players.add(name, layers[name], key)

    def sgd(lr):
        return lambda parameters: torch.optim.SGD(parameters, lr=lr)

    halve = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)  # noqa: E731
    players.use(
        {
            "idle_optimizer": sgd(9.0),
            "d_optimizer": sgd(1.0),
            "game.optimizer": sgd(2.0),
            "game.scheduler": halve,
            "d_scheduler": None,
        }
    )
    optimizers, schedulers = players.optimizers()
    assert [o.param_groups[0]["lr"] for o in optimizers] == [1.0, 1.0, 2.0]
    assert [s.optimizer for s in schedulers] == [optimizers[2]]
    assert optimizers[1].param_groups[0]["params"] == list(layers["two"].parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"The a of Game needs an optimizer. Set model.optimizer="),
        ({"optimizer": None}, "The a of Game needs an optimizer"),
        (
            {"optimizer": torch.optim.SGD, "q_scheduler": None},
            "model.q_scheduler belongs to no player; Game has idle_optimizer, opt",
        ),
    ],
)
def test_optimizers_that_do_not_fit_the_players_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        Game().players.use(given)


def test_players_without_optimizers_cannot_train():
    players = Players(Game())
    players.add("a", nn.Linear(1, 1), "optimizer")
    with pytest.raises(UserError, match="The a has no optimizer"):
        players.optimizers()


# --- State ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [({}, "no complete section"), ({"genlab": {"format": 99, "config": 0, "ema": 0, "random": 0}}, "has format 99")],
)
def test_a_strangers_checkpoint_is_refused(checkpoint, words):
    with pytest.raises(UserError, match=words):
        checkpoint_section(checkpoint)
