"""What a run meets when its files are damaged, its data are, or somebody else is at it: it goes on or says why."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genlab.files import FolderLock
from tests.cli.helpers import assert_identical, main, signal_in, weights
from tests.faults.conftest import LINE, TINY

LONGER = "trainer.max_steps=10"


def refused(monkeypatch, capfd, *arguments, code=2):
    """The sentence that a command is refused with."""
    capfd.readouterr()
    assert main(monkeypatch, *arguments) == code
    output = capfd.readouterr().err
    assert "Traceback" not in output and len(output) < 1500
    return output


# Checkpoints


def cut(data, draw):
    return data[: draw.randrange(len(data))]


def flip(data, draw):
    """One bit is another."""
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def zeros(data, draw):
    """A block that never reached the disk."""
    at = draw.randrange(len(data) - 512)
    return data[:at] + bytes(512) + data[at + 512 :]


@pytest.mark.parametrize("damage", [cut, flip, zeros])
def test_a_damaged_checkpoint_is_named_or_harmless(damage, run, whole_run, monkeypatch, capfd):
    """Never silently wrong: it is refused by name, or what was hit carries nothing and the outcome is the same."""
    last, draw = run / "checkpoints" / "last.ckpt", random.Random(7)
    data, refusals = last.read_bytes(), 0
    for _ in range(8):
        last.write_bytes(damage(data, draw))
        capfd.readouterr()
        code = main(monkeypatch, f"resume={run}", "dry_run=true")
        output = capfd.readouterr().err
        assert "Traceback" not in output
        if code == 2:
            refusals += 1
            assert str(last) in output and "damaged" in output and "step_0000006.ckpt" in output
        else:
            assert_identical(weights(run), weights(whole_run))
    assert refusals >= 6


def test_the_checkpoint_before_a_damaged_one_goes_on(run, whole_run, monkeypatch, capfd):
    """The message names those that are left, and from one of them the run comes to the same end."""
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    assert "Others there: step_0000004.ckpt, step_0000006.ckpt." in refused(monkeypatch, capfd, "resume=run")
    assert main(monkeypatch, "resume=run/checkpoints/step_0000006.ckpt") == 0
    assert_identical(weights(run), weights(whole_run))


def change(run, how):
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    how(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda c: c["genlab"].pop("ema"), "not written by genlab"),
        (lambda c: c["genlab"]["ema"].clear(), "kept moving averages, but the file holds none"),
        (lambda c: c["genlab"]["ema"].popitem(), "averages do not fit"),
        (lambda c: c["state_dict"].popitem(), "does not fit"),
        (lambda c: c.pop("global_step"), "it has no global_step"),
        (lambda c: c.pop("optimizer_states"), "it has no optimizer_states"),
        (lambda c: c.pop("loops"), "it has no loops"),
        (lambda c: c.pop("callbacks"), "it has no callbacks"),
        (lambda c: c["optimizer_states"][0]["state"].clear(), None),
    ],
)
def test_a_checkpoint_with_a_part_missing(how, words, run, monkeypatch, capfd):
    change(run, how)
    if words is None:  # as an optimizer that has not begun
        assert main(monkeypatch, "resume=run", LONGER) == 0
    else:
        assert words in refused(monkeypatch, capfd, "resume=run", LONGER)


# The other files of a run


CONFIGS = ["", "seed: [1", "- 1\n", "a: 1\n", "\x00\x01", "!!python/object/apply:os.getcwd []", "a: " * 9999, 0.5, 0.9]


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_a_damaged_config(text, run, monkeypatch, capfd):
    path = run / "config.yaml"
    whole = path.read_text()
    path.write_text(whole[: int(text * len(whole))] if isinstance(text, float) else text)
    assert f"{path}" in refused(monkeypatch, capfd, f"resume={run}", LONGER)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"sessions": 3}'])
def test_a_damaged_record_is_begun_anew(text, run, monkeypatch):
    (run / "run.json").write_text(text)
    assert main(monkeypatch, "resume=run", LONGER) == 0
    assert [s["status"] for s in json.loads((run / "run.json").read_text())["sessions"]] == ["done"]


# Data


def test_a_broken_jpeg_is_named_and_can_be_left_out(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    for k in range(40):
        Image.fromarray(np.random.RandomState(k).randint(0, 255, (16, 16, 3), dtype=np.uint8)).save(f"set/{k:02d}.jpg")
    broken = Path("set/07.jpg")
    broken.write_bytes(broken.read_bytes()[:200])
    line = ["data=folder", "data.root=set", "data.image_size=16", "data.batch_size=8", "network=mlp_image"]
    line += [*TINY[1:-2], "threads=1", "trainer.max_steps=2", "hydra.run.dir=run"]
    output = refused(monkeypatch, capfd, *line)
    assert "07.jpg" in output and "data.skip_broken=true" in output and not Path("run/config.yaml").exists()
    assert main(monkeypatch, *line, "data.skip_broken=true") == 0


# Two runs


HOLDER = """
import sys
from pathlib import Path
from genlab.files import FolderLock
lock = FolderLock(Path(sys.argv[1]))
assert lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_never_write_to_one_folder(run, monkeypatch, capfd):
    """The second is told who has it, and touches nothing; once the first is killed, the folder is free."""
    command = [sys.executable, "-c", HOLDER, str(run)]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert re.search(
            rf"in use by process {other.pid} on .* since", refused(monkeypatch, capfd, "resume=run", LONGER)
        )
        assert {p: p.read_bytes() for p in before} == before
        other.kill()
    assert main(monkeypatch, "resume=run", LONGER) == 0


def test_two_new_runs_in_one_folder(tmp_path, monkeypatch, capfd):
    """The first has not come to a checkpoint yet; Hydra must not write its own files over the first one's."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    with FolderLock(Path("run")) as lock:
        assert lock.take()
        assert "in use by process" in refused(monkeypatch, capfd, *LINE, "hydra.run.dir=run")
        assert [p.name for p in Path("run").iterdir()] == [".lock"]
    assert main(monkeypatch, *LINE, "hydra.run.dir=run") == 0


def test_a_lock_is_let_go_of_however_a_run_ends(run, monkeypatch, capfd):
    assert main(monkeypatch, "resume=run", LONGER) == 0
    with FolderLock(run) as lock:
        assert lock.take() and lock.take()
        other = FolderLock(run)
        assert not other.take() and f"process {os.getpid()}" in other.holder()
    assert other.take()
    other.release()


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_can_go_on(number, run, whole_run, tmp_path, monkeypatch, capfd):
    with signal_in(5, number):
        assert main(monkeypatch, *LINE, "hydra.run.dir=stopped") == 128 + number
    out = capfd.readouterr()
    assert re.search(r"Stopped after iteration 5\. Go on with: python \S*train\.py resume=\S*stopped\n", out.out)
    assert "Traceback" not in out.err
    assert torch.load("stopped/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert main(monkeypatch, "resume=stopped") == 0
    assert_identical(weights("stopped"), weights(whole_run))
    assert yaml.safe_load(Path("stopped/config.yaml").read_text())["trainer"]["max_steps"] == 8
