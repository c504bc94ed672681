"""What is faster stays the same step: each switch of `speed` against exact mode, losses and gradients."""

import shutil
import threading

import pytest
import torch

from genlab.config import speed
from genlab.config.composition import compose
from genlab.engine.settings import Speed
from genlab.errors import UserError
from genlab.losses.numerics import eager
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, weights
from tests.models.helpers import QUIET, SGD, Each, fit

IMAGES = ["data=digits", "data.image_size=16", "network.width=16", "data.batch_size=64"]
CASES = {
    "gan": ["model=dcgan", *IMAGES],
    "wgan_gp": ["model=wgan_gp", "network=dcgan", "model.n_critic=2", *IMAGES],
    "began": ["model=began", "network=began", "loss.eta=2", *IMAGES],  # the gradient of eta=1 is a sign
    "vae": ["model=vae", "network=dcgan", *IMAGES],
}
EXACT, HALF = 1e-5, 2e-2


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Weights after some iterations, by method: at the start a discriminator says the same of all samples."""
    return {name: fit(case, 40, tmp_path_factory.mktemp(name)).model.state_dict() for name, case in CASES.items()}


def one_step(name, folder, *overrides, same_noise=False, weights=None):
    """Losses and gradients of one iteration from the same weights, batch and noise.

    Steps of length zero, so that every gradient is taken at the same weights. With `same_noise` each player gets the
    same latents, as it does where fakes are reused.
    """
    config = compose([*QUIET, *CASES[name], "trainer.log_every_n_steps=1", *overrides])
    for key in [k for k in config["model"] if k.endswith("optimizer")]:
        config["model"][key] = {**SGD, "lr": 0.0}
    gradients = {}

    def before(model):
        if weights is not None:
            model.load_state_dict(weights)

        def note(optimizer):
            index = model.trainer.optimizers.index(optimizer)
            gradients.setdefault(index, [p.grad.detach().clone() for g in optimizer.param_groups for p in g["params"]])

        model.on_before_optimizer_step = note
        if same_noise:
            draw = model.noise
            model.noise = lambda n, rng=None: draw(n, rng=torch.Generator().manual_seed(5))

    fitted = fit(
        [*CASES[name], *overrides, "trainer.log_every_n_steps=1"], 1, folder, before=before, model=config["model"]
    )
    losses = {k: v for k, v in fitted.model.watching.recorded.items() if "loss" in k}
    return {k: float(v) for k, v in losses.items()}, gradients


def compare(ours, exact, tolerance):
    """Losses, and each player's gradient as one vector, within a relative tolerance.

    In bfloat16 a gradient is held to the tolerance in its length and in its direction: entry by entry some tens of
    roundings of 2^-9 each add up to several percent, in whatever framework.
    """
    assert ours[0].keys() == exact[0].keys() and ours[0]
    for name, value in exact[0].items():
        assert ours[0][name] == pytest.approx(value, rel=tolerance, abs=tolerance)
    assert ours[1].keys() == exact[1].keys() and ours[1]
    for index, gradient in exact[1].items():
        a, b = (torch.cat([g.flatten() for g in gs]) for gs in (ours[1][index], gradient))
        if tolerance <= EXACT:
            assert float((a - b).norm() / b.norm()) < tolerance, index
        else:
            assert float(a.norm()) == pytest.approx(float(b.norm()), rel=tolerance), index
            assert 1 - float(torch.cosine_similarity(a, b, dim=0)) < tolerance, index


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("switch", "tolerance"),
    [
        ("speed.channels_last=true", EXACT),
        ("speed.fused=true", EXACT),
        ("speed.reuse_fakes=true", EXACT),
        ("speed.precision=bfloat16", HALF),
        ("speed.preset=fast", HALF),
    ],
)
def test_a_switch_leaves_the_step_as_it_is(name, switch, tolerance, warm, tmp_path):
    common = {"same_noise": "reuse" in switch or "fast" in switch, "weights": warm[name]}
    # In float32 another order of sums moves now and then a unit over the kink of its ReLU, and a gradient by 1e-3.
    precision = ["speed.precision=float64"] if tolerance == EXACT else []
    exact = one_step(name, tmp_path / "exact", *precision, **common)
    compare(one_step(name, tmp_path / "fast", switch, *precision, **common), exact, tolerance)


def test_other_noise_is_told_apart(tmp_path):
    """The comparison can fail: reused fakes against fakes drawn anew are another step."""
    exact = one_step("gan", tmp_path / "exact")
    with pytest.raises(AssertionError):
        compare(one_step("gan", tmp_path / "fast", "speed.reuse_fakes=true"), exact, HALF)


@pytest.mark.skipif(not speed._compiler(), reason="no C++ compiler")
def test_compiled_networks_and_eager_penalties(tmp_path):
    """WGAN-GP differentiates its critic twice, which compiled code cannot: it trains, and the step is the same."""
    small = ["data=ring", "network=mlp", "network.hidden=[8]", "model=wgan_gp", "model.n_critic=1"]
    CASES["compiled"] = small
    try:
        exact = one_step("compiled", tmp_path / "exact")
        compare(one_step("compiled", tmp_path / "fast", "speed.compile=true"), exact, EXACT)
    finally:
        del CASES["compiled"]


def test_the_fast_preset_resumes_bit_for_bit(tmp_path):
    common = [*QUIET, *CASES["gan"], "speed.preset=fast", "ema.decay=0.9", "checkpoint.every_n_steps=3"]
    train(compose([*common, "trainer.max_steps=6"]), tmp_path / "alone")
    train(compose([*common, "trainer.max_steps=3"]), tmp_path / "part")
    shutil.copytree(tmp_path / "part", tmp_path / "resumed")
    last = tmp_path / "resumed" / "checkpoints" / "last.ckpt"
    train(compose([*common, "trainer.max_steps=6"]), tmp_path / "resumed", resume=last)
    assert_identical(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))


def resolved(*overrides):
    """What a composition's `speed` comes to."""
    parts = build(compose([*QUIET, *overrides]))
    return parts.model.settings.speed, parts.precision


def test_what_the_presets_choose(monkeypatch):
    monkeypatch.setattr(speed, "cpu_multiplies_bfloat16", lambda: True)
    assert resolved(*CASES["gan"]) == (Speed(), "32-true")
    fast = Speed(reuse_fakes=True, channels_last=True, fused=True, tf32=True)
    assert resolved(*CASES["gan"], "speed.preset=fast") == (fast, "bf16-mixed")
    dense = Speed(reuse_fakes=True, fused=True, tf32=True)
    assert resolved("data=ring", "speed.preset=fast") == (dense, "32-true")
    wide = resolved("data=digits", "data.image_size=16", "network=mlp", "network.hidden=[512,512]", "speed.preset=fast")
    assert wide == (dense, "bf16-mixed")
    mixed = resolved(*CASES["gan"], "speed.preset=fast", "speed.precision=float32", "speed.fused=false")
    assert mixed == (Speed(reuse_fakes=True, channels_last=True, tf32=True), "32-true")
    assert resolved("data=ring", "speed.precision=float64")[1] == "64-true"
    monkeypatch.setattr(speed, "cpu_multiplies_bfloat16", lambda: False)
    assert resolved(*CASES["gan"], "speed.preset=fast") == (fast, "32-true")


def test_float16_does_not_fuse(monkeypatch):
    """Lightning leaves the unscaling to a fused kernel: what is clipped would be the gradient times its scale."""
    parts = build(compose([*QUIET, "data=ring"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    asked = {"trainer": {"accelerator": "gpu"}, "speed": {"preset": "fast", "precision": "float16"}}
    assert speed.resolve(asked, parts.model) == (Speed(reuse_fakes=True, tf32=True), "16-mixed")
    asked["speed"]["precision"] = "bfloat16"
    assert speed.resolve(asked, parts.model) == (Speed(reuse_fakes=True, fused=True, tf32=True), "bf16-mixed")
    asked["speed"] = {"precision": "float16", "fused": True}
    with pytest.raises(UserError, match="speed.fused=true does not go with speed.precision=float16"):
        speed.resolve(asked, parts.model)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("speed.preset=faster", "speed.preset must be one of exact, fast"),
        ("speed.precision=bf16", "speed.precision must be one of float32, bfloat16, float16, float64 or null"),
        ("speed.precision=float16", "needs a GPU. Try speed.precision=bfloat16"),
    ],
)
def test_mistakes_are_sentences(override, words):
    with pytest.raises(UserError, match=words):
        resolved("data=ring", override)


def graphs(folder, monkeypatch, *overrides):
    """How many graphs torch.compile has made after each of twelve iterations; nothing is compiled further."""
    dynamo = pytest.importorskip("torch._dynamo")
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compile_module(self, backend="eager"))
    monkeypatch.setattr(speed, "_compiler", lambda: True)
    dynamo.reset()
    dynamo.utils.counters.clear()
    each = Each(lambda _: dynamo.utils.counters["stats"]["unique_graphs"])
    fit(["model=gan", "data=ring", "network.hidden=[8]", "speed.compile=true", *overrides], 12, folder, [each])
    dynamo.reset()
    return each.seen


@pytest.mark.parametrize("trick", ["tricks.instance_noise=0.0", "tricks.instance_noise=0.1"])
def test_fading_noise_compiles_nothing_anew(trick, monkeypatch, tmp_path):
    """Its level changes with each iteration of the first half; in the second there is none."""
    made = graphs(tmp_path, monkeypatch, trick)
    assert made[0] > 0 and len(set(made[1:])) == 1


def test_threads_leave_compiled_networks_compiled():
    """Torch's stance is the process's: two threads that looked at a model at once left it at eager for good."""
    frames = pytest.importorskip("torch._dynamo.eval_frame")
    before, inside, left = frames._stance, threading.Event(), threading.Event()
    seen = []  # by the thread, whose own assertions nobody would hear of

    def later():
        with eager():
            inside.set()
            left.wait(20)
            seen.append(frames._stance.stance)

    thread = threading.Thread(target=later)
    with eager():
        thread.start()
        assert inside.wait(20)
        with eager():
            assert frames._stance.stance == "force_eager"
    left.set()
    thread.join()
    assert seen == ["force_eager"]  # when one of the two had gone
    assert frames._stance == before
