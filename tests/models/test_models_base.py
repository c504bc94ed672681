"""The contracts of the base class, each on the smallest model that shows it."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.testing import assert_close

import genlab
from genlab.config.composition import insisted
from genlab.contracts import CAPABILITIES
from genlab.engine.averages import averaged_names
from genlab.engine.players import Turn
from genlab.engine.schedules import WindowedPlateau
from genlab.engine.watch import WATCHED_AT_MOST, of_gradients
from genlab.errors import TrainingStopped, UserError
from genlab.models.base import GenerativeModel
from genlab.networks.codebook import Codebook
from genlab.runs import running, start
from tests.models.helpers import METHODS, ORDER, SGD, Batches, Each, Memory, Updates, config, fit, snapshot
from tests.models.toys import Walk, Weights

pytestmark = pytest.mark.usefixtures("one_thread")
TOYS = "tests.models.toys"
POINTS = ["data=ring"]


def walk(**kwargs):
    """The config of a `Walk`."""
    return {"_target_": f"{TOYS}.Walk", "optimizer": SGD, **kwargs}


def built(name="gan", *overrides):
    """A method's model, not trained."""
    return running.build(config([*METHODS[name], *overrides])).model


# The iteration


def step_of(model):
    return model.trainer.global_step


@pytest.mark.parametrize("name", METHODS)
def test_one_training_step_is_one_global_step(name, tmp_path):
    """Whether it holds one, two or six updates."""
    each, updates, batches = Each(step_of), Updates(), Batches()
    fitted = fit(METHODS[name], 4, tmp_path, [each, updates, batches])
    assert each.seen == [1, 2, 3, 4] and len(batches.seen) == 4
    assert len(updates.steps) == 4 * len(ORDER[name])
    assert fitted.trainer.global_step == fitted.model.iteration == 4
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 4
    resumed = fit(METHODS[name], 6, tmp_path, [each], resume=path)
    assert each.seen == [1, 2, 3, 4, 5, 6] and resumed.trainer.global_step == 6


@pytest.mark.parametrize("every", [1, 1000])
def test_a_model_without_any_optimizer(every, tmp_path):
    """It is fitted in `initialise`, and counted, checkpointed and loaded as any other."""
    each = Each(step_of)
    overrides = [*POINTS, f"trainer.log_every_n_steps={every}"]
    fitted = fit(overrides, 3, tmp_path, [each], model={"_target_": f"{TOYS}.Mean"}, trainer={"logger": [Memory()]})
    assert each.seen == [1, 2, 3] and fitted.model.players == {}
    x = torch.cat([b.x for b in fitted.data.first_batches(4)])
    assert_close(fitted.model.sample(2), x.mean(dim=0).expand(2, 2))
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 and not any(checkpoint["optimizer_states"])
    assert_close(checkpoint["state_dict"]["mean"], fitted.model.mean)


def test_an_iteration_gets_fresh_batches_for_each_update(tmp_path):
    """`batches_per_step` of them in one batch, none twice within an epoch."""
    batches = Batches()
    fitted = fit(METHODS["wgan_gp"], 3, tmp_path, [batches])
    assert fitted.model.batches_per_step == fitted.data.batches_per_step == 5
    assert [b.x.shape for b in batches.seen] == 3 * [(40, 2)]
    indices = torch.cat([b["index"] for b in batches.seen])
    assert len(indices.unique()) == 120


def test_schedules_step_once_per_iteration(tmp_path):
    """Not once per update: the critic is updated five times."""
    schedule = "{_target_:torch.optim.lr_scheduler.StepLR,_partial_:true,step_size:2,gamma:0.5}"
    overrides = [*METHODS["wgan_gp"], f"+model.c_scheduler={schedule}", "model.c_optimizer.lr=0.08"]
    each = Each(lambda model: [o.param_groups[0]["lr"] for o in model.trainer.optimizers])
    fit(overrides, 5, tmp_path, [each])
    assert_close([rates[0] for rates in each.seen], [0.08, 0.04, 0.04, 0.02, 0.02])
    assert_close([rates[1] for rates in each.seen], 5 * [1e-4])


# Players and turns


@pytest.mark.parametrize("broken", [False, True])
def test_a_turn_freezes_the_others_and_gives_them_back(broken):
    """Whether it ends well or in an exception."""
    model = built()
    g, d = model.players["generator"], model.players["discriminator"]
    with contextlib.suppress(ZeroDivisionError), model.turn("generator"):
        assert all(p.requires_grad for p in g) and not any(p.requires_grad for p in d)
        if broken:
            raise ZeroDivisionError
    assert all(p.requires_grad for p in (*g, *d))


def test_a_turn_lets_an_exception_through():
    with pytest.raises(ZeroDivisionError), built().turn("generator"):
        raise ZeroDivisionError


def test_a_turn_wakes_only_what_it_froze():
    """A weight that was frozen before, such as a layer that is kept, stays so."""
    model = built()
    model.discriminator.head.bias.requires_grad_(False)
    with model.turn("generator"):
        pass
    assert not model.discriminator.head.bias.requires_grad and model.discriminator.head.weight.requires_grad


def test_turns_within_turns():
    model = built()
    g, d = model.players["generator"], model.players["discriminator"]
    with model.turn("generator"):
        with model.turn("generator"):
            pass
        assert not any(p.requires_grad for p in d)
    assert all(p.requires_grad for p in (*g, *d))


def test_what_nobody_owns_stays_frozen(tmp_path):
    fitted = fit(POINTS, 2, tmp_path, model=walk())
    assert not any(p.requires_grad for p in fitted.model.idle.parameters())
    assert torch.equal(fitted.model.idle.weight, torch.zeros(2))


def test_a_turn_in_training_uses_no_gradient_of_others(tmp_path):
    """In the generator's update no gradient of the discriminator is computed: its last one is the same tensor."""
    seen = {}

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            d, g = trainer.optimizers
            head = pl_module.discriminator.head.weight
            d.register_step_post_hook(lambda *_: seen.update(grad=head.grad, values=head.grad.clone()))
            g.register_step_pre_hook(
                lambda *_: seen.update(same=head.grad is seen["grad"] and torch.equal(head.grad, seen["values"]))
            )

    fit(METHODS["gan"], 1, tmp_path, [Watch()])
    assert seen["same"] is True


def test_players_share_nothing():
    model = GenerativeModel()
    layer = nn.Linear(2, 2)
    model.add_player("a", layer)
    with pytest.raises(ValueError, match="share no parameter"):
        model.add_player("b", nn.Sequential(layer, nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'a' clashes"):
        model.add_player("a", nn.Linear(2, 2))
    assert list(model.players) == ["a"] and len(model.players["a"]) == 2
    assert isinstance(model.turn("a"), Turn)


def test_the_players_clip_wins(tmp_path):
    """The gradient of `slope * sum(w)` has the norm slope * sqrt(2); one update goes lr times the clipped one."""
    for run, (clip, of_player, length) in enumerate(
        [(None, None, 10 * math.sqrt(2)), (1.0, None, 1.0), (1.0, 0.5, 0.5)]
    ):
        memory = Memory()
        overrides = [*POINTS, f"optim.clip={'null' if clip is None else clip}"]
        model = walk(slope=10.0, clip=of_player)
        fitted = fit(overrides, 1, tmp_path / str(run), model=model, trainer={"logger": [memory]})
        assert_close((1 - fitted.model.generator.weight.detach()).norm().item(), 0.1 * length, rtol=1e-5, atol=0)
        assert_close(memory.curves["train/grad_norm_generator"][1], 10 * math.sqrt(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_factor_scales_every_players_learning_rate(scale, tmp_path):
    """Schedules start from the scaled one, and a resumed run keeps it as it is."""
    memory = Memory()
    overrides = [*METHODS["gan"], f"optim.lr_scale={scale}", "model.g_optimizer.lr=0.01", "model.d_optimizer.lr=0.02"]
    linear = {"_target_": "torch.optim.lr_scheduler.LinearLR", "_partial_": True, "total_iters": 10}
    given = config(overrides)["model"] | {"g_scheduler": {**linear, "start_factor": 1.0, "end_factor": 0.5}}
    first = fit(overrides, 2, tmp_path, model=given)
    again = fit(
        overrides,
        3,
        tmp_path,
        resume=first.folder / "checkpoints" / "last.ckpt",
        model=given,
        trainer={"logger": [memory]},
    )
    rates = [optimizer.param_groups[0]["lr"] for optimizer in again.trainer.optimizers]
    assert_close(rates, [scale * 0.02, scale * 0.01 * (1 - 0.05 * 3)], rtol=1e-6, atol=0)


def test_each_player_is_clipped_alone(tmp_path):
    """Every update of either goes exactly lr times the largest norm, with plain SGD and gradients above it."""
    overrides = [*METHODS["gan"], "optim.clip=0.001"]
    for player, lr in (("g", 0.5), ("d", 0.25)):
        node = f"model.{player}_optimizer"
        overrides += [f"~{node}.betas", f"{node}._target_=torch.optim.SGD", f"{node}.lr={lr}"]
    before = {}
    fitted = fit(overrides, 1, tmp_path, before=lambda model: before.update(snapshot(model)))
    after = snapshot(fitted.model)
    for player, lr in (("generator", 0.5), ("discriminator", 0.25)):
        way = torch.cat([(after[player][k] - v).flatten() for k, v in before[player].items()]).double()
        assert_close(way.norm().item(), lr * 0.001, rtol=1e-3, atol=0)


# What is recorded


def test_values_are_written_every_n_iterations(tmp_path):
    """At the first, at each n-th and at the last one, each with its own iteration's values."""
    memory = Memory()
    overrides = [*POINTS, "trainer.log_every_n_steps=4"]
    fitted = fit(overrides, 10, tmp_path, model=walk(), trainer={"logger": [memory]})
    expected = {"train/g_loss", "train/step", "train/grad_norm_generator", "lr/generator"}
    assert set(memory.curves) == expected
    assert all(list(curve) == [1, 4, 8, 10] for curve in memory.curves.values())
    assert memory.curves["train/step"] == {1: 1.0, 4: 4.0, 8: 8.0, 10: 10.0}
    assert_close(memory.curves["train/g_loss"][10], 2 * (1 - 9 * 0.1), rtol=1e-5, atol=1e-6)
    assert memory.curves["lr/generator"][10] == 0.1
    assert_close(fitted.trainer.callback_metrics["train/step"].item(), 10.0)


def test_a_discriminators_health(tmp_path):
    memory = Memory()
    fit(METHODS["gan"], 1, tmp_path, trainer={"logger": [memory]})
    assert {"train/acc_real", "train/acc_fake", "train/logits_real", "train/logits_fake"} <= set(memory.curves)
    model = built()
    model.watching.logging = True
    model.record_logits(torch.tensor([1.0, 2.0, -3.0, 0.5]), torch.tensor([-1.0, 1.0]))
    found = {k: float(v) for k, v in model.watching.recorded.items()}
    assert found == {"logits_real": 0.125, "logits_fake": 0.0, "acc_real": 0.75, "acc_fake": 0.5}


# NaN


@pytest.mark.parametrize("every", [1, 5, 1000])
def test_a_nan_stops_the_run_and_leaves_the_last_good_checkpoint(every, tmp_path):
    """It is named with its player and iteration, even where it is found later."""
    overrides = [*POINTS, f"trainer.log_every_n_steps={every}", "checkpoint.every_n_steps=3"]
    with pytest.raises(
        TrainingStopped, match=r"the generator's loss became nan in iteration 7 \(not finite: g_loss\)\..*last\.ckpt"
    ) as stopped:
        start.train(config(overrides, 20, model=walk(nan_at=7)), tmp_path)
    assert len(str(stopped.value)) < 400
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert_close(checkpoint["state_dict"]["generator.weight"], torch.full((2,), 1 - 6 * 0.1))
    import genlab

    assert genlab.load(tmp_path, allow_targets=("tests.*",)).sample(3).isfinite().all()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("every", [1, 1000])
def test_a_gradient_that_is_infinite_is_named(every, tmp_path):
    """Of a finite loss, right before a checkpoint; found at once or later."""
    overrides = [*POINTS, "checkpoint.every_n_steps=3", f"trainer.log_every_n_steps={every}"]
    with pytest.raises(TrainingStopped, match=r"the generator's gradient was not finite in iteration 6"):
        start.train(config(overrides, 20, model=walk(inf_gradient_at=6)), tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """Whatever broke them; large ones are no mistake, though their norm overflows."""
    model = fit(POINTS, 1, tmp_path / "run", model=walk()).model
    model.generator.weight.data.fill_(3e38)
    model.check_parameters()
    model.generator.weight.data[1] = float("inf")
    with pytest.raises(TrainingStopped, match=r"parameters of the generator are no longer finite after iteration 1"):
        model.check_parameters()


def test_watching_gradients_changes_no_bit_of_them(tmp_path):
    """Of either precision, contiguous or not."""
    model = fit(POINTS, 1, tmp_path / "run", model=walk()).model
    turn = model.turn("generator")
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    turn.parameters = [torch.nn.Parameter(torch.randn(6, 8).to(dtype)[:, ::2]) for dtype in dtypes]
    for parameter in turn.parameters:
        parameter.grad = (torch.randn(6, 8) * 1e-42).to(parameter.dtype)[:, ::2]
    before = [parameter.grad.clone() for parameter in turn.parameters]
    model.watch(turn.name, of_gradients(turn.parameters), "gradient")
    model.check_finite()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, turn.parameters, strict=True))
    turn.parameters[2].grad[3, 1] = float("nan")
    model.watch(turn.name, of_gradients(turn.parameters), "gradient")
    with pytest.raises(TrainingStopped, match="the generator's gradient was not finite"):
        model.check_finite()


def test_what_is_watched_is_looked_at_now_and_then(tmp_path):
    """A run that writes no curves and no checkpoints still stops, and keeps no endless list."""
    overrides = [*POINTS, "trainer.log_every_n_steps=100000", "checkpoint.every_n_steps=100000"]
    with pytest.raises(TrainingStopped, match="became nan in iteration 7"):
        start.train(config(overrides, WATCHED_AT_MOST + 20, model=walk(nan_at=7)), tmp_path)
    fitted = fit(overrides, WATCHED_AT_MOST + 20, tmp_path / "run", model=walk()).model
    assert len(fitted.watching._watched) <= 2 * WATCHED_AT_MOST and len(fitted.watching._history) <= WATCHED_AT_MOST


def test_a_nan_before_any_checkpoint(tmp_path):
    with pytest.raises(TrainingStopped, match=r"in iteration 1 .*No checkpoint had been written yet"):
        start.train(config(POINTS, 20, model=walk(nan_at=1)), tmp_path)
    assert not list(tmp_path.glob("**/*.ckpt"))


# Noise


@pytest.mark.parametrize("name", ["gan", "began"])
def test_processes_share_one_stream_of_noise(name):
    """Two that draw n get the two halves of the 2 n that one draws, draw after draw."""

    def draws(rank, world, n):
        model = built(name)
        model.stream.rank, model.stream.world = rank, world
        model.rng.manual_seed(3)
        return [model.noise(n), model.randn(n, 3, 2), model.rand(n), model.noise(n)]

    for whole, first, second in zip(draws(0, 1, 20), draws(0, 2, 10), draws(1, 2, 10), strict=True):
        assert torch.equal(torch.cat([first, second]), whole)
        assert not torch.equal(first, second)


def test_noise_has_the_laws_that_are_stated():
    model = built("began")
    uniform, normal, unit = model.noise(4000), model.randn(4000, 4), model.rand(4000, 4)
    assert uniform.shape == (4000, model.latent_dim) and -1 <= uniform.min() < -0.99 and 0.99 < uniform.max() <= 1
    assert_close(uniform.var().item(), 1 / 3, rtol=0.02, atol=0)
    assert_close((normal.mean().item(), normal.var().item()), (0.0, 1.0), rtol=0.05, atol=0.05)
    assert unit.min() >= 0 and unit.max() < 1 and abs(unit.mean() - 0.5) < 0.02


def test_the_seed_makes_the_noise_of_training(tmp_path):
    """The same for one seed, another for another, and none of it from the global stream."""
    states = {}
    for run, seed in enumerate((0, 0, 1)):
        fitted = fit([*METHODS["gan"], f"seed={seed}"], 2, tmp_path / str(run))
        states[run] = fitted.model.rng.get_state()
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


# Moving averages


def test_averages_follow_their_recursion(tmp_path):
    """decay_t = min(decay, (1 + t) / (10 + t)) for floats, from the initialised weights on; the rest is copied."""
    each = Each(lambda model: {k: v.clone() for k, v in model.averages.values.items()})
    fitted = fit([*POINTS, "ema.decay=0.25"], 8, tmp_path, [each], model=walk())
    weight, running_ = 1.0, 0.0
    for t, seen in enumerate(each.seen, start=1):
        decay = min(0.25, (1 + t) / (10 + t))
        weight = decay * weight + (1 - decay) * (1 - 0.1 * t)
        running_ = decay * running_ + (1 - decay) * 0.5 * t
        assert_close(seen["generator.weight"], torch.full((2,), weight))
        assert_close(seen["generator.running"], torch.full((3,), running_))
        assert seen["generator.count"].item() == 2 * t and seen["generator.count"].dtype == torch.int64
        assert seen["generator.seen"].item() is (t % 2 == 1)
    # Both sides of the warm-up were seen: 2/11 and 3/12 = 0.25 and after.
    assert set(fitted.model.averages.values) == {
        "generator.weight",
        "generator.running",
        "generator.count",
        "generator.seen",
    }
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert_close(checkpoint["genlab"]["ema"]["generator.weight"], torch.full((2,), weight))


def averaged_spectral_norms(model):
    """(layer, its spectral norm) of all averaged modules."""
    for name in model.ema_modules:
        for layer in model.get_submodule(name).modules():
            if is_parametrized(layer, "weight"):
                yield from ((layer, p) for p in layer.parametrizations.weight if isinstance(p, _SpectralNorm))


def assert_spectral_norms(model):
    for layer, norm in averaged_spectral_norms(model):
        assert_close((float(norm._u.norm()), float(norm._v.norm())), (1.0, 1.0), rtol=1e-5, atol=0)
        found = torch.linalg.matrix_norm(norm._reshape_weight_to_matrix(layer.weight), ord=2)
        assert_close(found.item(), 1.0, rtol=0.1, atol=0)


def with_averaged_spectral_norms():
    """The overrides of every model config in whose averaged modules a layer has spectral norm."""
    for name in sorted(p.stem for p in Path("configs/model").glob("*.yaml")):
        data = [] if insisted(name, "data") else ["data=digits", "network=mlp_image"]
        if any(averaged_spectral_norms(running.build(config([f"model={name}", *data])).model)):
            yield [f"model={name}", *data]


@pytest.mark.matrix
def test_spectral_norms_hold_in_the_average(tmp_path):
    """Singular vectors are copied and fitted to the averaged weights: a mean of unit vectors is no unit vector."""
    found = list(with_averaged_spectral_norms())
    assert len(found) >= 2  # InfoGAN's trunk, AVB's judge
    for number, overrides in enumerate(found):
        folder = tmp_path / str(number)
        model = fit([*overrides, "ema.decay=0.99", "optim.lr_scale=10"], 60, folder).model
        vectors = {key: value.clone() for key, value in model.averages.values.items() if key.endswith(("._u", "._v"))}
        live = model.state_dict()
        assert vectors and all(torch.equal(value, live[key]) for key, value in vectors.items())
        with model.inference():
            assert_spectral_norms(model)
        assert all(
            torch.equal(model.averages.values[key], value) for key, value in vectors.items()
        )  # a look leaves no trace
        loaded = genlab.load(folder / "checkpoints" / "last.ckpt")
        assert_spectral_norms(loaded)
        with model.inference():  # the same vectors are judged while training and afterwards
            assert all(torch.equal(loaded.state_dict()[key], model.state_dict()[key]) for key in vectors)


def test_what_is_averaged():
    """Parameters, statistics of norms and what a part lists; of a user's network too."""

    class Own(nn.Module):
        averaged_buffers = ("listed",)

        def __init__(self):
            super().__init__()
            for name in ("listed", "other"):
                self.register_buffer(name, torch.zeros(2))

    network = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2)), nn.BatchNorm1d(2), Own())
    wanted = {"0.weight_orig", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.listed"}
    assert averaged_names(network) == wanted
    assert averaged_names(Codebook(4, 2)) == {"vectors", "counts", "sums"}


def test_no_average_is_kept_without_a_decay(tmp_path):
    fitted = fit([*POINTS, "ema.decay=0"], 3, tmp_path, model=walk())
    assert fitted.model.averages.values == {}
    assert_close(fitted.model.sample(1)[0], fitted.model.generator.weight.detach())
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["genlab"]["ema"] == {}


def tensors(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A trained GAN with batch norm whose averages differ from its weights."""
    overrides = ["model=gan", "data=digits", "network.generator.hidden=[16]", "network.discriminator.hidden=[16]"]
    return fit([*overrides, "ema.decay=0.9"], 6, tmp_path_factory.mktemp("averaged")).model


def test_averages_follow_weights_that_have_moved(tmp_path):
    """Another type makes new tensors of buffers and averages alike; the next update pairs them as before."""
    model = fit([*POINTS, "ema.decay=0.25"], 8, tmp_path, model=walk()).model.double()
    before = {key: value.clone() for key, value in model.averages.values.items()}
    model.generator.running += 4
    with torch.no_grad():
        model.generator.weight += 4
    model.averages.update(model.settings.ema_decay, model.watching.done)
    for key in ("weight", "running"):
        live, average = getattr(model.generator, key).detach(), model.averages.values[f"generator.{key}"]
        assert average.dtype == torch.float64
        assert_close(average, 0.25 * before[f"generator.{key}"] + 0.75 * live)


def test_swapping_in_the_averages_is_exact(averaged):
    """Inside they are the weights, outside every bit is back, in the same tensors; after an exception too."""
    live, average = tensors(averaged), {k: v.clone() for k, v in averaged.averages.values.items()}
    parameters = list(averaged.parameters())
    with contextlib.suppress(ZeroDivisionError), averaged.ema():
        for key, value in tensors(averaged).items():
            assert torch.equal(value, average.get(key, live[key])), key
        raise ZeroDivisionError
    for key, value in tensors(averaged).items():
        assert torch.equal(value, live[key]), key
    assert all(torch.equal(averaged.averages.values[k], v) for k, v in average.items())
    assert all(a is b for a, b in zip(averaged.parameters(), parameters, strict=True))
    assert any(not torch.equal(live[k], v) for k, v in average.items())


def test_samples_are_of_the_averages_also_inside_another_inference(averaged):
    """A capability may call another, or a script hold the averages in place for many calls."""

    def draw():
        return averaged.sample(5, rng=torch.Generator().manual_seed(0))

    sample = draw()
    with torch.no_grad():
        averaged.generator.eval()
        z = averaged.noise(5, torch.Generator().manual_seed(0))
        live = averaged.generator(z)
        averaged.generator.train()
    assert not torch.equal(sample, live)
    for context in (averaged.ema, averaged.inference):
        with context():
            assert torch.equal(draw(), sample)
            assert torch.equal(draw(), sample)
    assert torch.equal(draw(), sample)


def test_inference_gives_each_module_its_own_mode_back(averaged):
    modules = list(averaged.modules())
    for i, module in enumerate(modules):
        module.training = i % 3 == 0
    try:
        state = tensors(averaged)
        with contextlib.suppress(ZeroDivisionError), averaged.inference():
            assert not any(module.training for module in modules) and not torch.is_grad_enabled()
            raise ZeroDivisionError
        averaged.sample(3)
        assert [module.training for module in modules] == [i % 3 == 0 for i in range(len(modules))]
        assert torch.is_grad_enabled()
        for key, value in tensors(averaged).items():
            assert torch.equal(value, state[key]), key  # no batch statistics moved
    finally:
        averaged.train()


def test_averages_go_where_the_model_goes(averaged):
    """To another type here, to another device alike: Lightning itself takes a model off the GPU after training."""
    sample = averaged.sample(2, rng=torch.Generator().manual_seed(0))
    try:
        averaged.double()
        assert all(v.dtype == torch.float64 for v in averaged.averages.values.values() if v.is_floating_point())
        assert averaged.generator(averaged.noise(2)).dtype == torch.float64
        assert averaged.sample(2).dtype == torch.float64
    finally:
        averaged.float()
    assert_close(averaged.sample(2, rng=torch.Generator().manual_seed(0)), sample)


# Randomness of what is not training


def test_the_global_seed_governs_samples_without_a_generator(averaged):
    noise = averaged.rng.get_state()
    torch.manual_seed(1)
    first, second = averaged.sample(3), averaged.sample(3)
    torch.manual_seed(1)
    assert torch.equal(averaged.sample(3), first) and not torch.equal(first, second)
    assert torch.equal(averaged.rng.get_state(), noise)  # the stream of training was not touched


def test_a_generator_may_be_given_in_any_way(averaged):
    by_name = averaged.sample(3, rng=torch.Generator().manual_seed(2))
    assert torch.equal(averaged.sample(3, None, torch.Generator().manual_seed(2)), by_name)
    noise = averaged.rng.get_state()
    torch.manual_seed(1)
    default = averaged.sample(3)
    torch.manual_seed(1)
    assert torch.equal(averaged.sample(3, None, None), default) and torch.equal(averaged.rng.get_state(), noise)
    rng = torch.Generator().manual_seed(2)
    assert torch.equal(averaged.sample(3, rng=rng), by_name) and not torch.equal(averaged.sample(3, rng=rng), by_name)


# Plateau


def plateau(**kwargs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rule = {"monitor": "m", "window": 3, "factor": 0.5, "patience": 1, "min_lr": 0.2, **kwargs}
    return WindowedPlateau(optimizer, **rule)


def rates(scheduler, values):
    """The learning rate after each observed value."""
    found = []
    for v in values:
        scheduler.observe(torch.as_tensor(v), lambda mean: mean)
        found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_falls_when_window_means_stall():
    """Windows of 3: the first sets the mark, the second is waited for, the third halves; never below the floor."""
    assert rates(plateau(), 30 * [1.0])[:9] == 8 * [1.0] + [0.5]
    assert rates(plateau(), 60 * [1.0])[-1] == 0.2
    assert rates(plateau(), [1 / (i + 1) for i in range(30)]) == 30 * [1.0]
    noisy = [10.0, 0.0, 2.0] * 2 + [9.0, 0.0, 0.0] * 2  # means 4, 4, 3, 3: improved in between
    assert rates(plateau(), noisy) == 12 * [1.0]


def test_the_plateau_is_judged_on_the_mean_over_processes_once_per_window():
    means = []
    scheduler = plateau()
    for v in range(7):
        scheduler.observe(torch.tensor(float(v)), lambda mean: means.append(mean.item()) or mean)
    assert means == [1.0, 4.0]


def test_the_plateaus_state_survives_in_the_middle_of_a_window(tmp_path):
    values = [1.0, 2.0, 3.0, 1.0, 2.5, 3.0, 2.0, 1.0, 4.0, 4.0, 4.0, 4.0]
    whole = rates(plateau(), values)
    for cut in range(1, len(values)):
        first, second = plateau(), plateau()
        rates(first, values[:cut])
        torch.save([first.state_dict(), first.optimizer.state_dict()], tmp_path / "state")
        state, rate = torch.load(tmp_path / "state", weights_only=True)
        second.load_state_dict(state)
        second.optimizer.load_state_dict(rate)
        assert rates(second, values[cut:]) == whole[cut:], cut


def test_a_plateau_in_training_and_across_a_resume(tmp_path):
    """A loss that never falls; the checkpoint lies in the middle of a window."""
    rule = {"_target_": "genlab.engine.schedules.WindowedPlateau", "_partial_": True, "monitor": "g_loss", "window": 3}
    model = walk(slope=0.0, scheduler={**rule, "factor": 0.5, "patience": 0, "min_lr": 0.0})
    each = Each(lambda model: model.trainer.optimizers[0].param_groups[0]["lr"])
    fit(POINTS, 5, tmp_path, [each], model=model)
    fit(POINTS, 10, tmp_path, [each], model=model, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert each.seen == 5 * [0.1] + 3 * [0.05] + 2 * [0.025]


def test_a_plateau_on_a_value_that_is_not_recorded(tmp_path):
    overrides = [*METHODS["began"], "model.g_scheduler.monitor=m_globe"]
    with pytest.raises(UserError, match=r"m_globe.*m_global"):
        start.train(config(overrides, 2), tmp_path)


# Start and resume


def test_initialise_runs_once_and_not_on_resume(tmp_path):
    """It sees whole first batches; a resumed run goes on from its weights, as one that was never interrupted."""
    first = fit(POINTS, 3, tmp_path / "run", model=walk())
    assert first.model.starts == [8] and first.model.initialised
    resumed = fit(POINTS, 6, tmp_path / "run", model=walk(), resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert resumed.model.starts == [] and resumed.model.initialised
    whole = fit(POINTS, 6, tmp_path / "whole", model=walk())
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    for key, value in whole.model.averages.values.items():
        assert torch.equal(resumed.model.averages.values[key], value), key
    assert torch.equal(resumed.model.rng.get_state(), whole.model.rng.get_state())


def test_float64_weights_resume_as_they_were(tmp_path):
    """Lightning converts a model only after it has read the checkpoint, which would round them to float32."""
    overrides = [*METHODS["gan"], "speed.precision=float64"]
    fit(overrides, 2, tmp_path / "run")
    resumed = fit(overrides, 4, tmp_path / "run", resume=tmp_path / "run" / "checkpoints" / "last.ckpt").model
    whole = fit(overrides, 4, tmp_path / "whole").model
    for key, value in {**whole.state_dict(), **whole.averages.values}.items():
        assert torch.equal((resumed.state_dict() | resumed.averages.values)[key], value), key


@pytest.mark.parametrize("name", METHODS)
def test_two_and_two_iterations_are_four(name, tmp_path):
    """Weights, averages, noise and every global stream, bit for bit."""
    overrides = [*METHODS[name], "trainer.log_every_n_steps=1"]
    fit(overrides, 2, tmp_path / "run")
    memories = Memory(), Memory()
    parts = [
        fit(overrides, 4, tmp_path / "run", resume=tmp_path / "run" / "checkpoints" / "last.ckpt",
            trainer={"logger": [memories[0]]}),
        fit(overrides, 4, tmp_path / "whole", trainer={"logger": [memories[1]]}),
    ]  # fmt: skip
    resumed, whole = (torch.load(p.folder / "checkpoints" / "last.ckpt", weights_only=True) for p in parts)
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    for key, value in whole["genlab"]["ema"].items():
        assert torch.equal(resumed["genlab"]["ema"][key], value), key
    for stream in ("noise", "torch", "python"):
        ours, theirs = (c["genlab"]["random"][0][stream] for c in (resumed, whole))
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, stream
    for curve in memories[1].curves:
        assert all(memories[0].curves[curve][step] == memories[1].curves[curve][step] for step in (3, 4)), curve


# Several batches side by side


def near(place):
    """The config of points near (place, place)."""
    return {"_target_": f"{TOYS}.Near", "place": place, "batch_size": 1}


def test_named_batches(tmp_path):
    """Each player sees its own domain, in an order of its own; a resumed run sees what an unbroken one would."""
    parts = {
        "model": {"_target_": f"{TOYS}.Unpaired", "optimizer": SGD},
        "data": {
            "_target_": "genlab.data.unpaired.Unpaired",
            "domains": {"a": near(-1.0), "b": near(1.0)},
            "batch_size": 8,
            "shape": [2],
        },
    }
    batches, tail = Batches(), Batches()
    fitted = fit(POINTS, 40, tmp_path / "whole", [batches], **parts)
    assert [set(b.columns) for b in batches.seen] == 40 * [{"a", "a.index", "b", "b.index", "x", "index"}]
    assert_close(fitted.model.a.weight.detach(), -torch.ones(2), rtol=0, atol=0.1)
    assert_close(fitted.model.b.weight.detach(), torch.ones(2), rtol=0, atol=0.1)
    assert not torch.equal(batches.seen[0]["a.index"], batches.seen[0]["b.index"])
    fit(POINTS, 20, tmp_path / "run", **parts)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resumed = fit(POINTS, 40, tmp_path / "run", [tail], resume=last, **parts)
    for name in ("a", "b"):
        for mine, theirs in zip(tail.seen, batches.seen[20:], strict=True):
            assert torch.equal(mine[name], theirs[name])
    assert torch.equal(resumed.model.a.weight, fitted.model.a.weight)


# Capabilities


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gan", {"sample", "decode", "score_logits"}),
        ("wgan_gp", {"sample", "decode", "score_logits"}),
        ("began", {"sample", "decode", "reconstruct"}),
        (
            "vae",
            {"sample", "encode", "decode", "reconstruct", "log_joint", "log_prior", "sample_prior", "sample_posterior"},
        ),
    ],
)
def test_capabilities(name, expected):
    """What is offered works on [N, ...] data, alone, without gradients and in eval mode."""
    model = built(name)
    assert {c for c in CAPABILITIES if model.can(c)} == expected
    with pytest.raises(AssertionError):
        model.can("dance")
    x, z = torch.randn(3, 2), torch.randn(3, model.latent_dim)
    shapes = {
        "sample": (lambda: model.sample(3), (3, 2)),
        "encode": (lambda: model.encode(x), (3, model.latent_dim)),
        "decode": (lambda: model.decode(z), (3, 2)),
        "reconstruct": (lambda: model.reconstruct(x), (3, 2)),
        "score_logits": (lambda: model.score_logits(x), (3,)),
        "log_joint": (lambda: model.log_joint(x, z), (3,)),
        "log_prior": (lambda: model.log_prior(z), (3,)),
        "sample_prior": (lambda: model.sample_prior(3), (3, model.latent_dim)),
        "sample_posterior": (lambda: model.sample_posterior(x, 4)[1], (4, 3)),
    }
    for capability in expected:
        call, shape = shapes[capability]
        result = call()
        assert result.shape == shape and not result.requires_grad
        assert model.training  # what it was before


def test_alone_a_value_is_its_own_mean_and_gathering(tmp_path):
    model = Walk()
    x = torch.ones(3, requires_grad=True)
    assert model.gathered(x) is x
    assert torch.equal(model.averaged(x), x) and not model.averaged(x).requires_grad
    assert model.iteration == 0 and isinstance(model.generator, Weights)
