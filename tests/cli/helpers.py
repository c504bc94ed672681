"""Running commands as a user would, and comparing what they leave."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from genlab.models.gan import GAN

REPO = Path(__file__).resolve().parents[2]


def command(arguments, cwd, timeout=120, **kwargs):
    """Runs `python train.py ...` in a folder; text output, no exception on failure."""
    script = kwargs.pop("script", "train.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    return subprocess.run(
        [sys.executable, str(REPO / script), *arguments],
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        timeout=timeout,
        **kwargs,
    )


def on_two_processes(module, *arguments):
    """Runs a module of the tests under torchrun, on two processes of one thread each; it must succeed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", module]
    result = subprocess.run(
        [*launch, *arguments],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(run):
    """All weights, averages and optimizer states of a run's last checkpoint."""
    checkpoint = torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["genlab"]["ema"], checkpoint["optimizer_states"]


def assert_identical(a, b, path=""):
    """Bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def main(monkeypatch, *arguments):
    """The command line in this process; its exit code."""
    from genlab.cli import train as cli

    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    try:
        cli.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


@contextlib.contextmanager
def signal_in(iteration, number):
    """Lets a signal come in the middle of an iteration."""

    def training_step(self, batch, index):
        if self.iteration + 1 == iteration:
            os.kill(os.getpid(), number)
        step(self, batch, index)

    step = GAN.training_step
    GAN.training_step = training_step
    try:
        yield
    finally:
        GAN.training_step = step
