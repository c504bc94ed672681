"""Checkpoints of models: plain, versioned, and refused in a sentence where they do not fit."""

import collections
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import genlab
from genlab.config.composition import PARTS, compose
from genlab.config.instantiate import check_allowed
from genlab.config.shipped import options, read_option
from genlab.engine.state import CHECKPOINT_FORMAT
from genlab.errors import UserError
from tests.models import toys
from tests.models.helpers import METHODS, assert_plain, fit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    """A short run of each method."""
    return fit(METHODS[request.param], 2, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    return fit(METHODS["gan"], 2, tmp_path_factory.mktemp("gan"))


@pytest.fixture
def tampered(gan, tmp_path):
    """Writes a changed copy of a good checkpoint into a run folder of its own."""

    def write(change):
        checkpoint = torch.load(gan.folder / "checkpoints" / "last.ckpt", weights_only=True)
        changed = change(checkpoint)
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        torch.save(checkpoint if changed is None else changed, tmp_path / "checkpoints" / "last.ckpt")
        return tmp_path

    return write


def test_a_checkpoint_is_plain(run):
    """Containers, numbers, strings and tensors: `weights_only=True` reads it, so that nothing is executed."""
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    section = checkpoint["genlab"]
    assert section["format"] == CHECKPOINT_FORMAT
    assert set(section) == {"format", "config", "spec", "ema", "random", "tricks"}
    assert_plain(section)
    assert_plain({k: v for k, v in checkpoint.items() if k != "genlab"})
    assert len(section["random"]) == 1 and set(section["ema"]) == set(run.model.averages.sources())
    assert section["config"]["choices"]["model"] and section["spec"]["x"]["shape"] == [2]


def test_a_loaded_model_is_the_trained_one(run):
    """Weights (averaged ones where there are any), buffers and data spec; in eval mode; its samples the same."""
    loaded = genlab.load(run.folder)
    assert not any(module.training for module in loaded.modules())
    with run.model.ema():
        for key, value in run.model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
    draws = [m.sample(4, rng=torch.Generator().manual_seed(0)) for m in (loaded, run.model)]
    assert torch.equal(*draws) and loaded.spec == run.model.spec
    assert loaded.run_config == run.model.run_config


@pytest.mark.parametrize("loaded", [True, False])
def test_threads_may_ask_one_model(loaded, gan):
    """Two threads, 50 decodes each, bit for bit, and the model is the same afterwards; loaded, or still in training."""
    model = genlab.load(gan.folder) if loaded else gan.model
    z = model.noise(512)
    wanted, before = model.decode(z), {k: v.clone() for k, v in model.state_dict().items()}
    model.train(not loaded)
    modes = []

    def pause(*_):  # so that the other thread has its turn within a decode
        time.sleep(1e-3)
        modes.append(model.generator.training)

    handle = model.generator.register_forward_hook(pause)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: model.decode(z), range(100)))
    handle.remove()
    assert modes == 100 * [False]
    assert all(torch.equal(x, wanted) for x in found)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_loaded_model_has_nothing_to_swap(gan):
    """Its weights are the averages, and its cards say that they are."""
    model = genlab.load(gan.folder)
    assert model.averages.values == {} and model.has_averages
    weights = model.state_dict()
    assert gan.model.averages.values and all(
        torch.equal(weights[key], value) for key, value in gan.model.averages.values.items()
    )


def test_a_loaded_model_holds_no_reference_to_the_trainer(run):
    assert genlab.load(run.folder)._trainer is None


def test_a_newer_format(tampered):
    def change(checkpoint):
        checkpoint["genlab"]["format"] = CHECKPOINT_FORMAT + 1

    with pytest.raises(
        UserError, match=f"has format {CHECKPOINT_FORMAT + 1}, of a later genlab; this one reads format"
    ):
        genlab.load(tampered(change))


FOREIGN = {
    "another framework's": lambda checkpoint: {"state_dict": checkpoint["state_dict"], "epoch": 3},
    "a bare state dict": lambda checkpoint: collections.OrderedDict(checkpoint["state_dict"]),
    "a tensor": lambda checkpoint: torch.zeros(3),
    "a list": lambda checkpoint: [1, 2],
    "half a section": lambda checkpoint: {**checkpoint, "genlab": {"format": 1}},
    "a section of another sort": lambda checkpoint: {**checkpoint, "genlab": [1]},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_checkpoint(what, tampered):
    with pytest.raises(UserError, match="not written by genlab"):
        genlab.load(tampered(FOREIGN[what]))


class Payload:
    """Would run on unpickling."""

    def __reduce__(self):
        return toys.trap, ()


def test_a_checkpoint_with_code_in_it(tampered):
    toys.BUILT.clear()
    with pytest.raises(UserError, match="cannot be read"):
        genlab.load(tampered(lambda checkpoint: {**checkpoint, "extra": Payload()}))
    assert toys.BUILT == []


@pytest.mark.parametrize("how", ["missing", "extra"])
def test_averages_of_another_model(how, tampered):
    def change(checkpoint):
        averages = checkpoint["genlab"]["ema"]
        if how == "missing":
            del averages["generator.decoder.body.0.bias"]
        else:
            averages["generator.extra"] = torch.zeros(1)

    with pytest.raises(UserError, match="moving averages do not fit the model: generator"):
        genlab.load(tampered(change))


def test_weights_of_another_shape(tampered):
    def change(checkpoint):
        checkpoint["state_dict"]["generator.decoder.body.0.bias"] = torch.zeros(3)

    with pytest.raises(UserError, match=r"another method or architecture.*generator\.decoder\.body\.0\.bias"):
        genlab.load(tampered(change))


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.torch.hub.load",  # torch.nn.* by name, torch.hub by what it is
        "torch.optim.optimizer.functools.partial",
        "genlab.runs.folder.subprocess.run",
        "genlab.models.base.pl.seed_everything",
        "builtins.eval",
        "os.system",
        "tests.models.toys.trap",
    ],
)
@pytest.mark.parametrize("place", ["the model", "a part", "a part of a part"])
def test_targets_outside_the_allow_list(target, place, tampered):
    toys.BUILT.clear()

    def change(checkpoint):
        model = checkpoint["genlab"]["config"]["model"]
        if place == "the model":
            model["_target_"] = target
        elif place == "a part":
            model["loss"] = {"_target_": target}
        else:
            model["generator"]["shape"] = [{"_target_": target}]

    with pytest.raises(UserError, match="may not build") as refused:
        genlab.load(tampered(change))
    assert target in str(refused.value) and toys.BUILT == []


def test_targets_that_the_user_allows(tampered):
    def change(checkpoint):
        checkpoint["genlab"]["config"]["model"]["loss"] = {"_target_": "tests.models.toys.trap"}

    toys.BUILT.clear()
    genlab.load(tampered(change), allow_targets=("tests.models.*",))
    assert toys.BUILT == ["trap"]


def test_a_first_stage_from_a_stranger(tampered, tmp_path):
    """Training over another run builds that run's model: it may name no more than what is loaded."""
    from genlab.runs.start import train
    from tests.models.helpers import SGD, config

    def change(checkpoint):
        checkpoint["genlab"]["config"]["model"]["loss"] = {"_target_": "tests.models.toys.trap"}

    model = {"_target_": "tests.models.toys.Prior", "latent_dim": 2, "optimizer": SGD}
    toys.BUILT.clear()
    with pytest.raises(UserError, match="may not build"):
        train(config(["data=ring"], 1, model=model, first_stage=str(tampered(change))), tmp_path / "second")
    assert toys.BUILT == []


@pytest.mark.matrix
@pytest.mark.parametrize("model", options("model"))
def test_every_shipped_model_may_be_loaded(model):
    """Its run names nothing that a loaded run may not build."""
    check_allowed(compose([f"model={model}"])["model"])


@pytest.mark.parametrize("group", [g for g in PARTS if g != "network"])
def test_every_shipped_part_may_be_loaded(group):
    for name in options(group):
        part = read_option(group, name)
        check_allowed({key: part[key] for key in ("_target_",) if key in part})
