"""Two processes on half the batch each do what one does on the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genlab.cli.app import compose
from genlab.cli.running import train
from tests.cli.helpers import REPO, command, weights

POINTS = ["data=ring", "network=mlp", "trainer.max_steps=8", "data.batch_size=64", "metrics.every_n_steps=8"]
FOUR = {
    "gan": ["model=gan"],
    "wgan_gp": ["model=wgan_gp"],  # double backward, several batches an iteration
    "began": ["model=began"],  # simultaneous updates, k_t on the global batch
    "vae": ["model=vae", "likelihood=gaussian"],
}
TWO = ["trainer=ddp", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """All runs on two processes, started once: torch is imported twice, not twenty times."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [[[*TWO, *POINTS, *FOUR[name]], str(folder / name), None] for name in FOUR]
    jobs += [[[*TWO, *POINTS, *FOUR["gan"], "trainer.max_steps=4", "callbacks=none"], str(folder / "cut"), None]]
    jobs += [[None, str(folder / "cut"), 8]]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launch, "-m", "tests.cli.two_processes", json.dumps(jobs)],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", FOUR)
def test_two_processes_train_as_one(name, two, tmp_path):
    """In float32, so sums in another order differ in the last bits."""
    train(compose([*FOUR[name], *POINTS, "trainer=cpu"]), tmp_path / "one")
    alone, shared = weights(tmp_path / "one"), weights(two / name)
    for part in (0, 1):  # the live weights and the averages
        assert alone[part].keys() == shared[part].keys()
        for key, value in alone[part].items():
            torch.testing.assert_close(shared[part][key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: key + m)
    checkpoint = torch.load(two / name / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["genlab"]["random"]) == 2  # each process's own


def test_two_processes_resume(two):
    """4 + 4 iterations on two processes are 8."""
    for key, value in weights(two / "gan")[0].items():
        assert torch.equal(value, weights(two / "cut")[0][key]), key


def test_the_command_line_starts_the_second_process(tmp_path):
    result = command([*TWO, *POINTS, "trainer.max_steps=2", "callbacks=none", "logger=csv"], tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list(Path(tmp_path, "outputs").glob("2*"))) == 1  # one run folder, not one a process
    assert (
        len(torch.load(tmp_path / "outputs/latest/checkpoints/last.ckpt", weights_only=True)["genlab"]["random"]) == 2
    )


def test_a_batch_that_cannot_be_shared(tmp_path):
    result = command([*TWO, "data=ring", "data.batch_size=7"], tmp_path)
    assert result.returncode == 2 and "batch_size" in result.stderr and "Traceback" not in result.stderr


def test_a_sweep_takes_one_device(tmp_path):
    result = command(["-m", "trainer=ddp", "seed=1,2", "trainer.max_steps=2"], tmp_path)
    assert result.returncode == 1 and "one device" in result.stderr and "Traceback" not in result.stderr
