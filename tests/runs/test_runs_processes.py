"""Two processes on half the batch each do what one does on the whole batch."""

import contextlib
import copy
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from torch.nn.modules.batchnorm import _BatchNorm

from genlab import launch
from genlab.config.composition import compose, insisted
from genlab.config.shipped import options, read_option
from genlab.errors import UserError
from genlab.looks.curves import read_metrics
from genlab.runs import processes
from genlab.runs.running import build, make_trainer
from genlab.runs.start import train
from tests.cli.helpers import REPO, assert_identical, main, on_two_processes, signal_in, weights
from tests.runs.two_processes import last_iteration

pytestmark = pytest.mark.matrix

POINTS = ["data=ring", "network=mlp", "trainer.max_steps=8", "data.batch_size=64", "callbacks=none", "logger=csv"]
ALIKE = {
    "gan": ["model=gan"],
    "wgan_gp": ["model=wgan_gp"],  # double backward, several batches an iteration
    "began": ["model=began"],  # simultaneous updates, k_t on the global batch
    "vae": ["model=vae", "likelihood=gaussian"],
    "replay": ["model=gan", "tricks.replay=0.5", "tricks.replay_size=128"],  # one pool, of the global batch
}
TWO = ["trainer=ddp", "trainer.accelerator=cpu"]
TINY = ["data.batch_size=8", "trainer=cpu", "trainer.max_steps=3", "callbacks=none", "logger=none"]
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of each gradient's greatest value
# Twelve updates by Adam in one iteration; parts of a gradient that cancel to a 500th: of real and fake samples, or of
# right and wrong pairs.
FLOAT64_ONLY = ("model=dc_vae", "model=swapping_autoencoder", "model=gawwn")


def tiny(model, *overrides):
    """A composition whose networks are small and, where the family has the choice, free of batch norm."""
    network = insisted(model, "network") or "mlp"
    keys = read_option("network", network)
    data = insisted(model, "data") or "digits"
    overrides = [*TINY, f"data={data}", "metrics=none", f"model={model}", f"network={network}", *overrides]
    overrides += [f"network.{key}=none" for key in ("norm", "generator_norm", "critic_norm") if key in keys]
    overrides += ["network.width=8"] if "width" in keys else []
    overrides += ["network.hidden=[16]"] if "hidden" in keys else []
    return compose(overrides)


GRADIENTS = {
    **{f"model={name}": [name] for name in options("model")},
    **{f"penalty={name}": ["gan", f"penalty={name}"] for name in options("penalty")},
    "network.spectral_norm=true": ["gan", "network.spectral_norm=true"],
    **{f"conditioning={name}": ["cgan", f"conditioning={name}"] for name in ("hidden", "projection")},
    **{f"optim.accumulate=2 {name}": [name, "optim.accumulate=2"] for name in ("wgan_gp", "began", "vqvae")},
    "derive=noisy": ["cvae", "derive=noisy", "model.given=[c]"],  # draws of its own in each batch
}
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
TWO_D = {"_target_": "genlab.data.toy.SwissRoll", "batch_size": 1}
MERGED = {  # two corpora in one batch, each with an order of its own
    "model": {"_target_": "tests.models.toys.Unpaired", "optimizer": SGD},
    "data": {
        "_target_": "genlab.data.unpaired.Unpaired",
        "domains": {"a": {"_target_": "genlab.data.toy.Ring", "batch_size": 1}, "b": TWO_D},
        "batch_size": 8,
        "shape": [2],
    },
}


def losses(gan):
    """The configs of the plain GAN with every objective that it takes; the others come with their models."""
    for name in options("loss"):
        config = copy.deepcopy(gan)
        config["model"]["loss"] = read_option("loss", name)
        with contextlib.suppress(UserError):
            build(config)
            yield f"loss={name}", config


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """All runs on two processes, started once: torch is imported twice, not a hundred times.

    Gives their folder, and the resolved configs of the short runs whose gradients lie there.
    """
    folder = tmp_path_factory.mktemp("two")
    configs = {name: tiny(*overrides) for name, overrides in GRADIENTS.items()}
    configs |= losses(configs["model=gan"])
    configs["merged streams"] = {**configs["model=gan"], **MERGED}
    jobs = [["train", [*TWO, *POINTS, *ALIKE[name]], str(folder / name)] for name in ALIKE]
    jobs += [["train", [*TWO, *POINTS, *ALIKE["gan"], "trainer.max_steps=4"], str(folder / "cut")]]
    jobs += [["resume", 8, str(folder / "cut")], ["stamp", None, str(folder / "stamp")]]
    watched = ["callbacks=default", "~callbacks.grid", "~callbacks.scores", "callbacks.players.every_n_steps=2"]
    watched += ["metrics=none", "tricks.minibatch_discrimination=true"]
    points = [word for word in POINTS if word != "callbacks=none"]
    jobs.append(["train", [*TWO, *points, *ALIKE["gan"], *watched], str(folder / "watched")])
    for name, config in configs.items():
        for precision in precisions(name):
            shared = with_precision(config, precision)
            shared["trainer"] |= {"devices": 2, "strategy": "ddp"}
            jobs.append(["gradients", shared, str(folder / f"{name}-{precision}.pt")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    on_two_processes("tests.runs.two_processes", str(folder / "jobs.json"))
    return folder, configs


def precisions(name):
    wanted = name.startswith("model=") and name not in FLOAT64_ONLY
    return [p for p in TOLERANCE if p == "float64" or wanted]


def with_precision(config, precision):
    """Two iterations in float64, one in float32, where every further one would multiply what rounding leaves."""
    config = copy.deepcopy(config)
    config["speed"]["precision"] = precision
    config["trainer"]["max_steps"] = 2 if precision == "float64" else 1
    return config


def assert_two_are_one(name, two):
    """Half batches on two processes, and whole ones: the last iteration's gradients; in float64 the weights, too."""
    folder, configs = two
    for precision in precisions(name):
        tolerance, alone = TOLERANCE[precision], last_iteration(with_precision(configs[name], precision))
        failed = folder / f"{name}-{precision}.pt.failed"
        assert not failed.exists(), failed.read_text()
        shared = torch.load(folder / f"{name}-{precision}.pt", weights_only=True)
        parts = ["gradient", "weights"] if precision == "float64" else ["gradient"]
        for what, one, both in zip(parts, alone, shared, strict=False):
            assert one.keys() == both.keys()
            for key, value in one.items():
                if value.numel():
                    difference = (both[key].double() - value.double()).abs().max()
                    scale = value.double().abs().max()
                    assert difference <= tolerance * scale, (name, precision, what, key, difference, scale)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_two_processes_are_those_of_one(name, two):
    """To 1e-9 of the greatest in float64 and 1e-5 in float32; a model that is excluded says so instead."""
    model = build(two[1][name]).model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        with pytest.raises(UserError, match="one process"):
            said(model, two[1][name])
    elif any(isinstance(part, _BatchNorm) for part in model.modules()):
        assert "Batch norm" in said(model, two[1][name])
    else:
        assert said(model, two[1][name]) == ""
        assert_two_are_one(name, two)


def test_merged_streams_are_shared(two):
    assert_two_are_one("merged streams", two)


def test_gradients_of_two_processes_for_every_objective(two):
    names = [name for name in two[1] if name.startswith("loss=")]
    assert len(names) > 5
    for name in names:
        assert_two_are_one(name, two)


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_as_one(name, two, tmp_path):
    """In float32, so sums in another order differ in the last bits; the scores are the same then."""
    train(compose([*ALIKE[name], *POINTS, "trainer=cpu"]), tmp_path / "one")
    alone, shared = weights(tmp_path / "one"), weights(two[0] / name)
    for part in (0, 1):  # the live weights and the averages
        assert alone[part].keys() == shared[part].keys()
        for key, value in alone[part].items():
            torch.testing.assert_close(shared[part][key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: key + m)
    checkpoint = torch.load(two[0] / name / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["genlab"]["random"]) == 2  # each process's own
    one, both = (json.loads((run / "run.json").read_text())["scores"] for run in (tmp_path / "one", two[0] / name))
    assert one and both == pytest.approx(one, rel=1e-3)


def test_two_processes_resume(two):
    """4 + 4 iterations on two processes are 8."""
    for key, value in weights(two[0] / "gan")[0].items():
        assert torch.equal(value, weights(two[0] / "cut")[0][key]), key


def test_two_processes_watch_their_players_together(two):
    """One curve, the mean of both, and its state in the checkpoint."""
    steps, values = read_metrics(two[0] / "watched" / "metrics.csv")["train/diversity"]
    assert steps == [2, 4, 6, 8]
    checkpoint = torch.load(two[0] / "watched" / "checkpoints" / "last.ckpt", weights_only=True)
    assert [look[0] for look in checkpoint["callbacks"]["Players"]["looks"]] == pytest.approx(values)


def test_two_processes_of_torchrun_take_one_folder(two):
    stamps = {(two[0] / "stamp" / rank).read_text() for rank in "01"}
    assert len(stamps) == 1 and re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{3}", stamps.pop())


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="own"),
        pytest.param(["-m", "torch.distributed.run", "--nproc_per_node=2"], id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_the_command_line_on_two_processes(launcher, tmp_path):
    """Lightning starts the second process, or torchrun both: one run folder, not one a process."""
    arguments = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        *POINTS,
        "trainer.max_steps=2",
        "callbacks=none",
        "logger=csv",
    ]
    result = subprocess.run(
        [sys.executable, *launcher, str(REPO / "train.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (run,) = Path(tmp_path, "outputs").glob("2*")
    assert len(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["genlab"]["random"]) == 2
    assert (run / ".hydra" / "config.yaml").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["devices"] == 2


def test_a_batch_that_cannot_be_shared(tmp_path, monkeypatch, capfd):
    """It is seen before a second process is started."""
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, *TWO, "data=ring", "data.batch_size=7") == 2
    error = capfd.readouterr().err
    assert "data.batch_size=7" in error and "Try data.batch_size=6." in error and "Traceback" not in error


def test_a_sweep_takes_one_device(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "-m", "trainer=ddp", "seed=1,2", "trainer.max_steps=2") == 1
    error = capfd.readouterr().err
    assert "one device" in error and "Traceback" not in error


def said(model, config, world=2, device="cpu", **trainer):
    """What a run on several processes says of parts that see their own process's samples alone."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("genlab").addHandler(handler)
    try:
        strategy = SimpleNamespace(root_device=torch.device(device))
        config = {**config, "trainer": {**config["trainer"], **trainer}}
        faked = SimpleNamespace(world_size=world, is_global_zero=True, strategy=strategy)
        processes.warn_of_separate_batches(model, faked, config)
    finally:
        logging.getLogger("genlab").removeHandler(handler)
    return " ".join(lines)


def test_batch_norm_says_what_it_does_on_several_processes():
    config = compose(["data=digits", "data.batch_size=64", "trainer=cpu"])
    model = build(config).model
    assert "each process's own 16 samples" in said(model, config, world=4)
    assert "Batch norm in the generator" in said(model, config) and "sync_batchnorm=true" in said(model, config)
    assert said(model, config, world=1) == ""
    assert said(model, config, device="cuda", sync_batchnorm=True) == ""
    with pytest.raises(UserError, match="GPUs only"):
        said(model, config, sync_batchnorm=True)
    with pytest.raises(UserError, match="data.batch_size=2 for each process"):
        said(model, config, world=64)
    assert said(model, config, world=64, device="cuda", sync_batchnorm=True) == ""


def test_any_part_can_say_that_it_sees_its_own_samples():
    config = compose(["data=digits", "network=mlp", "trainer=cpu"])
    model = build(config).model
    assert said(model, config) == ""
    model.discriminator.per_process = "a mean over the batch"
    assert "Discriminator computes a mean over the batch over each process's own 32 samples" in said(model, config)


def test_synchronised_batch_norm_reaches_lightning(tmp_path):
    """It converts the layers on GPUs; here one sees that it was asked to."""
    config = compose([*TWO, "data=digits", "trainer.sync_batchnorm=true", "callbacks=none", "logger=none"])
    assert make_trainer(build(config), tmp_path).strategy._layer_sync is not None
    config["trainer"]["sync_batchnorm"] = False
    assert make_trainer(build(config), tmp_path).strategy._layer_sync is None


# ------------------------------------------------------------------------------------------ torchrun and SLURM, faked

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
BATCH = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NNODES": "2", "SLURM_LOCALID": "0"}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "1",
}


@pytest.fixture
def env(monkeypatch):
    """Sets variables, and clears those that a test run inside of a job would have."""
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    return lambda values: [monkeypatch.setenv(*item) for item in values.items()]


def test_who_started_this_process():
    assert launch.launch({}) is None
    assert launch.launch(TORCHRUN) == launch.Launch("torchrun", 5, 8, 2)
    assert launch.launch(STEP) == launch.Launch("srun", 1, 4, 2)
    assert launch.launch(BATCH) is None  # a batch script that starts one process itself
    assert launch.launch({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_ddp_takes_the_processes_that_were_started(env):
    assert compose(["trainer=ddp"])["trainer"]["devices"] == 2
    env(TORCHRUN)
    started = compose(["trainer=ddp"])["trainer"]
    assert (started["devices"], started["num_nodes"]) == (4, 2)
    assert compose(["trainer=ddp", "trainer.devices=3"])["trainer"]["devices"] == 3


def test_other_numbers_than_were_started_are_refused(env, tmp_path):
    env(TORCHRUN)
    with pytest.raises(UserError, match="torchrun started 8 processes.*makes 1.*trainer=ddp"):
        train(compose(["trainer=cpu", "data=ring"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_folder_for_all_processes_of_a_step(env):
    first, second = launch.stamp(), launch.stamp()
    assert len(first) == len("2026-01-01_00-00-00-000") and first <= second
    assert processes.quiet_overrides() == []
    env(STEP)
    assert launch.stamp() == "slurm_77.3"
    assert processes.quiet_overrides() == ["hydra.output_subdir=null", "hydra.job.name=train_process_1"]


def test_lightning_leaves_the_queue_alone(env):
    """Its own requeueing would save in the middle of an iteration, and it would wait for a srun that nobody typed."""
    assert processes.cluster_environment() is None
    env(BATCH)
    assert isinstance(processes.cluster_environment(), LightningEnvironment)
    env(STEP)
    found = processes.cluster_environment()
    assert isinstance(found, SLURMEnvironment) and not found.auto_requeue


QUEUED = ["data=ring", "trainer=cpu", "trainer.max_steps=9", "callbacks=none", "logger=csv", "metrics=none"]


@pytest.fixture
def queue(env, tmp_path, monkeypatch):
    """A job of SLURM with a `scontrol` that notes what it is asked; gives the file of its notes."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    env({"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "asked"


def test_a_job_of_slurm_comes_back_and_goes_on_exactly(queue, monkeypatch, capsys):
    """SIGUSR1 before its time is up: checkpoint, back into the queue, and the same command once more."""
    line = [*QUEUED, "hydra.run.dir=jobs/77", "resume=auto"]
    with signal_in(4, signal.SIGUSR1):
        assert main(monkeypatch, *line) == 128 + signal.SIGUSR1
    out = capsys.readouterr().out
    assert "Stopped after iteration 4." in out and "SLURM has put job 77 back into its queue." in out
    assert queue.read_text() == "requeue 77\n"
    assert main(monkeypatch, *line) == 0
    assert main(monkeypatch, *QUEUED, "hydra.run.dir=alone") == 0
    assert_identical(weights("jobs/77"), weights("alone"))
    sessions = json.loads(Path("jobs/77/run.json").read_text())["sessions"]
    assert [s["status"] for s in sessions] == ["interrupted", "done"]
    assert main(monkeypatch, *line, "seed=3") == 2  # another run does not go on there
    assert "another composition" in capsys.readouterr().err


def test_a_job_of_an_array_is_named_by_its_task(queue, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert processes.requeue() == "SLURM has put job 5_3 back into its queue."
    (queue.parent / "bin" / "scontrol").write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    assert processes.requeue() == "SLURM did not put job 5_3 back into its queue (Access denied)."


def test_who_waited_for_the_signal_gets_it_after_the_checkpoint(queue, monkeypatch, capsys):
    """Submitit's handler puts its job back itself; SLURM is not asked twice."""
    found = []

    def handler(number, frame):
        found.append((number, Path("run/checkpoints/last.ckpt").is_file()))
        raise SystemExit(99)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with signal_in(3, signal.SIGUSR2):
            assert main(monkeypatch, *QUEUED, "hydra.run.dir=run") == 99
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert found == [(signal.SIGUSR2, True)] and not queue.exists()


def test_outside_of_a_cluster_the_signals_end_a_run_cleanly(env, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with signal_in(3, signal.SIGUSR1):
        assert main(monkeypatch, *QUEUED, "hydra.run.dir=run") == 128 + signal.SIGUSR1
    out = capsys.readouterr().out
    assert "Stopped after iteration 3." in out and "resume=" in out and "queue" not in out
