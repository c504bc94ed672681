"""`sampler=NAME` of the sample command: fitted once, kept beside the checkpoint, refused in a sentence."""

import hashlib
import shutil

import numpy as np
import pytest
import torch

from genlab.cli import sample
from genlab.config import shipped
from genlab.config.composition import compose
from genlab.config.samplers import sampler_config, take_sampler
from genlab.errors import UserError
from genlab.runs.samplers import build_sampler
from genlab.runs.start import train
from tests.cli.helpers import command

COMMON = ["trainer=cpu", "trainer.max_steps=20", "logger=none", "metrics=none", "network.hidden=[16]"]
SMALL = {"d_steps": 5, "burn_in": 300, "batch_size": 64, "data_samples": 300}
SMALL_TEXT = [f"sampler.{key}={value}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A GAN and a VAE, hardly trained."""
    home = tmp_path_factory.mktemp("runs")
    train(compose(["model=gan", "data=grid", *COMMON]), home / "gan")
    train(compose(["model=vae", "data=grid", "likelihood=gaussian", "model.latent_dim=2", *COMMON]), home / "vae")
    return home


@pytest.fixture
def runs(trained, tmp_path):
    """Copies of them."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def draw(run, *arguments):
    """The samples of `genlab-sample run=RUN format=npz n=50 ...`, by its own functions."""
    options = sample.read_options([f"run={run}", "format=npz", "n=50", *arguments])
    return np.load(sample.sample(options))["x"]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", shipped.options("sampler"))
def test_every_sampler_config_builds_what_it_names(name):
    if name == "flow":
        pytest.importorskip("zuko", reason="the extra `flows` is not installed")
    assert build_sampler(name).name == name


def test_prior_is_what_is_drawn_without_a_sampler(runs):
    assert np.array_equal(draw(runs / "gan"), draw(runs / "gan", "sampler=prior"))
    assert not (runs / "gan" / "samplers").exists()


def test_a_fit_is_kept_and_taken_again(runs, monkeypatch):
    """The second command reads neither data nor trains; the samples are the same; the checkpoint is untouched."""
    checkpoint = runs / "gan" / "checkpoints" / "last.ckpt"
    before = digest(checkpoint)
    first = draw(runs / "gan", "sampler=drs", *SMALL_TEXT)
    kept = list((runs / "gan" / "samplers").iterdir())
    assert [p.name for p in kept] == [f"drs-{before[:12]}.pt"] and digest(checkpoint) == before
    content = torch.load(kept[0], weights_only=True)
    assert content["fitted_by"]["d_steps"] == 5 and content["report"]["maximum"] > -100

    def no_data(*_):
        raise UserError("The data have gone.")

    monkeypatch.setattr("genlab.runs.folder.load_data", no_data)
    assert np.array_equal(draw(runs / "gan", "sampler=drs", *SMALL_TEXT), first)
    other = draw(runs / "gan", "sampler=drs", "sampler.gamma_percentile=99", *SMALL_TEXT)  # no part of the fit
    assert not np.array_equal(other, first)
    with pytest.raises(UserError, match="The data have gone. Or do without them"):
        draw(runs / "gan", "sampler=drs", *SMALL_TEXT, "sampler.d_steps=6")
    draw(runs / "gan", "sampler=drs", *SMALL_TEXT, "sampler.d_steps=0", "sampler.calibrate=false")  # needs none
    with pytest.raises(UserError, match="data.root=|The data have gone"):
        draw(runs / "vae", "sampler=gmm")


def test_a_damaged_file_costs_only_another_fit(runs):
    first = draw(runs / "vae", "sampler=gmm", "sampler.k=2", "sampler.data_samples=300")
    (kept,) = (runs / "vae" / "samplers").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(draw(runs / "vae", "sampler=gmm", "sampler.k=2", "sampler.data_samples=300"), first)
    assert torch.load(kept, weights_only=True)["fitted_by"]["k"] == 2


def test_the_command_itself(runs):
    """Says what was accepted, names the file by the sampler, takes numbers as Hydra writes them."""
    arguments = [f"run={runs / 'gan'}", "n=20", "sampler=drs", "sampler.d_lr=1e-3", *SMALL_TEXT]
    result = command(arguments, runs, script="scripts/sample.py")
    assert result.returncode == 0, result.stderr
    assert "acceptance 0." in result.stdout and (runs / "gan" / "samples_n20_seed0_drs.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sampler=dsr"], "There is no sampler 'dsr'; sampler takes ddls, drs, flow, gmm, prior, truncated."),
        (["sampler=drs", "sampler.gama=1"], "Did you mean sampler.gamma=?"),
        (["sampler.k=3"], "sampler=prior has no setting 'k'. It has no settings."),
        (["sampler=drs", "sampler.burn_in=many"], "sampler.burn_in must be a whole number, got 'many'"),
        (["sampler=drs", "sampler.calibrate=3"], "true or false"),
        (["sampler=drs", "sampler.gamma_percentile=120"], "from 0 to 100"),
        (["sampler=drs", "sampler.gamma"], "sampler.gamma=VALUE"),
        (["sampler=gmm"], "sampler=gmm does not fit GAN: it has no encoder"),
        (["sampler=truncated", "sampler.psi=0.5"], "null for the other"),
        (["samplr=drs"], "Did you mean sampler=?"),
    ],
)
def test_mistakes(arguments, words, trained):
    with pytest.raises(UserError) as refused:
        draw(trained / "gan", *arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_settings_are_read_as_hydra_reads_them():
    name, settings, rest = take_sampler(
        ["run=a", "sampler=flow", "sampler.lr=1e-3", "sampler.hidden=[8,9]", "sampler.kind=maf"]
    )
    assert (name, rest) == ("flow", ["run=a"])
    assert settings == {"lr": 1e-3, "hidden": [8, 9], "kind": "maf"}
    assert sampler_config(name, settings)["hidden"] == [8, 9]
    assert sampler_config("truncated", {"threshold": None, "psi": 1})["psi"] == 1
    assert sampler_config("drs", {"gamma_percentile": None})["gamma_percentile"] is None
