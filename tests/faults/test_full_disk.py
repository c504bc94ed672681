"""A disk that fills up under a run: the last good checkpoint stays, the message names the path and the room."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.cli.helpers import REPO
from tests.faults.conftest import TINY

MOUNT = 'mount -t tmpfs -o size=768k tmpfs "$0" && exec "$@"'


def can_mount(folder):
    """Whether a small disk of one's own can be had here, without being root."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", MOUNT, str(folder), "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_disk_that_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no tmpfs can be mounted here")
    line = [*TINY, "trainer.max_steps=60", "checkpoint.every_n_steps=1", "checkpoint.keep=50"]
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            MOUNT,
            str(disk),
            sys.executable,
            "-m",
            "tests.faults.full_disk",
            str(disk),
            *line,
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["alone"][0] == 0, told["alone"]
    code, said = told["full"]
    assert code == 3 and "Traceback" not in said
    assert re.search(r"disk/run/\S+ could not be written \(No space left on device\); \d MiB are free there", said), (
        said
    )
    assert "The last good checkpoint is" in said and "last.ckpt" in told["left"]
    assert not [name for name in told["left"] if name.endswith(".tmp")]
    code, said = told["again"]
    assert code in (2, 3) and "Traceback" not in said and str(disk) in said, said
    assert told["made_room"][0] == 0, told["made_room"]
