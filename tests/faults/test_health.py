"""NaN: the run stops with the term, the step and the player, or goes back to its last good checkpoint."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch

from genlab.callbacks.health import Rollbacks, rollback_seed
from genlab.config.composition import compose
from genlab.data.toy import Ring
from genlab.errors import NotFinite, TrainingStopped
from genlab.losses.adversarial import NonSaturating
from genlab.models.gan import GAN
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, main, weights
from tests.faults.conftest import LINE, TINY

ROLL = "health.on_nan=rollback"


@contextlib.contextmanager
def nan_in(iterations, times=10**6, player="generator", change=lambda loss: loss * torch.nan):
    """Spoils a player's loss in these iterations, so often at most.

    Yields:
        The seeds of the runs that met it.
    """
    met, now = [], []
    step, loss = GAN.training_step, getattr(NonSaturating, player)

    def training_step(self, batch, index):
        now[:] = [self.iteration + 1 in iterations and len(met) < times]
        met.extend([self.settings.seed] if now[0] else [])
        step(self, batch, index)

    def spoilt(self, *logits):
        value = loss(self, *logits)
        return change(value) if now[0] else value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GAN, "training_step", training_step)
        patch.setattr(NonSaturating, player, spoilt)
        yield met


def record(folder="run"):
    return json.loads(Path(folder, "run.json").read_text())


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_nan_stops_the_run_and_names_term_step_and_player(player, monkeypatch, capfd):
    with nan_in([5], player=player):
        assert main(monkeypatch, *LINE, "hydra.run.dir=run") == 3
    said = capfd.readouterr().err
    term = f"{player[0]}_loss"
    assert re.search(rf"the {player}'s loss became nan in iteration 5 \(not finite: .*{term}", said), said
    assert "The last good checkpoint is" in said and record()["sessions"][-1]["status"] == "failed"
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert main(monkeypatch, "resume=run") == 0  # what was good goes on


def test_a_gradient_of_a_finite_loss_is_named(monkeypatch, capfd):
    """The root of nothing: its value is 0, and its slope is not finite."""
    with nan_in([5], change=lambda loss: loss + (0 * loss).sqrt()):
        assert main(monkeypatch, *LINE, "hydra.run.dir=run") == 3
    said = capfd.readouterr().err
    assert "the generator's gradient was not finite in iteration 5" in said and "Traceback" not in said


def test_a_nan_in_the_data(monkeypatch, capfd):
    draw = Ring._draw

    def planted(self, n, rng):
        x, y = draw(self, n, rng)
        x[: n // 2] = float("nan")
        return x, y

    monkeypatch.setattr(Ring, "_draw", planted)
    assert main(monkeypatch, *LINE, "hydra.run.dir=run") == 3
    said = capfd.readouterr().err
    assert re.search(r"the discriminator's loss became nan in iteration 1 ", said) and "Traceback" not in said


def test_a_rollback_restores_the_last_good_checkpoint_and_takes_other_seeds(monkeypatch, capfd):
    """After one NaN the run ends, on another path from the checkpoint on; what it went back to is the stopped run's."""
    with nan_in([5], times=1) as met:
        assert main(monkeypatch, *LINE, ROLL, "hydra.run.dir=run") == 0
    assert "Back to iteration 4 with another seed (rollback 1 of 3)." in capfd.readouterr().out
    assert met == [0] and len(record()["rollbacks"]) == 1
    note = record()["rollbacks"][0]
    assert note["to_iteration"] == 4 and note["seed"] == rollback_seed(0, 1) != 0 and "iteration 5" in note["reason"]
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 8 and Rollbacks.count_in(last) == 1
    train(compose(LINE), Path("alone"))
    four = [torch.load(f"{r}/checkpoints/step_0000004.ckpt", weights_only=True) for r in ("run", "alone")]
    assert_identical(four[0]["state_dict"], four[1]["state_dict"])
    with pytest.raises(AssertionError):
        assert_identical(weights("run")[0], weights("alone")[0])


def test_a_rolled_back_run_is_the_same_each_time_and_after_a_resume(monkeypatch):
    """Its seeds follow from the run's own; a resume goes on with the seed of the rollback."""
    for name in ("a", "b"):
        with nan_in([5], times=1):
            assert main(monkeypatch, *LINE, ROLL, f"hydra.run.dir={name}") == 0
    assert_identical(weights("a"), weights("b"))
    with nan_in([5], times=1):
        assert main(monkeypatch, *LINE, ROLL, "hydra.run.dir=c", "trainer.max_steps=6") == 0
    assert main(monkeypatch, "resume=c", "trainer.max_steps=8") == 0
    assert_identical(weights("a"), weights("c"))


@pytest.mark.parametrize("most", [0, 2])
def test_it_goes_back_so_often_at_most(most, monkeypatch, capfd):
    with nan_in([5]) as met:
        assert main(monkeypatch, *LINE, ROLL, f"health.max_rollbacks={most}", "hydra.run.dir=run") == 3
    assert met == [rollback_seed(0, k) for k in range(most + 1)] and len(set(met)) == most + 1
    said = capfd.readouterr().err
    assert f"rolled back health.max_rollbacks={most} times already" in said and "Traceback" not in said
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(monkeypatch):
    with nan_in([1]), pytest.raises(TrainingStopped, match="No checkpoint had been written yet"):
        train(compose([*LINE, ROLL]), Path("run"))


def test_the_switch_changes_no_bit_of_a_healthy_run():
    for name, more in {"on": [ROLL], "off": []}.items():
        train(compose([*LINE, *more]), Path(name))
    assert_identical(weights("on"), weights("off"))


def test_parameters_that_are_not_finite_replace_no_checkpoint(monkeypatch):
    """A NaN that came in by no loss and no gradient."""

    def poisoned(self, batch, index):
        step(self, batch, index)
        if self.iteration + 1 == 4:
            with torch.no_grad():
                next(self.generator.parameters()).view(-1)[0] = torch.inf

    step = GAN.training_step
    monkeypatch.setattr(GAN, "training_step", poisoned)
    with pytest.raises(TrainingStopped, match="parameters of the generator are no longer finite|not finite"):
        train(compose([*LINE, "trainer.max_steps=4"]), Path("run"))
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_only_a_nan_is_rolled_back(monkeypatch):
    """Another mishap ends the run at once, whatever the switch says."""

    def full(self, batch, index):
        raise OSError(28, "No space left on device", "run/somewhere")

    monkeypatch.setattr(GAN, "training_step", full)
    with pytest.raises(TrainingStopped, match="could not be written") as stopped:
        train(compose([*TINY, ROLL]), Path("run"))
    assert not isinstance(stopped.value, NotFinite)
