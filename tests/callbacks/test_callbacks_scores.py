"""Scores while training: on their own clock, and without a trace in the training."""

import contextlib
import random

import numpy as np
import pytest
import torch

from genlab.callbacks.checkpoints import Checkpoints
from genlab.callbacks.scores import Scores
from genlab.runs import running
from genlab.seeding import preserved_random_states
from tests.models.helpers import METHODS, Memory, config

pytestmark = pytest.mark.usefixtures("one_thread")


class Greedy:
    """A judge that draws from every random stream, and notes what it was given."""

    monitor, every_n_steps = "score", 3

    @staticmethod
    def mode(score):
        return "max"

    def __init__(self):
        self.seen = []

    def validate(self, model, data):
        random.random(), np.random.rand(), torch.rand(3)
        x = model.sample(16)
        self.seen.append((model.trainer.global_step, x))
        return {"val/score/greedy": float(len(self.seen) % 3)}


def train(folder, judge, steps=10):
    parts = running.build(config(METHODS["gan"], steps))
    parts.judge = judge
    if judge is not None:
        parts.callbacks["scores"] = Scores()
    memory = Memory()
    trainer = running.make_trainer(parts, folder, logger=[memory])
    trainer.fit(parts.model, datamodule=parts.data)
    return parts.model, memory, next(c for c in trainer.callbacks if isinstance(c, Checkpoints))


def test_scores_are_taken_logged_and_considered(tmp_path):
    judge = Greedy()
    model, memory, checkpoints = train(tmp_path, judge)
    assert memory.curves["val/score/greedy"] == {3: 1.0, 6: 2.0, 9: 0.0, 10: 1.0}
    assert (checkpoints.best_step, checkpoints.best_score) == (6, 1.5)  # the mean of both so far
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 6
    assert model.training


def test_judging_leaves_no_trace(tmp_path):
    """Weights, averages and random streams of the checkpoint are those of a run that nobody looked at."""
    for name, judge in (("watched", Greedy()), ("alone", None)):
        train(tmp_path / name, judge)
    watched, alone = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("watched", "alone")
    )
    for part in ("state_dict", "optimizer_states", "genlab"):
        assert same(watched[part], alone[part]), part
    assert not same(watched["state_dict"], {k: v + 1 for k, v in alone["state_dict"].items()})


def same(a, b):
    """Bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_the_last_bit_of_the_best_is_on_disk(tmp_path):
    """`best.ckpt` holds the averages that were judged."""
    import genlab

    judge = Greedy()
    train(tmp_path, judge)
    best = genlab.load(tmp_path / "checkpoints" / "best.ckpt")
    judged = dict(judge.seen)[6]
    live = genlab.load(tmp_path / "checkpoints" / "last.ckpt")
    draws = [m.sample(16, rng=torch.Generator().manual_seed(0)) for m in (best, live)]
    assert judged.shape == draws[0].shape and not torch.equal(*draws)
    section = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["genlab"]
    weights = best.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in section["ema"].items()) and section["ema"]


def test_only_the_own_gpu_s_stream_is_kept(monkeypatch):
    """Without a list torch would visit every GPU of the machine, and warn."""
    asked = []

    @contextlib.contextmanager
    def fork(devices):
        asked.append(devices)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with preserved_random_states():
            pass
    assert asked == [[], [3]]


@pytest.mark.parametrize("broken", [False, True])
def test_random_streams_are_given_back(broken):
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(2)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    try:
        with preserved_random_states():
            random.random(), np.random.rand(), torch.rand(5)
            if broken:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert broken
    assert random.random() == expected[0] and np.random.rand() == expected[1]
    assert torch.equal(torch.rand(2), expected[2])
