"""A run that is killed, resumed, watched or left alone ends with the same weights, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genlab.config.composition import compose
from genlab.files import run_path
from genlab.runs.folder import find_run, read_config
from genlab.runs.start import train
from tests.cli.helpers import REPO, assert_identical, command, main, weights

FIVE = {
    "gan": ["model=gan"],
    "dcgan": ["model=dcgan", "network.width=8"],
    "wgan_gp": ["model=wgan_gp", "network=mlp"],
    "began": ["model=began", "network.width=8", "model.g_scheduler.window=20", "model.g_scheduler.patience=1",
              "model.d_scheduler.window=20", "model.d_scheduler.patience=1"],
    "vae": ["model=vae"],
}  # fmt: skip
SMALL = ["data.batch_size=16", "checkpoint.every_n_steps=7", "trainer.log_every_n_steps=10", "threads=1"]


def reference(name, folder, steps=200):
    config = compose([*FIVE[name], *SMALL, f"trainer.max_steps={steps}", "metrics.every_n_steps=1000"])
    return train(config, folder)


def wait_for(condition, process, seconds=90):
    """Waits for something that the process does."""
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"it did not happen; the process said {process.poll()}")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "gan" else pytest.mark.long) for name in FIVE])
def test_a_killed_run_resumes_to_the_same_weights(name, tmp_path):
    """SIGKILL at a random moment after the first checkpoints; then 200 iterations in all, as the run left alone."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    reference(name, alone)
    arguments = [*FIVE[name], *SMALL, "trainer.max_steps=200", "metrics.every_n_steps=1000", f"hydra.run.dir={killed}"]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for((killed / "checkpoints" / "last.ckpt").is_file, process)
    time.sleep(random.Random(time.time()).uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, checkpoint = find_run(killed)
    train(read_config(killed), killed, resume=checkpoint)
    assert_identical(weights(alone), weights(killed))


def test_looking_changes_no_bit(tmp_path):
    """Scores and grids on and often, or off: the same trained weights."""
    common = ["model=gan", *SMALL, "trainer.max_steps=60"]
    train(compose([*common, "metrics.every_n_steps=20", "callbacks.grid.every_n_steps=15"]), tmp_path / "watched")
    train(compose([*common, "callbacks=none", "logger=csv"]), tmp_path / "alone")
    assert_identical(weights(tmp_path / "watched"), weights(tmp_path / "alone"))
    assert list((tmp_path / "watched" / "grids").glob("*.png")) and not (tmp_path / "alone" / "grids").exists()


def test_another_seed_is_another_run(tmp_path):
    """The comparison above can fail."""
    for seed in (0, 1):
        train(
            compose(["model=gan", *SMALL, "trainer.max_steps=3", f"seed={seed}", "callbacks=none"]),
            tmp_path / str(seed),
        )
    with pytest.raises(AssertionError):
        assert_identical(weights(tmp_path / "0")[0], weights(tmp_path / "1")[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_resume_goes_on(number, tmp_path):
    """The checkpoint is of the iteration at hand, one line says how to resume, the code is 128 + signal."""
    run = tmp_path / "run"
    arguments = ["model=gan", *SMALL, "trainer.max_steps=100000", "checkpoint.every_n_steps=100000", "callbacks=none"]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *arguments, f"hydra.run.dir={run}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: (run / "metrics.csv").is_file(), process)
    time.sleep(0.3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "train.py resume=run" in output and "Traceback" not in output
    step = int(output.split("Stopped after iteration ")[1].split(".")[0])
    result = command([f"resume={run}", f"trainer.max_steps={step + 5}"], tmp_path)
    assert result.returncode == 0, result.stderr
    reference_run = tmp_path / "alone"
    train(compose([*arguments[:-3], f"trainer.max_steps={step + 5}", "callbacks=none"]), reference_run)
    assert_identical(weights(reference_run), weights(run))


def test_time_limit(tmp_path):
    """`max_time` ends a run with its checkpoint."""
    config = compose(["model=gan", *SMALL, "trainer.max_steps=1000000", "max_time=00:00:01", "callbacks=none"])
    started = time.time()
    train(config, tmp_path / "run")
    assert time.time() - started < 30
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_resume_auto_takes_the_newest_of_the_same_composition(tmp_path, monkeypatch, capsys):
    """Other seeds and other models are passed over; without any a new run starts."""
    short = [*SMALL, "trainer.max_steps=5", "callbacks=none", "logger=csv"]
    for extra in (["seed=1"], ["seed=2"], ["seed=1", "model=vae"]):
        assert main(monkeypatch, *short, *extra) == 0
    runs = sorted(p for p in (tmp_path / "outputs").iterdir() if p.is_dir())
    longer = [*SMALL, "trainer.max_steps=8", "callbacks=none", "logger=csv", "seed=1"]
    assert main(monkeypatch, *longer, "resume=auto") == 0
    assert run_path(tmp_path / "outputs" / "latest") == runs[0]
    assert sorted(p for p in (tmp_path / "outputs").iterdir() if p.is_dir()) == runs
    assert main(monkeypatch, f"resume={runs[0]}") == 2
    assert "already been trained" in capsys.readouterr().err
    assert main(monkeypatch, *short, "seed=7", "resume=auto") == 0
    assert "starting a new one" in capsys.readouterr().out


def test_init_from_starts_anew_from_the_weights(tmp_path):
    """Weights come over; the step, the optimizers and the averages start fresh."""
    small = [*SMALL, "callbacks=none", "logger=csv"]
    train(compose([*small, "trainer.max_steps=5"]), tmp_path / "first")
    train(compose([*small, "trainer.max_steps=1", f"init_from={tmp_path / 'first'}"]), tmp_path / "second")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    name = "generator.decoder.body.0.weight"
    assert 0 < (first[0][name] - second[0][name]).abs().max() < 2e-3  # one step of Adam away
    assert second[2][0]["state"][0]["step"] == 1


@pytest.fixture(autouse=True)
def _quiet_cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path.cwd() == tmp_path
