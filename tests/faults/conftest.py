"""A tiny run to break."""

import shutil

import pytest

from genlab.config.composition import compose
from genlab.runs.start import train

TINY = ["data=ring", "trainer=cpu", "callbacks=none", "logger=csv", "metrics=none", "network.hidden=[16]", "threads=1"]
LINE = [*TINY, "trainer.max_steps=8", "checkpoint.every_n_steps=2", "checkpoint.keep=3"]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A run of `LINE` that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(compose(LINE), folder)
    return folder


@pytest.fixture
def run(whole_run, tmp_path, monkeypatch):
    """A copy of it, which can go on: `resume=run trainer.max_steps=12`."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(whole_run, tmp_path / "run")
