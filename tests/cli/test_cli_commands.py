"""The commands as a user types them."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab.config.composition import compose, insisted
from genlab.config.shipped import options, read_option
from genlab.errors import UserError
from genlab.files import run_path
from genlab.runs.start import train
from tests.cli.helpers import REPO, command

QUICK = ["trainer.max_steps=3", "callbacks=none", "logger=csv"]
DATA = {"gan": "digits"}
SCENES = [model for model in options("model") if insisted(model, "data") == "scenes"]
FEWER = {
    "attribute2image": ["data.num_train=64", "metrics.num_samples=40"],
    "attribute2image_layered": ["data.num_train=64", "metrics.num_samples=40"],
    "pixelvae": ["metrics.iwae_samples=2"],
    "dc_ign": ["metrics.iwae_samples=2", "data.num_train=64"],
    **dict.fromkeys(SCENES, ["data.num_train=64"]),
}  # draws, where one of them takes long, and pictures, where readers learn to read them


@pytest.mark.matrix
@pytest.mark.parametrize("model", sorted(p.stem for p in (REPO / "configs" / "model").glob("*.yaml")))
def test_every_model_config_trains(model, tmp_path):
    config = compose([f"model={model}", *QUICK, *FEWER.get(model, [])])
    assert train(config, tmp_path).model.run_config["choices"]["model"] == model


@pytest.mark.matrix
@pytest.mark.parametrize("loss", sorted(p.stem for p in (REPO / "configs" / "loss").glob("*.yaml")))
def test_every_loss_config_trains(loss, tmp_path):
    models = [p.stem for p in (REPO / "configs" / "model").glob("*.yaml")]
    for model in ["gan", *sorted(models)]:
        try:
            train(compose([f"model={model}", f"loss={loss}", *QUICK]), tmp_path / model)
            return
        except Exception as error:  # some other model takes it
            last = error
    raise AssertionError(f"no model takes loss={loss}") from last


@pytest.mark.parametrize("network", sorted(p.stem for p in (REPO / "configs" / "network").glob("*.yaml")))
def test_every_network_config_trains(network, tmp_path):
    arguments = [f"network={network}", "data.image_size=16", "data.batch_size=4", "metrics=none", *QUICK]
    option = read_option("network", network)
    model = "gan" if "discriminator" in option or "defaults" in option else "began"  # plays with logits, or energies
    train(compose([f"model={model}", *arguments]), tmp_path)


@pytest.mark.parametrize("likelihood", sorted(p.stem for p in (REPO / "configs" / "likelihood").glob("*.yaml")))
def test_every_likelihood_config_trains(likelihood, tmp_path):
    train(compose(["model=vae", f"likelihood={likelihood}", "metrics=none", *QUICK]), tmp_path)


OFFLINE = {
    **{name: [] for name in ("digits", "ring", "grid", "swiss_roll")},
    "scenes": ["metrics=none", "data.num_train=64", "data.batch_size=4"],
    "unpaired_scenes": ["metrics=none", *(f"data.domains.{d}.num_train=64" for d in "ab"), "data.batch_size=4"],
}


@pytest.mark.parametrize("data", OFFLINE)
def test_every_offline_data_set_trains(data, tmp_path):
    train(compose([f"data={data}", *QUICK, *OFFLINE[data], "trainer.max_steps=2"]), tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(p.stem for p in (REPO / "configs" / "experiment").glob("*.yaml")))
def test_every_experiment_trains(name, tmp_path):
    """Three iterations; on made-up data where the real ones are files."""
    if "maf" in name:
        pytest.importorskip("zuko", reason="the extra `flows` is not installed")
    # Digits of 16 x 16 have a classifier of their own, scenes have readers.
    unjudged = ["metrics=none"] if name in ("hybrids_digits", "stackgan_scenes") else []
    config = compose([f"experiment={name}", *QUICK, *unjudged])
    if "root" in config["data"]:
        config["dry_run"], config["data"]["batch_size"] = True, 4
    train(config, tmp_path)


def test_a_run_folder_explains_itself(tmp_path):
    """One real command line: everything that a run leaves."""
    result = command(["trainer.max_steps=40", "metrics.every_n_steps=20", "trainer.log_every_n_steps=10"], tmp_path)
    assert result.returncode == 0, result.stderr
    run = run_path(tmp_path / "outputs" / "latest")
    names = {p.name for p in run.iterdir()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.csv",
        "samples.png",
        "curves.png",
        "checkpoints",
        "grids",
        "tb",
    } <= names
    record = json.loads((run / "run.json").read_text())
    session = record["sessions"][0]
    assert session["status"] == "done" and session["wall_seconds"] > 0 and "trainer.max_steps=40" in session["command"]
    assert {"versions", "commit", "hardware"} <= session.keys() and record["iterations"] == 40
    card = record["cards"][record["group"]["fid/classifier-digits"]]
    assert card["split"] == "test" and card["n_real"] == card["n_fake"] == 359 and card["ema"] and card["checksum"]
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    scored = {row["metric"] for row in rows}
    assert {"train/d_loss", "train/g_loss", "val/fid/classifier-digits", "test/is/classifier-digits"} <= scored
    assert {int(r["step"]) for r in rows if r["metric"] == "train/d_loss"} == {1, 10, 20, 30, 40}
    assert Image.open(run / "samples.png").size[0] >= 512
    assert "scripts/sample.py run=" in result.stdout and "2000 generated" in result.stdout
    assert (run / "checkpoints" / "best.ckpt").is_file()


def test_sampling_from_a_run_folder_alone(tmp_path):
    """No data set, no config: grid, images, npz; the seed decides; averaged weights."""
    run = tmp_path / "run"
    train(compose(QUICK), run)
    for fmt in ("grid", "images", "npz"):
        result = command([f"run={run}", "n=10", f"format={fmt}", "seed=3"], tmp_path, script="scripts/sample.py")
        assert result.returncode == 0, result.stderr
    arrays = np.load(run / "samples_n10_seed3.npz", allow_pickle=False)
    assert arrays["x"].shape == (10, 8, 8, 1) and arrays["x"].dtype == np.uint8 and list(arrays) == ["x"]
    assert len(list((run / "samples_n10_seed3").glob("*.png"))) == 10
    model = genlab.load(run)
    x = model.sample(10, rng=torch.Generator().manual_seed(3))
    assert np.array_equal(model.spec.render(x).permute(0, 2, 3, 1).numpy(), arrays["x"])
    assert torch.equal(
        x, genlab.load(run / "checkpoints" / "last.ckpt").sample(10, rng=torch.Generator().manual_seed(3))
    )
    torch.manual_seed(0)
    a = model.sample(4)
    torch.manual_seed(0)
    assert torch.equal(a, model.sample(4)) and not torch.equal(a, model.sample(4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run=outputs/latest"),
        (["run={run}", "y=3"], "GAN is given nothing"),
        (["run={run}", "seeed=3"], "Did you mean seed=?"),
        (["run={run}", "n=many"], "whole number"),
        (["run={run}", "format=tiff"], "grid, images, files or npz"),
        (["run={run}/nothing"], "There is no run"),
    ],
)
def test_sampling_mistakes(arguments, words, tmp_path, monkeypatch, capsys):
    from genlab.cli import sample

    run = tmp_path / "run"
    train(compose(QUICK), run)
    monkeypatch.setattr("sys.argv", ["sample.py", *(a.format(run=run) for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        sample.main()
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_strangers_run_folder_builds_only_what_is_allowed(tmp_path):
    train(compose(QUICK), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for target in ("torch.hub.load", "torch.nn.modules.module.torch.hub.load", "os.system", "genlab.cli.train.main"):
        checkpoint["genlab"]["config"]["model"]["generator"]["_target_"] = target
        torch.save(checkpoint, path)
        with pytest.raises(UserError, match="may not build"):
            genlab.load(tmp_path / "run")


def test_dry_run_trains_nothing(tmp_path):
    result = command(["--dry-run", "model=wgan_gp"], tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("critic", "parameters", "iterations", "about", "checkpoints", "n_critic: 5"):
        assert words in result.stdout
    assert not list(Path(tmp_path).glob("outputs/**/*.ckpt"))


def test_a_dry_runs_time_is_that_of_iterations(monkeypatch):
    """Neither starting a run nor WGAN's long first iterations count as more than their share."""
    from genlab.models.gan import GAN
    from genlab.runs import dry_run, running

    pause = 0.03
    monkeypatch.setattr(GAN, "training_step", lambda self, batch, batch_idx: time.sleep(pause))
    quiet = ["callbacks=none", "logger=none", "metrics=none", "trainer=cpu", "trainer.max_steps=1000"]
    config = compose(["model=gan", "data=ring", *quiet])
    assert pause <= dry_run._trial(running.build(config))[0] < 1.5 * pause
    monkeypatch.setattr(GAN, "batches_at", lambda self, iteration: 10 if iteration < 100 else 1, raising=False)
    share = (100 * 10 + 900) / 1000 / 10
    assert pause * share <= dry_run._trial(running.build(config))[0] < 1.5 * pause * share


def test_listing(tmp_path, monkeypatch, capsys):
    from genlab.cli import train as cli

    for group, words in (("models", "arXiv"), ("data", "digits"), ("loss", "hinge")):
        monkeypatch.setattr("sys.argv", ["train.py", "--list", group])
        cli.main()
        assert words in capsys.readouterr().out


def test_a_sweep_on_two_processes(tmp_path):
    """Four runs through Hydra's joblib launcher, two at a time; each in its own folder, as if run alone."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ["-m", *QUICK, "seed=0,1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    result = command(sweep, tmp_path, timeout=200)
    assert result.returncode == 0, result.stderr
    runs = sorted((tmp_path / "sweep").glob("*/checkpoints/last.ckpt"))
    assert len(runs) == 4
    alone = train(compose([*QUICK, "seed=2"]), tmp_path / "alone").model.state_dict()
    swept = torch.load(runs[2], weights_only=True)["state_dict"]
    assert all(torch.equal(alone[k], swept[k]) for k in alone)


def test_own_configs_beside_the_shipped_ones(tmp_path):
    """`--config-dir` adds a user's own yaml, which may extend a shipped one."""
    mine = tmp_path / "mine" / "model"
    mine.mkdir(parents=True)
    (mine / "my_gan.yaml").write_text("# My GAN\ndefaults:\n  - gan\n  - _self_\nlatent_dim: 5\n")
    result = command(["--config-dir", str(tmp_path / "mine"), "model=my_gan", *QUICK], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "latent_dim: 5" in run_path(tmp_path / "outputs" / "latest" / "config.yaml").read_text()
