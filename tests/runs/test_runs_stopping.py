"""Signals outside of training: a run in its set-up, a sweep between two jobs, and the worker processes of a sweep."""

import itertools
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from genlab import launch
from genlab.config import composition
from genlab.errors import Interrupted
from genlab.runs import running, stopping
from tests.cli.helpers import REPO, main
from tests.runs.test_runs_sweeps import QUICK, plugin, statuses

WORKER = """
import sys, time
from genlab.runs import stopping
for number in (1, 2):
    with stopping.job() as wanted:
        print("job", number, wanted, flush=True)
        time.sleep(30 if wanted else 0)
print("idle", flush=True)
time.sleep(30)
"""
MAIN = """
import subprocess, sys
from pathlib import Path
from genlab import launch
launch.announce_sweep(Path("."))
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.pop(launch.SWEEP, None)


def environment():
    """Of a process that runs this checkout; it may be a worker of a sweep of this process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}


def python(code, *arguments):
    """Starts Python with some code; its output can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def ending_with(function, number, after=0):
    """The function, with a signal to this process first; not in the first `after` calls."""
    calls = itertools.count()

    def ended(*args, **kwargs):
        if next(calls) >= after:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return ended


def test_a_run_stopped_in_its_set_up_says_how_to_go_on(monkeypatch, capsys):
    line = [*QUICK, "trainer.max_steps=2", "hydra.run.dir=run"]
    with monkeypatch.context() as patched:
        patched.setattr(running, "_prepare_data", ending_with(running._prepare_data, signal.SIGTERM))
        assert main(patched, *line) == 143
    out = capsys.readouterr().out
    assert re.search(r"Stopped before the first iteration. Go on with: python \S*train.py resume=\S*run\n", out), out
    assert main(monkeypatch, "resume=run", "model=vae") == 2
    assert "'model=vae' cannot be changed" in capsys.readouterr().err
    assert main(monkeypatch, "resume=run", "trainer.max_steps=3") == 0
    assert statuses("run") == ["done"] and Path("run/metrics.csv").is_file()
    assert "max_steps: 3" in Path("run/config.yaml").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_stopped_between_two_jobs_says_how_to_go_on(number, monkeypatch, capsys):
    checked = 2  # the first and the last job, before Hydra starts
    monkeypatch.setattr(composition, "resolve", ending_with(composition.resolve, number, checked))
    assert main(monkeypatch, "-m", *QUICK, "seed=0,1", "hydra.sweep.dir=sweep") == 128 + number
    assert "train.py resume=sweep" in capsys.readouterr().out
    assert launch.sweep() is None and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_first_signal_is_passed_on_to_workers_and_the_second_ends_them(monkeypatch, capsys):
    monkeypatch.setattr("multiprocessing.active_children", lambda: ["a worker"])
    for signals, told in (((15,), "15"), ((2, 15), "15"), ((15, 15), "15")):
        lived = []
        with pytest.raises(Interrupted) as stopped, stopping.sweep():
            launch.announce_sweep(Path("."))
            for number in signals:
                os.kill(os.getpid(), number)
                lived.append(Path(".stop").read_text())
        assert stopped.value.code == 128 + signals[0]
        assert lived == ["15"] if signals == (15, 15) else lived[-1] == told and len(lived) == len(signals)
        assert not Path(".stop").exists() and launch.sweep() is None
    with pytest.raises(KeyboardInterrupt), stopping.sweep():  # no sweep has begun
        os.kill(os.getpid(), signal.SIGINT)
    capsys.readouterr()


def test_a_signal_crosses_processes():
    assert pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM))).code == 143


def test_a_worker_ends_its_job_and_starts_no_other_when_its_sweep_is_stopped():
    launch.announce_sweep(Path("."))
    worker = python(WORKER)
    assert worker.stdout.readline() == "job 1 True\n"
    launch.sweep().stop_file.write_text("15")
    assert [worker.stdout.readline() for _ in range(2)] == ["job 2 False\n", "idle\n"]
    assert worker.poll() is None  # the main process ends it
    worker.kill()
    worker.communicate()


def test_a_worker_ends_with_the_main_process_even_if_that_is_killed():
    parent = python(MAIN, WORKER)
    assert parent.stdout.readline() == "job 1 True\n"
    parent.kill()
    began = time.monotonic()
    assert "True" not in parent.stdout.read()  # until the end of the worker closes its output
    assert time.monotonic() - began < 20
    parent.communicate()


BLOCKED = "import signal; print(sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True)"
WITHIN = f"from genlab.runs import stopping\n{BLOCKED}\nwith stopping.job():\n    {BLOCKED}"


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows")
def test_a_worker_that_is_starting_does_not_hear_ctrl_c(capsys):
    """It would die while it imports. Its first job hears it again, and so does a data loader's process."""
    start, spawn = BaseProcess.start, multiprocessing.get_context("spawn")
    with stopping.sweep():
        launch.announce_sweep(Path("."))
        for daemon, blocked in ((False, "[2, 15]\n"), (True, "[]\n")):
            code = f"import sys; sys.stdout = open('blocked.txt', 'w'); {BLOCKED}"
            process = spawn.Process(target=subprocess.call, args=([sys.executable, "-c", code],), daemon=daemon)
            process.start()
            process.join(60)
            assert Path("blocked.txt").read_text() == blocked
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # here they are heard
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping.STOPS)
        worker = python(WITHIN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.STOPS)
        assert worker.communicate(timeout=60)[0] == "[2, 15]\n[]\n"
    assert BaseProcess.start is start


@pytest.mark.long
@plugin("hydra_joblib_launcher")
@pytest.mark.parametrize("after", [0.0, 1.0])
def test_ctrl_c_while_the_workers_of_a_joblib_sweep_start(after):
    """To the whole process group, as a terminal sends it."""
    line = [*QUICK, "trainer.max_steps=1000000", "threads=1", "seed=0,1,2,3", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), "-m", *line, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    children, end = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + 60
    while children.is_file() and time.monotonic() < end and process.poll() is None:
        commands = [Path(f"/proc/{child}/cmdline") for child in children.read_text().split()]
        if any("popen_loky" in command.read_text() for command in commands if command.is_file()):
            break
        time.sleep(0.01)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out and "Error" not in out, out
    assert "train.py resume=sweep" in out.splitlines()[-1]
    assert not list(Path("sweep").glob("*/checkpoints/*.ckpt"))


@pytest.mark.long
@plugin("hydra_joblib_launcher")
def test_a_joblib_sweep_ends_with_its_workers_and_checkpoints():
    """SIGTERM to the main process alone: both runs write a checkpoint, two never start, and no process is left."""
    steps = ["trainer.max_steps=1000000", "checkpoint.every_n_steps=500000", "threads=1"]
    line = [*QUICK, *steps, "seed=0,1,2,3", "hydra.sweep.dir=sweep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), "-m", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    end = time.monotonic() + 120
    while not all(Path(f"sweep/{i}/metrics.csv").is_file() for i in (0, 1)) and time.monotonic() < end:
        time.sleep(0.1)
    process.terminate()
    out, _ = process.communicate(timeout=120)  # the output is closed once no process holds it
    assert process.returncode == 143 and "Traceback" not in out, out
    assert "train.py resume=sweep" in out.splitlines()[-1]
    assert [statuses(f"sweep/{i}") for i in (0, 1)] == [["interrupted"], ["interrupted"]]
    assert all(Path(f"sweep/{i}/checkpoints/last.ckpt").is_file() for i in (0, 1))
    assert not list(Path("sweep").glob("[23]/config.yaml"))
