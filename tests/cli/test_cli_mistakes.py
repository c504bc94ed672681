"""A user's mistake gets one sentence with its cure, exit code 2 (or Hydra's 1), no traceback, nothing half-written."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.runs.start import train
from tests.cli.helpers import command

QUICK = ["trainer.max_steps=2", "callbacks=none", "logger=csv"]


def images(folder, n=12, size=(32, 32)):
    """A folder of noise images."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def folder(tmp_path):
    return images(tmp_path / "pictures")


MISTAKES = {
    "a group's option": (["model=dcgn"], ["Could not find 'model/dcgn'", "dcgan"]),
    "a key": (["seeed=3"], ["seeed"]),
    "a key of the model": (["+model.latent_dims=3"], ["takes no 'latent_dims'", "did you mean 'latent_dim'"]),
    "a type": (["seed=abc"], ["abc", "whole number"]),
    "an objective of another family": (["model=began", "loss=hinge"], ["model=began", "loss=hinge", "loss=began"]),
    "an objective where there is none": (["model=vae", "loss=hinge"], ["loss"]),
    "networks for other data": (["data=ring", "network=dcgan"], ["network=dcgan", "data=ring", "network=mlp"]),
    "networks without the part": (["model=began", "network=resnet"], ["model=began", "autoencoder", "network=began"]),
    "a likelihood for other data": (["model=vae", "data=ring"], ["likelihood=bernoulli", "likelihood=gaussian"]),
    "a critic with batch norm": (
        ["model=wgan_gp", "network=dcgan", "data.image_size=16", "network.critic_norm=batch"],
        ["batch normalisation", "network"],
    ),
    "batch norm of one": (["data.batch_size=1"], ["generator", "data.batch_size=2", "network.generator_norm=none"]),
    "the same, to be estimated": (["data.batch_size=1", "dry_run=true"], ["network.generator_norm=none"]),
    "an image size": (["network=dcgan", "data.image_size=33"], ["33", "data.image_size=32"]),
    "sides that cannot be halved": (
        ["network=resnet", "data.image_size=98"],
        ["98", "data.image_size=96 or data.image_size=100"],
    ),
    "a background": (["data=folder", "data.root=empty", "data.background=pink"], ["pink", "white, black or '#rrggbb'"]),
    "a number of bits": (["data=zip", "data.root=empty", "data.bits=11"], ["11", "8, 10, 12, 14, 16 or null"]),
    "no group": (["metrics=null"], ["metrics=null", "metrics=none"]),
    "no steps": (["trainer.max_steps=0"], ["trainer.max_steps", "0"]),
    "a decay": (["ema.decay=1.5"], ["ema.decay", "1.5"]),
    "a time": (["max_time=soon"], ["max_time", "soon", "00:30:00"]),
    "no folder of images": (["data=folder"], ["data.root"]),
    "a missing folder": (["data=folder", "data.root=nowhere"], ["nowhere"]),
    "an empty folder": (["data=folder", "data.root=empty"], ["empty"]),
    "no download": (["data=celeba", "data.root=nowhere"], ["data=celeba", "img_align_celeba"]),
    "no run": (["resume=outputs/none"], ["outputs/none"]),
    "a run without a checkpoint": (["resume=empty"], ["empty", "checkpoint"]),
    "a list": (["--list", "modles"], ["modles", "model"]),
    "a GPU": (["trainer=gpu"], ["trainer=gpu"]),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_in_one_process(what, tmp_path, monkeypatch, capfd):
    """Through the same entry point as the command line, without paying its start-up each time."""
    from genlab.cli import train as cli

    arguments, wanted = MISTAKES[what]
    if what == "a GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.argv", ["train.py", *(arguments if arguments[0] == "--list" else [*QUICK, *arguments])])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    output = capfd.readouterr().err
    assert stopped.value.code in (1, 2), output
    assert "Traceback" not in output and len(output) < 1500, output
    for words in wanted:
        assert words in output, output
    assert not list(tmp_path.glob("outputs/**/*.ckpt"))


def test_a_truncated_jpeg_is_named(folder, tmp_path):
    broken = folder / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    arguments = ["data=folder", f"data.root={folder}", *QUICK]
    with pytest.raises(UserError, match=r"3\.jpg.*data\.skip_broken=true"):
        train(compose(arguments), tmp_path / "run")
    train(compose([*arguments, "data.skip_broken=true"]), tmp_path / "skipped")


def test_a_path_that_hydras_grammar_breaks_on(tmp_path):
    """`=`, brackets and spaces in a path need no quoting by the user."""
    odd = images(tmp_path / "a=b (c) [d], e")
    result = command([*QUICK, "data=folder", f"data.root={odd}", "network.width=8"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "has no labels for a classifier" in result.stdout + result.stderr  # there are no class folders


def test_a_checkpoint_of_another_method(tmp_path):
    train(compose([*QUICK]), tmp_path / "gan")
    with pytest.raises(UserError, match="another method or architecture.*model=gan"):
        train(compose([*QUICK, "model=vae", f"init_from={tmp_path / 'gan'}"]), tmp_path / "vae")
    assert not (tmp_path / "vae").exists()


def test_a_damaged_checkpoint(tmp_path):
    train(compose([*QUICK]), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:5000])
    result = command([f"resume={tmp_path / 'run'}", "trainer.max_steps=4"], tmp_path)
    assert result.returncode == 2 and "damaged" in result.stderr and "Traceback" not in result.stderr


def test_a_resumed_run_keeps_its_config(tmp_path):
    train(compose([*QUICK]), tmp_path / "run")
    result = command([f"resume={tmp_path / 'run'}", "model=vae"], tmp_path)
    assert result.returncode == 2 and "init_from=RUN" in result.stderr


def test_an_output_folder_that_cannot_be(tmp_path):
    """The parent is a file: no permissions are needed to test that."""
    (tmp_path / "outputs").write_text("in the way")
    result = command(QUICK, tmp_path)
    assert result.returncode == 2 and "hydra.run.dir" in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "outputs").read_text() == "in the way"


def test_two_runs_never_share_a_folder(tmp_path):
    train(compose([*QUICK]), tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        train(compose([*QUICK]), tmp_path / "run")


def test_a_sweep_reports_the_failed_job_and_runs_the_others(tmp_path):
    result = command(["-m", *QUICK, "ema.decay=0.9,1.5,0.99", "hydra.sweep.dir=sweep"], tmp_path)
    assert (
        result.returncode == 1
        and "ema.decay must be a number in [0, 1)" in result.stderr
        and "Traceback" not in result.stderr
    )
    done = sorted(p.parent.parent.name for p in Path(tmp_path).glob("sweep/*/checkpoints/last.ckpt"))
    assert done == ["0", "2"]


def test_too_few_images_to_score_are_no_mistake(tmp_path, caplog):
    """Forty labelled images: four of them for validation. Training goes on, without scores, and says why."""
    for label in ("cats", "dogs"):
        images(tmp_path / "pictures" / label, n=20)
    arguments = ["data=folder", f"data.root={tmp_path / 'pictures'}", "data.image_size=16", "trainer.max_steps=2"]
    result = train(compose([*arguments, "network.width=8", "data.batch_size=4"]), tmp_path / "run")
    assert result.scores == {} and "need at least 20 samples" in caplog.text
    assert (tmp_path / "run" / "samples.png").is_file()


def test_nothing_is_made_for_data_that_are_missing(tmp_path):
    """Neither a run folder that holds no run, nor a `latest` that points to one."""
    with pytest.raises(UserError):
        train(compose([*QUICK, "data=folder", "data.root=nowhere"]), tmp_path / "outputs" / "run")
    assert not (tmp_path / "outputs").exists()
