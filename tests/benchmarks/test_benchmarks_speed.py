"""The benchmark: its arithmetic, and one small measurement of each kind. No test looks at how fast anything is."""

import copy
import json

import pytest
import torch

from genlab.benchmarks import speed
from genlab.benchmarks.rivals import Pythae, Turnstile, by_hand
from genlab.benchmarks.speed import Case, Training, race, race_images, tables, times_as_fast
from genlab.cli import benchmark
from genlab.errors import UserError

RING = ("data=ring", "network.hidden=[8]", "data.batch_size=16", "threads=1")


@pytest.fixture(autouse=True, scope="module")
def _short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "PARTS_SECONDS", 0.1)
        patch.setattr(speed, "WARM_SECONDS", 0.05)
        patch.setattr(speed, "ROUND_SECONDS", 0.05)
        yield


@pytest.fixture(autouse=True)
def _threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_contestants_take_turns_and_who_goes_first_changes():
    now, order = [0.0], []

    def runner(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    laps = race({"a": runner("a", 1.0), "b": runner("b", 3.0)}, 0.0, lambda: now[0])
    assert order[:4] == ["a", "b", "b", "a"] and len(laps["a"]) == speed.LEAST_ROUNDS
    assert [lap for lap, _ in laps["b"]] == [3.0] * speed.LEAST_ROUNDS
    assert times_as_fast(laps["a"], laps["b"]) == {"median": 3.0, "first": 3.0, "third": 3.0}
    assert times_as_fast(laps["a"], laps["b"], work=2.0)["median"] == 6.0


def test_ratios_are_taken_within_rounds():
    """A machine that slows down to half its speed in between moves no ratio."""
    ours, theirs = [(1.0, 0.0), (2.0, 0.0), (2.0, 0.0)], [(1.5, 0.0), (3.0, 0.0), (3.0, 0.0)]
    assert times_as_fast(ours, theirs) == {"median": 1.5, "first": 1.5, "third": 1.5}


def test_a_loop_in_a_thread_is_let_through_so_many_times():
    turnstile, rounds = Turnstile(), []

    def loop():
        while turnstile.enter():
            rounds.append(len(rounds))

    turnstile.open(loop)
    assert rounds == []
    turnstile(3)
    assert rounds == [0, 1, 2]
    turnstile.close()
    assert len(rounds) == 3
    with pytest.raises(ValueError, match="broken"):
        Turnstile().open(lambda: (_ for _ in ()).throw(ValueError("broken")).send(None))


def test_the_step_by_hand_is_the_frameworks(tmp_path):
    """Same weights after three iterations on the same batches, where both draw no noise: the fight is a fair one."""
    overrides = (*RING, "model=vae", "likelihood=gaussian", "network=mlp")
    with pytest.raises(UserError, match="No step was written by hand for VAE"):
        by_hand(speed._build(overrides), torch.device("cpu"), freeze=False)
    overrides = ("model=vae", "network=mlp", "data=digits", "network.hidden=[8]", "threads=1", "metrics=none")
    parts = speed._build(overrides)
    training = Training(overrides, tmp_path / "run")
    start = copy.deepcopy(parts.model.state_dict())
    parts.model.load_state_dict(training.parts.model.state_dict())
    parts.data.setup()
    with torch.no_grad():
        parts.model.initialise(iter(parts.data.first_batches()))
    run = by_hand(parts, torch.device("cpu"), freeze=False)
    zeros = torch.zeros_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", zeros)
        patch.setattr(training.parts.model, "randn", lambda *shape, **_: torch.zeros(shape))
        training(4)  # one batch is fetched ahead
        ours = copy.deepcopy(training.parts.model.state_dict())
        assert training.trainer.global_step == 3
        run(3)
        training.close()
    theirs = parts.model.state_dict()
    moved = [name for name in ours if ours[name].is_floating_point() and not torch.equal(start[name], ours[name])]
    assert moved
    for name in moved:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def row():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "_peaks", lambda case: {"exact": {"before": 1.0, "peak": 2.0}})
        case = Case("tiny", RING, {"exact": ()}, {("exact", "plain"): 1e-9, ("exact", "pythae"): 1.0})
        return speed.measure(case, 0.01)


def test_a_composition_is_measured(row):
    assert row["clock"] == "CPU time" and row["rounds"] >= speed.LEAST_ROUNDS and row["images_per_iteration"] == 16
    assert set(row["ms"]) == {"exact", "plain", "plain+freeze", "plain again"}
    assert set(row["times_as_fast"]["exact"]) == {"plain", "plain+freeze"} and all(ms > 0 for ms in row["ms"].values())
    parts = row["parts_ms"]["exact"]
    assert {"data", "fakes", "turn of discriminator", "turn of generator", "moving average", "rest"} <= set(parts)
    assert {"scores", "pictures", "checkpoint"} == set(row["recurring"]["exact"])
    assert json.loads(json.dumps(row)) == row


def test_tables_say_what_was_reached_missed_and_not_run(row):
    text = tables({"steps": [row, {"name": "other", "overrides": [], "failed": "no data"}], "data": []})
    assert "0.00 of plain: reached; 1.00 of pythae: not measured" in text
    assert "| other |" in text and "not run: no data" in text and "turn of generator" in text
    slower = copy.deepcopy(row) | {"bars": [["exact", "plain", 1e9]]}
    assert "of plain: missed" in tables({"steps": [slower], "data": []})


def test_what_has_no_step_by_hand_is_held_against_itself(monkeypatch):
    monkeypatch.setattr(speed, "_peaks", lambda case: {})
    overrides = ("data=digits", "model=began", "network.width=4", "data.batch_size=4", "threads=1", "metrics=none")
    found = speed.measure(Case("began", overrides, {"exact": ()}), 0.01)
    assert found["times_as_fast"] == {"exact": {}} and found["control"]["median"] > 0
    assert "No step was written by hand for BEGAN" in tables({"steps": [found], "data": []})


def test_image_pipelines_are_measured(monkeypatch):
    monkeypatch.setattr(speed, "BATCHES", 3)
    found = race_images(16, None, 0.01, count=60)
    assert found["images"] == 60 and found["rounds"] >= 5 and found["bar"] is None
    assert {"genlab", "torchvision", "preparation"} <= set(found["images_per_second"])
    assert "60 JPEGs at 16x16" in tables({"steps": [], "data": [found]})


@pytest.mark.long
def test_peak_memory_is_that_of_a_process_of_its_own():
    peaks = speed._peaks(Case("tiny", RING, {"exact": ()}))
    assert set(peaks) == {"exact", "plain"}
    assert all(100 < each["before"] <= each["peak"] for each in peaks.values())  # MiB: torch alone takes more


def test_pythae_that_is_missing_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pythae"):
        Pythae(speed._build((*RING, "model=vae", "likelihood=gaussian")), tmp_path)


@pytest.mark.parametrize("argument", ["seconds=none", "seconds=-1", "seconds=0"])
def test_bad_input_is_a_sentence(argument, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", argument])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 2 and "seconds must be a positive number" in capsys.readouterr().err
