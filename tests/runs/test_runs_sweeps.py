"""Sweeps: side by side, on a cluster, and going on with what is missing after they were cut short."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from genlab.config.composition import check_plugins, compose
from genlab.errors import UserError
from genlab.runs import sweeps
from genlab.runs.start import train
from tests.cli.helpers import REPO, assert_identical, main, signal_in, weights

QUICK = ["data=ring", "trainer=cpu", "callbacks=none", "logger=csv", "metrics=none", "network.hidden=[16]"]


def plugin(name):
    """Skips a test where a plugin of Hydra is not installed."""
    missing = find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{name}") is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


@pytest.fixture(autouse=True)
def _outside_of_any_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)


def statuses(run):
    return [s["status"] for s in json.loads((Path(run) / "run.json").read_text())["sessions"]]


@pytest.mark.long
def test_a_sweep_that_was_killed_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    """SIGKILL in the second of three jobs: the first is left alone, the second resumed exactly, the third started."""
    line = [*QUICK, "trainer.max_steps=400", "checkpoint.every_n_steps=20", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), "-m", *line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = Path("sweep/1/checkpoints/last.ckpt")
    end = time.time() + 120
    while not last.is_file() and process.poll() is None and time.time() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert last.is_file() and statuses("sweep/0") == ["done"]
    first = Path("sweep/0/checkpoints/last.ckpt").stat().st_mtime_ns

    assert main(monkeypatch, "resume=sweep") == 0
    assert Path("sweep/0/checkpoints/last.ckpt").stat().st_mtime_ns == first and statuses("sweep/0") == ["done"]
    assert statuses("sweep/1")[-1] == "done" and statuses("sweep/2") == ["done"]
    train(compose([*line[:-2], "seed=1"]), tmp_path / "alone")
    assert_identical(weights("sweep/1"), weights("alone"))
    assert yaml.safe_load(Path("sweep/2/config.yaml").read_text())["seed"] == 2


def test_a_sweep_that_is_stopped_says_how_it_goes_on(monkeypatch, capsys):
    """And with other lengths: what is done is trained further, what is missing for as long."""
    line = ["-m", *QUICK, "trainer.max_steps=4", "seed=0,1", "hydra.sweep.dir=a sweep (1)"]
    with signal_in(3, signal.SIGTERM):
        assert main(monkeypatch, *line) == 143
    assert "train.py 'resume=a sweep (1)'" in capsys.readouterr().out
    assert not Path("a sweep (1)/1").exists()
    assert main(monkeypatch, "resume=a sweep (1)", "trainer.max_steps=6") == 0
    assert [weights(f"a sweep (1)/{i}")[2][0]["state"][0]["step"] for i in (0, 1)] == [6, 6]
    assert [statuses(f"a sweep (1)/{i}") for i in (0, 1)] == [["interrupted", "done"], ["done"]]
    assert main(monkeypatch, "resume=a sweep (1)") == 0  # nothing is left to do
    assert statuses("a sweep (1)/0") == ["interrupted", "done"]


def test_a_job_that_fails_is_tried_again_and_the_others_are_not(monkeypatch, capfd):
    line = ["-m", *QUICK, "trainer.max_steps=2", "ema.decay=0.9,1.5", "hydra.sweep.dir=sweep"]
    assert main(monkeypatch, *line) == 1
    assert main(monkeypatch, "resume=sweep") == 1
    assert capfd.readouterr().err.count("ema.decay must be a number in [0, 1)") >= 2
    assert statuses("sweep/0") == ["done"]


def test_another_sweep_does_not_go_on_in_the_same_folder(monkeypatch, capfd):
    line = ["-m", *QUICK, "trainer.max_steps=2", "hydra.sweep.dir=sweep"]
    assert main(monkeypatch, *line, "seed=0") == 0
    assert main(monkeypatch, *line, "seed=0") == 0  # the same one does
    assert statuses("sweep/0") == ["done"]
    assert main(monkeypatch, *line, "seed=5") == 1
    assert "holds a run of another composition" in capfd.readouterr().err


def saved(folder, **changes):
    """What Hydra writes of a sweep, as far as it is read."""
    hydra = {
        "sweeper": {"_target_": "hydra._internal.BasicSweeper"},
        "overrides": {"task": ["seed=1,2"], "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=joblib"]},
        "runtime": {"config_sources": [{"path": "hydra.conf", "provider": "hydra"}]},
    }
    folder.mkdir(exist_ok=True)
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {**hydra, **changes}}))
    return str(folder)


def test_the_command_of_a_sweep_is_made_again(tmp_path):
    folder = saved(tmp_path / "sweep")
    place = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert sweeps.is_sweep(folder) and not sweeps.is_sweep(str(tmp_path))
    assert sweeps.command(folder, []) == ["-m", "seed=1,2", "hydra/launcher=joblib", place]
    typed = ["-m", "hydra.launcher.n_jobs=4", "trainer.max_steps=9"]
    assert sweeps.command(folder, typed)[3:] == [*typed[1:], place]
    with pytest.raises(UserError, match="'model=vae' cannot be changed"):
        sweeps.command(folder, ["model=vae"])
    own = {"config_sources": [{"path": "/mine", "provider": "command-line"}]}
    assert sweeps.command(saved(tmp_path / "own", runtime=own), [])[1:3] == ["--config-dir", "/mine"]
    search = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"}
    with pytest.raises(UserError, match="is a search.*hydra.sweeper.storage"):
        sweeps.command(saved(tmp_path / "search", sweeper=search), [])


def test_what_makes_a_run_the_one_that_it_is():
    """Lengths and places do not; a first stage is looked up once and stands in the model from then on."""
    config = compose(["trainer.max_steps=5", "data.batch_size=7"])
    longer = compose(["trainer.max_steps=9", "data.batch_size=7", "max_time=00:00:01", "threads=3"])
    assert sweeps.comparable(config) == sweeps.comparable(longer)
    assert sweeps.comparable(config) != sweeps.comparable(compose(["trainer.max_steps=5", "data.batch_size=8"]))
    assert sweeps.with_lengths(config, longer) == longer and config["trainer"]["max_steps"] == 5
    staged = {**config, "first_stage": "run", "model": {**config["model"], "first_stage": {"a": 1}}}
    assert sweeps.comparable(staged) == sweeps.comparable({**config, "first_stage": "run"})


@pytest.mark.parametrize(
    ("argument", "extra"),
    [("hydra/launcher=joblib", "sweep"), ("hydra/launcher=slurm", "slurm"), ("hydra/launcher=submitit_local", "slurm")],
)
def test_a_missing_launcher_is_one_sentence(argument, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_plugins(["-m", "hydra/launcher=basic"])
    with pytest.raises(UserError, match=rf'{argument} needs .*pip install -e ".*\[{extra}\]"'):
        check_plugins(["-m", argument])


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@plugin("hydra_submitit_launcher")
def test_what_slurm_is_asked_for(tmp_path, monkeypatch, capfd):
    """A cluster that keeps the job's file and takes no job: what would run, for how long, and when it is warned."""
    with pytest.raises(UserError, match="no sbatch here"):
        check_plugins(["-m", "hydra/launcher=slurm"])
    program(tmp_path / "bin" / "srun", "#!/bin/sh\n")
    program(tmp_path / "bin" / "sbatch", f'#!/bin/sh\ncp "$1" {tmp_path}/job.sh\nexit 1\n')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    line = [
        "-m",
        *QUICK,
        "seed=0,1,2",
        "hydra.sweep.dir=sweep",
        "hydra/launcher=slurm",
        "hydra.launcher.timeout_min=30",
    ]
    assert main(monkeypatch, *line) == 1
    job = (tmp_path / "job.sh").read_text()
    for words in ("--array=0-2%3", "--time=30", "--signal=USR2@120", "--gpus-per-node=1", "submitit.core._submit"):
        assert words in job, job


SBATCH = """#!{python}
# Stands for a cluster: runs the tasks of a job one after the other, and those that are put back once more.
import os, pathlib, subprocess, sys
job, place = sys.argv[1], pathlib.Path({place!r})
(place / "job.sh").write_text(pathlib.Path(job).read_text())
if os.fork():
    print("Submitted batch job 4242")
    sys.exit()
os.setsid()
for stream in (1, 2):
    os.dup2(os.open(place / "batch.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
for task in ("0", "1"):
    again = place / f"requeue_4242_{{task}}"
    while True:
        again.unlink(missing_ok=True)
        ids = {{"SLURM_JOB_ID": "4242" + task, "SLURM_ARRAY_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": task}}
        ids |= {{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}}
        ids |= {{"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here", "SLURM_STEP_ID": "0"}}
        subprocess.run(["bash", job], env={{**os.environ, **ids}})
        if not again.exists():
            break
"""
SRUN = """#!{python}
# Starts the task's program; the first one is told, as soon as it has a checkpoint, that its time is running out.
import pathlib, signal, subprocess, sys, time
place = pathlib.Path({place!r})
start = next(i for i, a in enumerate(sys.argv) if "python" in a)
process = subprocess.Popen(sys.argv[start:])
while process.poll() is None:
    time.sleep(0.02)
    if (place / "sweep/0/checkpoints/last.ckpt").is_file() and not (place / "told").exists():
        (place / "told").touch()
        process.send_signal(signal.SIGUSR2)
sys.exit(process.returncode)
"""


@pytest.mark.slow
@plugin("hydra_submitit_launcher")
def test_a_sweep_on_a_cluster_that_interrupts_its_jobs(tmp_path):
    """Two jobs through submitit's SLURM: the first is warned, put back into the queue, and goes on exactly."""
    names = {"python": sys.executable, "place": str(tmp_path)}
    program(tmp_path / "bin" / "sbatch", SBATCH.format(**names))
    program(tmp_path / "bin" / "srun", SRUN.format(**names))
    program(tmp_path / "bin" / "scontrol", f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntouch {tmp_path}/requeue_"$2"\n')
    program(tmp_path / "bin" / "sacct", "#!/bin/sh\necho 'JobID|State|NodeList'\n")
    steps = ["trainer.max_steps=1500", "checkpoint.every_n_steps=20"]
    line = ["-m", *QUICK, *steps, "seed=0,1", "hydra.sweep.dir=sweep", "hydra/launcher=slurm"]
    result = subprocess.run(
        [sys.executable, str(REPO / "train.py"), *line],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    logs = "".join(p.read_text() for p in tmp_path.glob("sweep/.submitit/**/*.err"))
    assert result.returncode == 0, result.stderr + logs
    assert (tmp_path / "asked").read_text() == "requeue 4242_0\n"
    assert statuses("sweep/0") == ["interrupted", "done"] and statuses("sweep/1") == ["done"]
    train(compose([*QUICK, *steps, "seed=0"]), tmp_path / "alone")
    assert_identical(weights("sweep/0"), weights("alone"))
