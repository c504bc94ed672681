"""The mode benchmark: equal CPU time for all, going on where it stopped, and what its tables say."""

import json
import math
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genlab.benchmarks import modes as benchmark
from genlab.cli import mode_benchmark as door
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.models.gan import GAN
from genlab.runs import sweeps
from genlab.runs.folder import read_config, record_of
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import command, main

SHORT = ["experiment=mode_benchmark/gan", "data=ring", "network.hidden=[8]", "data.batch_size=8", "data.limit_train=64"]
SHORT += ["metrics.num_samples=50"]


@pytest.fixture
def clock(monkeypatch):
    """CPU time by a clock that each iteration moves on by 4 seconds; the shares of training that the model saw."""
    now, seen = [100.0], []

    def training_step(self, batch, index):
        seen.append(self.progress)
        now[0] += 4
        step(self, batch, index)

    step = GAN.training_step
    monkeypatch.setattr(GAN, "training_step", training_step)
    monkeypatch.setattr("genlab.callbacks.checkpoints.time.process_time", lambda: now[0])
    return now, seen


def test_a_run_has_so_much_cpu_time_over_all_its_sessions(clock, tmp_path, capsys):
    now, seen = clock
    config = compose([*SHORT, "max_cpu_time=10", "trainer.max_steps=2"])
    train(config, tmp_path)  # cut off by its length, after 8 seconds
    assert record_of(tmp_path)["cpu_seconds"] == 8
    now[0] = 7.0  # another process
    config = compose([*SHORT, "max_cpu_time=10"])
    assert not sweeps.earlier(tmp_path, config).done
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    train(config, tmp_path, resume=checkpoint)
    record = record_of(tmp_path)
    assert record["iterations"] == 3 and record["cpu_seconds"] == 12  # the limit is seen after an iteration
    assert record["sessions"][-1]["status"] == "done" and "test/modes" in record["scores"]
    assert seen == [0.0, 0.5, 0.8]  # of two iterations; then of the ten seconds, and not of ten million iterations
    assert "max_cpu_time=20" in capsys.readouterr().out

    assert sweeps.earlier(tmp_path, config).done
    assert not sweeps.earlier(tmp_path, {**config, "max_cpu_time": 20.0}).done
    with pytest.raises(UserError, match="for its 12 seconds of CPU time. .* max_cpu_time=20"):
        train(read_config(tmp_path), tmp_path, resume=checkpoint)
    train({**config, "max_cpu_time": 20.0}, tmp_path, resume=checkpoint)
    assert record_of(tmp_path)["iterations"] == 5


def test_a_run_that_had_its_time_and_no_scores_is_not_done(clock, tmp_path):
    config = compose([*SHORT, "max_cpu_time=10"])
    train(config, tmp_path)
    record = record_of(tmp_path)
    scores = record.pop("scores")
    record["sessions"][-1]["status"] = "killed"
    (tmp_path / "run.json").write_text(json.dumps(record))
    before = sweeps.earlier(tmp_path, config)
    assert not before.done
    train(config, tmp_path, resume=before.checkpoint)
    assert record_of(tmp_path)["iterations"] == 4 and record_of(tmp_path)["scores"].keys() == scores.keys()


def test_other_runs_know_no_cpu_time(clock, tmp_path):
    train(compose([*SHORT, "max_cpu_time=null", "trainer.max_steps=4"]), tmp_path)
    assert "cpu_seconds" not in record_of(tmp_path) and clock[1] == [0.0, 0.25, 0.5, 0.75]
    with pytest.raises(UserError, match="max_cpu_time must be a number above 0, or null, got -1"):
        train(compose([*SHORT, "max_cpu_time=-1"]), tmp_path / "other")


# --- Rows and arguments ----------------------------------------------------------------------------------------------


def test_rows_share_networks_batch_and_budget():
    """Each row is the config it says, differs in method, and in nothing that all can share."""
    titles = benchmark.rows()
    assert next(iter(titles)) == "gan" and len(titles) >= 25 and all(titles.values())
    composed = set()
    for row in titles:
        config = compose([f"experiment=mode_benchmark/{row}", "data=grid"])
        assert config["data"]["batch_size"] == 256 and config["max_cpu_time"] == 60 and config["threads"] == 1
        assert not config["callbacks"] and config["data"]["_target_"].endswith(".Grid")
        assert config["model"]["latent_dim"] == (32 if row == "infogan" else 2)
        assert config["model"]["generator"]["hidden"] == [128, 128, 128]
        composed.add(json.dumps([config["model"], config["tricks"]], sort_keys=True))
    assert len(composed) == len(titles)


def test_minibatch_discrimination_has_fewer_kernels_here():
    model = build(compose(["experiment=mode_benchmark/minibatch_discrimination", "data=ring"])).model
    assert model.discriminator.minibatch.weight.shape == (128, 10, 5)
    usual = build(compose(["experiment=mode_benchmark/gan", "tricks.minibatch_discrimination=true"])).model
    assert usual.discriminator.minibatch.weight.shape == (128, 100, 5)


def test_arguments():
    plan = benchmark.parse([])
    assert set(plan.rows) == set(benchmark.rows()) and plan.data == ("ring", "grid", "highdim")
    plan = benchmark.parse(["rows=lsgan,gan", "data=grid", "seeds=4,2", "seconds=2.5", "out=here", "n_jobs=1"])
    assert (plan.rows, plan.data, plan.seeds, plan.n_jobs) == (("lsgan", "gan"), ("grid",), (4, 2), 1)
    assert plan.run("gan", "grid", 4) == Path("here/runs_2.5s/mode_benchmark/gan/grid/seed_4")
    assert "hydra/launcher=joblib" not in benchmark.command(plan, "grid", plan.rows)
    assert "model.latent_dim=254" in benchmark.command(plan, "highdim", ["gan"])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("rows=gan,nope", ["'nope'", "lsgan", "all"]),
        ("rows=gan,gan", ["duplicate"]),
        ("data=digits", ["'digits'", "highdim"]),
        ("seeds=a", ["seeds=0,1,2"]),
        ("seeds=1,1", ["distinct"]),
        ("seconds=0", ["positive", "seconds=60"]),
        ("seconds=nan", ["positive"]),
        ("n_jobs=-2", ["n_jobs=2"]),
        ("model=gan", ["no argument", "rows, data, seeds"]),
        ("rows", ["key=value"]),
    ],
)
def test_mistakes_are_one_sentence(argument, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mode_benchmark.py", argument])
    with pytest.raises(SystemExit) as stopped:
        door.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and all(word in error for word in words) and "Traceback" not in error


def test_a_signal_ends_the_sweep_too(tmp_path, monkeypatch, capsys):
    """The sweep is a process of its own, which would train on."""
    sweep = tmp_path / "python"
    sweep.write_text("#!/bin/sh\nexec sleep 30\n")
    sweep.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(sweep))
    monkeypatch.setattr("sys.argv", ["mode_benchmark.py", "rows=gan", "data=ring", f"out={tmp_path}"])
    started, popen = [], subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit) as stopped:
        door.main()
    assert stopped.value.code == 143 and started[0].poll() == -signal.SIGTERM
    assert "The same command continues with the missing runs" in capsys.readouterr().err


# --- Tables ----------------------------------------------------------------------------------------------------------


def made_up(folder, modes, hq, seconds=2.0, status="done"):
    folder.mkdir(parents=True)
    scores = {"test/modes": modes, "test/hq": hq, "test/kl_modes": 0.5}
    sessions = [{"status": status, "wall_seconds": 3}]
    record = {"scores": scores, "iterations": 100 * modes, "cpu_seconds": seconds, "sessions": sessions}
    (folder / "run.json").write_text(json.dumps(record))


def test_means_and_standard_errors(tmp_path):
    """By hand: 6, 7, 8 have the mean 7 and the standard error 1 / sqrt(3); runs that are not done do not count."""
    plan = benchmark.parse(["rows=gan,lsgan,wgan", "data=ring", "seeds=0,1,2", "seconds=2", f"out={tmp_path}"])
    for seed, modes in enumerate((6, 7, 8)):
        made_up(plan.run("gan", "ring", seed), modes, 0.9)
    made_up(plan.run("lsgan", "ring", 0), 8, 0.5)
    made_up(plan.run("lsgan", "ring", 1), 1, 0.1, seconds=1.0)  # half its time
    made_up(plan.run("wgan", "ring", 0), 1, 0.1, status="failed")
    assert plan.missing("ring") == ["lsgan", "wgan"]
    results = benchmark.gather(plan)
    gan, lsgan, wgan = results["data"]["ring"]["rows"].values()
    assert gan["mean_and_se"]["modes"] == pytest.approx((7, 1 / math.sqrt(3)))
    assert gan["mean_and_se"]["hq"] == pytest.approx((0.9, 0))
    assert lsgan["mean_and_se"]["modes"] == (8, None) and wgan["mean_and_se"] == {}
    assert wgan["failed"] == [0] and len(results["missing"]) == 5
    assert "max_cpu_time=2" in gan["command"] and "experiment=mode_benchmark/gan " in gan["command"]

    text = benchmark.tables(json.loads(json.dumps(results)))
    ring = text.partition("## ring")[2].partition("## Published")[0]
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in ring.splitlines() if "|" in line}
    assert cells["gan"][:6] == ["7.0 ± 0.6", "90.0 ± 0.0", "0.500 ± 0.000", "700 ± 58", "2.0 ± 0.0", "3/3"]
    assert cells["lsgan"][0] == "8.0" and cells["lsgan"][5] == "1/3"
    assert cells["wgan"][0] == "" and cells["wgan"][5] == "0/3, 1 failed"
    assert list(cells)[2:] == ["*perfect sampler*", "lsgan", "gan", "wgan"]  # the best first
    assert cells["*perfect sampler*"][0] == "8.0 ± 0.0" and 98.5 < float(cells["*perfect sampler*"][1][:4]) < 99.3
    assert "5 runs are missing" in text and "VEEGAN | 8 | 52.9" in text and "400,000 iterations" in text


def test_the_perfect_sampler_in_many_dimensions():
    found, card = benchmark.perfect("highdim")
    assert found and all(each["modes"] == 10 and each["hq"] > 0.99 for each in found)
    assert card["dim"] == 1200 and card["num_modes"] == 10


class InThisProcess:
    """Stands for the process that trains, whose start would take longer than all else."""

    def __init__(self, arguments, **_):
        assert arguments[1:3] == ["-m", "genlab.cli.train"]
        with pytest.MonkeyPatch.context() as patch:
            self.code = main(patch, *arguments[3:])

    def wait(self, timeout=None):
        return self.code


def test_from_end_to_end_and_on_from_where_it_was_cut_short(tmp_path, monkeypatch, capsys):
    """Two rows, one of which had begun: both get their time, and a second call has nothing to do."""
    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": InThisProcess}))
    line = ["rows=gan,lsgan", "data=ring", "seeds=0", "seconds=0.3", "n_jobs=1", f"out={tmp_path}"]
    plan = benchmark.parse(line)
    begun = [a for a in benchmark.command(plan, "ring", ["gan"]) if a != "-m" and not a.startswith("hydra")]
    folder = plan.run("gan", "ring", 0)
    train(compose([*begun, "max_cpu_time=1000", "trainer.max_steps=1"]), folder)

    monkeypatch.setattr("sys.argv", ["mode_benchmark.py", *line])
    door.main()
    output = capsys.readouterr().out
    assert [s["status"] for s in record_of(folder)["sessions"]] == ["done", "done"]
    assert record_of(folder)["iterations"] > 1 and record_of(folder)["cpu_seconds"] >= 0.3
    results = json.loads((tmp_path / "mode_benchmark_0.3s.json").read_text())
    assert results["missing"] == [] and set(results["data"]["ring"]["rows"]) == {"gan", "lsgan"}
    assert (tmp_path / "mode_benchmark_0.3s.md").read_text() in output

    def none(*args, **kwargs):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(benchmark.subprocess, "Popen", none)
    door.main()
    assert len(record_of(folder)["sessions"]) == 2
    assert json.loads((tmp_path / "mode_benchmark_0.3s.json").read_text()) == results


@pytest.mark.slow
def test_the_script_itself(tmp_path):
    """Two runs at a time, in processes of their own."""
    line = ["rows=gan,lsgan", "data=ring", "seeds=0", "seconds=2", "n_jobs=2", "out=there"]
    found = command(line, tmp_path, script="scripts/mode_benchmark.py", timeout=300)
    assert found.returncode == 0, found.stderr + (tmp_path / "there" / "runs_2s" / "ring.log").read_text()
    assert json.loads((tmp_path / "there" / "mode_benchmark_2s.json").read_text())["missing"] == []


def test_the_published_protocol():
    """Lin et al. (2018): its networks have the parts that it says, and packs of two."""
    config = compose(["experiment=mode_benchmark_pacgan"])
    assert config["trainer"]["max_steps"] * config["data"]["batch_size"] == 400 * 100_000
    model = build(config).model
    discriminator = model.discriminator.discriminator
    assert [layer.in_features for layer in discriminator.trunk if hasattr(layer, "in_features")] == [4, 200, 200]
    assert [layer.out_features for layer in discriminator.trunk if hasattr(layer, "in_features")] == [1000] * 3
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in model.generator.modules()) == 4
    weight = model.generator.decoder.body[3].weight
    assert weight.shape == (400, 400) and weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert discriminator.head.bias.item() == 0
