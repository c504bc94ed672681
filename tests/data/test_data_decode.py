"""Decoding in processes: the same as in threads, robust against dying workers, parents and careless scripts."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data import decode as decode_module
from genlab.data.decode import ImageEntry, decode_all
from genlab.data.folders import ImageFolder, ImageZip
from genlab.data.store import prepare_images
from genlab.errors import UserError

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def processes(monkeypatch):
    """Even a few images are decoded in processes."""
    monkeypatch.setattr(decode_module, "_PROCESSES_FROM", 1)


def make_folder(root: Path, count: int) -> Path:
    for k in range(count):
        path = root / "ab"[k % 2] / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.RandomState(k).randint(0, 256, (9, 13, 3)).astype(np.uint8)).save(path)
    return root


def entries_in(root: Path) -> list[ImageEntry]:
    return [ImageEntry(path.name, (0, 0), path.read_bytes) for path in sorted(root.rglob("*.png"))]


def test_processes_and_threads_give_the_same_images_and_the_same_list_of_broken_ones(tmp_path, monkeypatch):
    entries = entries_in(make_folder(tmp_path, 70))
    (tmp_path / "a" / "004.png").write_bytes(b"no image")
    (tmp_path / "b" / "069.png").unlink()
    entries = sorted(entries, key=lambda entry: entry.name)
    results = []
    for threshold in (1000, 1):
        monkeypatch.setattr(decode_module, "_PROCESSES_FROM", threshold)
        array = np.zeros((70, 3, 6, 6), np.uint8)
        results.append((decode_all(entries, array, workers=3)[0], array))
    (in_threads, a), (in_processes, b) = results
    np.testing.assert_array_equal(a, b)
    assert in_threads == in_processes
    assert [(position, name) for position, name, _ in in_processes] == [(4, "004.png"), (69, "069.png")]
    assert a[4].max() == 0 < a[5].max()


def test_a_zip_is_opened_again_by_each_process(tmp_path, monkeypatch, processes):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "set", 40)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root))
    monkeypatch.chdir(tmp_path)  # a relative path must reach the processes too
    options = {"image_size": 8, "channels": 3, "batch_size": 4, "num_workers": 3}
    prints = [cls(root=path, **options).describe()["fingerprint"] for cls, path in SOURCES]
    assert prints[0] == prints[1]


SOURCES = [(ImageFolder, Path("set")), (ImageZip, Path("set.zip"))]


def test_a_worker_that_dies_is_one_sentence_and_leaves_nothing(tmp_path, processes):
    entries = entries_in(make_folder(tmp_path / "set", 40))
    entries[35] = ImageEntry("deadly.png", (0, 0), partial(os._exit, 9))  # as the kernel does when memory runs out
    with pytest.raises(UserError, match=r"One of 4 processes .* was killed.*data\.num_workers=2\.$"):
        prepare_images(entries, (8, 8), 3, tmp_path / "cache", workers=4)
    assert list((tmp_path / "cache").iterdir()) == []


def test_readers_that_no_process_can_have_are_used_by_threads(tmp_path, processes):
    data = next(make_folder(tmp_path, 1).rglob("*.png")).read_bytes()
    array = np.zeros((3, 3, 9, 13), np.uint8)
    assert decode_all([ImageEntry(str(k), (0, 0), lambda: data) for k in range(3)], array, workers=4) == ([], None)
    torch.testing.assert_close(array[0], array[2])
    assert array.max() > 0


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
import numpy as np
from genlab.data import decode
print("started", flush=True)
decode._PROCESSES_FROM = 1
files = sorted(Path(sys.argv[1]).rglob("*.png"))
entries = [decode.ImageEntry(f.name, (0, 0), {read}) for f in files]
array = np.zeros((len(files), 3, 8, 8), np.uint8)
print(decode.decode_all(entries, array, 3)[0], bool(array.any()))
"""


def test_a_script_without_a_guard_is_not_run_again_by_the_processes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(read="f.read_bytes"))
    command = [sys.executable, str(tmp_path / "script.py"), str(make_folder(tmp_path / "set", 40))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=120)
    assert done.stdout == "started\n[] True\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_the_processes_end_when_their_parent_is_killed(tmp_path):
    """The readers tell their process's number and then wait; without a parent they must not wait for ever."""
    (tmp_path / "reader.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def read(folder):\n    Path(folder, f'{os.getpid()}.pid').touch()\n    time.sleep(600)\n"
    )
    (tmp_path / "script.py").write_text("import reader\n" + SCRIPT.format(read="partial(reader.read, sys.argv[2])"))
    command = [sys.executable, str(tmp_path / "script.py"), str(make_folder(tmp_path / "set", 96)), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(REPO)}) as parent:
        workers = wait_for(lambda: found if len(found := list(tmp_path.glob("*.pid"))) == 3 else None)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for(lambda: not any(alive(int(path.stem)) for path in workers))


def wait_for(what):
    """The first true value of `what()`; a minute is far more than it takes on any machine."""
    for _ in range(1200):
        value = what()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
