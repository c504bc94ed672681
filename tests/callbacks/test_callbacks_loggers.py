"""`metrics.csv` and TensorBoard's files: what they hold, and what a resumed run drops."""

import csv
import math

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genlab.callbacks import loggers
from genlab.callbacks.loggers import CSVLog, TensorBoard
from genlab.looks.curves import read_metrics
from tests.models.helpers import METHODS, fit

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """A stand-in for `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loggers, "time", clock)
    return clock


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(log, steps, name="train/loss", factor=1.0):
    for step in steps:
        log.log_metrics({name: factor * step}, step=step)


def test_one_row_per_value(tmp_path, clock):
    log = CSVLog(str(tmp_path))
    clock.now += 1.5
    log.log_metrics({"train/loss": 1 / 3, "lr/g": 1e-4}, step=1)
    clock.now += 2
    log.log_metrics({"train/loss": math.inf}, step=2)  # readable at once, before the run ends
    assert rows(tmp_path) == [
        {"step": "1", "seconds": "1.5", "metric": "train/loss", "value": "0.33333333"},
        {"step": "1", "seconds": "1.5", "metric": "lr/g", "value": "0.0001"},
        {"step": "2", "seconds": "3.5", "metric": "train/loss", "value": "inf"},
    ]
    assert read_metrics(tmp_path / "metrics.csv") == {
        "train/loss": ([1, 2], [0.33333333, math.inf]),
        "lr/g": ([1], [0.0001]),
    }


@pytest.mark.parametrize("clean", [True, False])
def test_a_resumed_run_drops_later_rows(clean, tmp_path):
    """Those between the checkpoint and the end of the broken run: they are measured again."""
    first = CSVLog(str(tmp_path))
    write(first, range(1, 9))
    if clean:
        first.finalize("success")
    second = CSVLog(str(tmp_path), resume_step=5)
    write(second, (6, 7), factor=10.0)
    second.finalize("success")
    assert read_metrics(tmp_path / "metrics.csv")["train/loss"] == ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 60, 70])


def test_a_half_written_row_is_dropped(tmp_path):
    write(CSVLog(str(tmp_path)), (1, 2))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,0.1,tra")
    write(CSVLog(str(tmp_path), resume_step=3), (4,))
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "4"]


def test_resuming_without_a_file(tmp_path):
    write(CSVLog(str(tmp_path / "new"), resume_step=3), (4,))
    assert [row["step"] for row in rows(tmp_path / "new")] == ["4"]


def test_a_new_run_starts_a_new_file(tmp_path):
    write(CSVLog(str(tmp_path)), (1, 2))
    write(CSVLog(str(tmp_path)), (1,))
    assert len(rows(tmp_path)) == 1


def test_scores_after_the_end_are_appended(tmp_path, clock):
    """Lightning finalises its loggers when training ends; test scores come later, and the clock runs on."""
    log = CSVLog(str(tmp_path))
    clock.now += 60
    write(log, (5,))
    log.finalize("success")
    clock.now += 10
    write(log, (5,), name="test/fid")
    log.finalize("success")
    assert [(row["metric"], float(row["seconds"])) for row in rows(tmp_path)] == [("train/loss", 60), ("test/fid", 70)]


def test_seconds_go_on_in_a_resumed_run(tmp_path, clock):
    first = CSVLog(str(tmp_path))
    clock.now += 60
    write(first, (5,))
    clock.now += 10**6  # days later
    second = CSVLog(str(tmp_path), resume_step=5)
    clock.now += 7
    write(second, (6,))
    assert [float(row["seconds"]) for row in rows(tmp_path)] == [60, 67]


def test_both_loggers_in_a_resumed_run(tmp_path):
    """The curves have each recorded iteration once, TensorBoard's as the table's."""
    overrides = [*METHODS["vae"], "logger=default", "trainer.log_every_n_steps=1"]

    def made(resume_step=None):
        return {"logger": [CSVLog(str(tmp_path), resume_step), TensorBoard(str(tmp_path), resume_step)]}

    fit([*overrides, "checkpoint.every_n_steps=3"], 5, tmp_path, trainer=made())
    # As if it had been killed after iteration 5 with its last checkpoint at 3.
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    fit([*overrides, "checkpoint.every_n_steps=3"], 3, tmp_path / "three")
    fit(overrides, 7, tmp_path, resume=tmp_path / "three" / "checkpoints" / "last.ckpt", trainer=made(3))
    steps, values = read_metrics(tmp_path / "metrics.csv")["train/loss"]
    assert steps == [1, 2, 3, 4, 5, 6, 7] and len(set(values)) == 7
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert [step for step, _ in scalars] == steps
    assert [value for _, value in scalars] == pytest.approx(values, rel=1e-5)


# Pictures


def test_grids_are_drawn_when_due_and_from_the_same_latents(tmp_path):
    """Every n iterations and at the end; the newest again beside the checkpoints; reconstructions where there are."""
    grid = "{grid:{_target_:genlab.callbacks.grid.SampleGrid,every_n_steps:2,num_samples:4}}"
    overrides = ["model=vae", "network=mlp", "network.hidden=[16]", f"+callbacks={grid}", "model.optimizer.lr=0"]
    fit(overrides, 5, tmp_path)
    names = {f"{what}_{step:07d}.png" for what in ("samples", "reconstructions") for step in (2, 4, 5)}
    assert {p.name for p in (tmp_path / "grids").iterdir()} == names
    pixels = {p.name: Image.open(p).tobytes() for p in (tmp_path / "grids").glob("samples*")}
    assert len(set(pixels.values())) == 1  # nothing was learnt, and nothing else differs
    assert Image.open(tmp_path / "samples.png").tobytes() == pixels["samples_0000005.png"]
