"""Runs in several stages: a second model over a first one that is frozen."""

import shutil

import pytest
import torch

import genlab
from genlab.cli import train as command
from genlab.errors import UserError
from genlab.runs import folder as runs
from genlab.runs import running, start
from tests.models.helpers import SGD, config, moved
from tests.models.toys import Prior

pytestmark = pytest.mark.usefixtures("one_thread")
# Batch norm in the first stage: frozen means its statistics too.
FIRST = ["model=vae", "model.latent_dim=3", "data=digits", "network=mlp", "network.hidden=[16]"]
FIRST += ["+network.decoder.norm=batch"]
STEPS = {"vae": 3, "prior": 6}
ALLOW = ("tests.models.toys.*",)


def staged():
    """A VAE, then a prior over its codes."""
    prior = {"_target_": "tests.models.toys.Prior", "latent_dim": 3, "optimizer": SGD}
    stages = [
        {"name": "vae", "trainer": {"max_steps": STEPS["vae"]}},
        {"name": "prior", "trainer": {"max_steps": STEPS["prior"]}, "model": prior},
    ]
    return config([*FIRST, "checkpoint.every_n_steps=2"], 100, stages=stages)


def state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Both stages, trained by one command."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    start.train(staged(), folder)
    return folder


class Interrupted(Exception):
    """In place of a killed process."""


def interrupt_at(monkeypatch, cls, iteration):
    """Training of a class breaks off in an iteration."""
    step = cls.training_step

    def training_step(self, batch, batch_idx):
        if self.iteration + 1 == iteration:
            raise Interrupted
        return step(self, batch, batch_idx)

    monkeypatch.setattr(cls, "training_step", training_step)


def test_stages_are_trained_in_turn(run):
    """Each in its own folder, for its own number of iterations."""
    for name, steps in STEPS.items():
        assert state(run / name)["global_step"] == steps
        assert (run / name / "config.yaml").is_file() and (run / name / "run.json").is_file()
    assert runs.read_config(run / "vae")["model"]["_target_"] == "genlab.models.vae.VAE"
    assert (run / "config.yaml").is_file()


def test_the_first_stage_is_frozen(run):
    """Its averaged weights, and its statistics, are in the second one's checkpoint, and training moved none."""
    first = genlab.load(run / "vae")
    inside = {
        k.removeprefix("first_stage."): v
        for k, v in state(run / "prior")["state_dict"].items()
        if k.startswith("first_stage.")
    }
    assert moved(first.state_dict(), inside) == set()
    assert moved(state(run / "vae")["state_dict"], inside) != set()  # the averages, not the last weights
    prior = state(run / "prior")["state_dict"]["prior.weight"]
    assert not torch.equal(prior, running.build(runs.read_config(run / "prior")).model.prior.weight)


def test_the_second_stage_stands_alone(run, tmp_path):
    """It samples as before when the first run's folder is gone."""
    copy = shutil.copytree(run, tmp_path / "copy")
    samples = genlab.load(copy / "prior", allow_targets=ALLOW).sample(4, rng=torch.Generator().manual_seed(0))
    shutil.rmtree(copy / "vae")
    shutil.rmtree(copy.parent / "run", ignore_errors=True)
    alone = genlab.load(copy / "prior", allow_targets=ALLOW)
    assert torch.equal(alone.sample(4, rng=torch.Generator().manual_seed(0)), samples)
    assert samples.shape == (4, 1, 8, 8)
    with pytest.raises(UserError, match="may not build"):
        genlab.load(copy / "prior")


def test_gradients_reach_the_first_stages_input(run):
    """A search in latent space goes through both models."""
    model = genlab.load(run / "prior", allow_targets=ALLOW)
    z = torch.randn(4, 3, requires_grad=True)
    with model.inference(gradients=True):
        x = model.decode(z)
        assert torch.equal(x, model.first_stage.decode(model.prior(z)))
        x.sum().backward()
    assert z.grad.abs().sum() > 0 and all(p.grad is None for p in model.parameters())
    assert not model.decode(z).requires_grad and not model.first_stage.decode(z).requires_grad


def assert_same(run, other):
    """Bit for bit."""
    for name in STEPS:
        ours, theirs = state(run / name), state(other / name)
        assert ours["global_step"] == theirs["global_step"]
        assert moved(ours["state_dict"], theirs["state_dict"]) == set()
        assert moved(ours["genlab"]["ema"], theirs["genlab"]["ema"]) == set()


@pytest.mark.parametrize("iteration", [4, 2])
def test_resume_enters_the_unfinished_stage(iteration, run, tmp_path, monkeypatch):
    """The stage that is done is not touched, and the other goes on: from its checkpoint, or anew before the first."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, Prior, iteration)
        with pytest.raises(Interrupted):
            start.train(staged(), tmp_path / "run")
    written = (tmp_path / "run" / "vae" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    start.train(staged(), tmp_path / "run")
    assert (tmp_path / "run" / "vae" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written
    assert_same(tmp_path / "run", run)


def test_a_resumed_second_stage_is_frozen_again(run, tmp_path, monkeypatch):
    """No gradient is computed for it, and it does not need the first run."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, Prior, 4)
        with pytest.raises(Interrupted):
            start.train(staged(), tmp_path / "run")
    folder = tmp_path / "run" / "prior"
    shutil.rmtree(tmp_path / "run" / "vae")
    result = start.train(runs.read_config(folder), folder, resume=folder / "checkpoints" / "last.ckpt")
    assert not any(p.requires_grad for p in result.model.first_stage.parameters())
    assert not any(module.training for module in result.model.first_stage.modules())
    assert moved(state(folder)["state_dict"], state(run / "prior")["state_dict"]) == set()


@pytest.mark.parametrize("broken", ["in the first stage", "in the second stage", "between them"])
def test_resume_from_the_command_line(broken, run, tmp_path, monkeypatch):
    """`resume=RUN` goes through with all stages."""
    from genlab.models.vae import VAE

    with monkeypatch.context() as patch:
        if broken == "between them":
            patch.setattr(running, "build", fail_second(running.build))
        else:
            interrupt_at(patch, *((VAE, 3) if broken == "in the first stage" else (Prior, 4)))
        with pytest.raises(Interrupted):
            start.train(staged(), tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["train.py", f"resume={tmp_path / 'run'}"])
    command.main()
    assert_same(tmp_path / "run", run)


def test_resume_of_stages_takes_no_other_overrides(run, monkeypatch, capsys):
    """As a run of one stage: what cannot be changed is refused, not passed over."""
    monkeypatch.setattr("sys.argv", ["train.py", f"resume={run}", "seed=3"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and "'seed=3' cannot be changed" in capsys.readouterr().err


def fail_second(build):
    """Breaks off when the second stage is built."""

    def broken(config, *rest):
        if config["model"]["_target_"].endswith("Prior"):
            raise Interrupted
        return build(config, *rest)

    return broken


def test_all_stages_done(run):
    before = state(run / "prior")["state_dict"]
    with pytest.raises(UserError, match=r"All stages .* are done"):
        start.train(staged(), run)
    assert moved(before, state(run / "prior")["state_dict"]) == set()


def test_a_first_stage_by_hand(run, tmp_path):
    """`first_stage=RUN` on a run of its own: what a stage is made of."""
    prior = staged()["stages"][1]["model"]
    single = config([*FIRST, f"first_stage={run / 'vae'}"], 6, model=prior)
    start.train(single, tmp_path / "alone")
    assert moved(state(tmp_path / "alone")["state_dict"], state(run / "prior")["state_dict"]) == set()


@pytest.mark.parametrize("place", ["in its stage", "at the top"])
def test_a_first_stage_of_the_users_own(place, tmp_path):
    """A model outside genlab may be a first stage as well: its config is the user's, in one command."""
    walk = {"_target_": "tests.models.toys.Walk", "optimizer": SGD}
    over = {"_target_": "tests.models.toys.Over"}
    first = {"name": "walk", "trainer": {"max_steps": 2}}
    stages = [first, {"name": "over", "model": over, "trainer": {"max_steps": 2}}]
    if place == "in its stage":
        whole = config(["data=ring"], 2, stages=[{**first, "model": walk}, stages[1]])
    else:
        whole = config(["data=ring"], 2, stages=stages, model=walk)
    start.train(whole, tmp_path / "run")
    assert state(tmp_path / "run" / "over")["state_dict"]["first_stage.generator.count"] == 4


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"trainer": {"max_steps": 1}}], "Stage 1 of `stages` needs a name of its own, got None"),
        ([{"name": "a", "trainer": {"max_steps": 1}}, {"name": "a"}], "Stage 2 .* got 'a'"),
    ],
)
def test_stages_need_names(stages, words, tmp_path):
    with pytest.raises(UserError, match=words):
        start.train(config(["data=ring", "network.hidden=[4]"], 1, stages=stages), tmp_path / "run")
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_a_first_stage_that_is_not_there(tmp_path):
    prior = staged()["stages"][1]["model"]
    with pytest.raises(UserError, match="There is no run at"):
        start.train(config([*FIRST, "first_stage=nowhere"], 1, model=prior), tmp_path / "run")
    assert not (tmp_path / "run").exists()
