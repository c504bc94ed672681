"""The group `scheduler`: learning rates by the share of training that is done, for all players or for one."""

import math

import pytest
from pytorch_lightning.callbacks import Callback
from torch.testing import assert_close

from genlab.config.composition import compose
from genlab.config.shipped import options
from genlab.engine.schedules import Constant, Cosine, Linear, Step
from genlab.errors import UserError
from genlab.runs import running
from tests.cli.helpers import assert_identical, main, weights
from tests.models.helpers import METHODS, QUIET, Memory, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = ["model.g_optimizer.lr=0.01", "model.d_optimizer.lr=0.02"]
FACTORS = {  # before each of 4 iterations
    "constant": [1, 1, 1, 1],
    "linear": [1, 0.75, 0.5, 0.25],
    "cosine": [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)],
    "step": [1, 1, 0.1, 0.01],
    "warmup_cosine": [0, *((1 + math.cos(math.pi * (t / 4 - 0.05) / 0.95)) / 2 for t in (1, 2, 3))],
}


class Used(Callback):
    """Notes the rates of all players with which each iteration updates."""

    def __init__(self):
        self.rates = []

    def on_train_start(self, trainer, pl_module):
        last = trainer.optimizers[-1]
        last.register_step_pre_hook(lambda *_: self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers]))


def rates(overrides, steps, folder, **more):
    """The discriminator's and the generator's rates in each iteration."""
    used = Used()
    fit([*METHODS["gan"], *RATES, *overrides], steps, folder, [used], **more)
    return [list(one) for one in zip(*used.rates, strict=True)]


@pytest.mark.parametrize("name", FACTORS)
def test_every_option_scales_the_rates_of_all_players(name, tmp_path):
    d, g = rates([f"scheduler={name}", "optim.lr_scale=2"], 4, tmp_path)
    assert_close(d, [0.04 * f for f in FACTORS[name]])
    assert_close(g, [0.02 * f for f in FACTORS[name]])
    assert {*FACTORS, "none"} == set(options("scheduler"))


def test_one_player_has_a_schedule_of_its_own(tmp_path):
    """Of the group or of torch; the group's choice for all is for those without one."""
    torchs = "+model.g_scheduler={_target_:torch.optim.lr_scheduler.StepLR,_partial_:true,step_size:1,gamma:0.5}"
    d, g = rates(["scheduler=linear", torchs], 3, tmp_path / "both")
    assert_close((d, g), ([0.02, 0.02 * 2 / 3, 0.02 / 3], [0.01, 0.005, 0.0025]))
    d, g = rates(["+scheduler@model.g_scheduler=step", "model.g_scheduler.at=[0.3]"], 3, tmp_path / "one")
    assert_close((d, g), (3 * [0.02], [0.01, 0.001, 0.001]))
    d, g = rates(["scheduler=linear", "+scheduler@model.d_scheduler=constant"], 2, tmp_path / "none")
    assert_close((d, g), ([0.02, 0.02], [0.01, 0.005]))


def test_constant_rates_change_nothing(tmp_path):
    """To the last bit; and without a schedule the saved config holds none."""
    plain = dict(fit(METHODS["gan"], 2, tmp_path / "plain").model.state_dict())
    for option in ("none", "constant"):
        other = fit([*METHODS["gan"], f"scheduler={option}"], 2, tmp_path / option).model
        assert_identical(plain, dict(other.state_dict()))
    assert compose([])["scheduler"] is None and "scheduler" not in compose([])["choices"]


class Stop(Callback):
    """Ends a run after an iteration."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 2


def test_a_resumed_run_follows_its_schedule(tmp_path):
    """To the last bit; and with more iterations that of the new length, which the saved config does not hold."""
    overrides = [*METHODS["gan"], *RATES, "scheduler=warmup_cosine"]
    used = Used()
    fit(overrides, 4, tmp_path / "whole", [used])
    fit(overrides, 4, tmp_path / "cut", [Stop()])
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    longer = Memory()
    fit([*overrides, "trainer.log_every_n_steps=1"], 6, tmp_path / "more", resume=last, trainer={"logger": [longer]})
    again = Used()
    fit(overrides, 4, tmp_path / "cut", [again], resume=last)
    assert again.rates == used.rates[2:]
    assert_identical(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    expected = {t + 1: 0.01 * Cosine(warm_up=0.05).factor(t / 6) for t in range(2, 6)}
    assert longer.curves["lr/generator"] == pytest.approx(expected)


def test_schedules_at_their_bounds():
    assert [Linear(0.5, 0.5).factor(t) for t in (0, 0.5, 0.75, 1)] == [1, 1, 0.75, 0.5]
    assert [Cosine(0.2, 0.5).factor(t) for t in (0, 0.25, 0.5)] == [0, 0.5, 1]
    assert Cosine(0.2).factor(1) == pytest.approx(0.2) and Cosine(warm_up=1).factor(1) == 1
    assert Linear(after=1).factor(1) == 1 and Step([]).factor(1) == 1 and Constant(0).factor(0.5) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scheduler=cosine", "scheduler.end=2"], r"scheduler.end must be a number in \[0, 1\], got 2"),
        (["scheduler=step", "scheduler.at=[0.5,0.2]"], "scheduler.at must rise"),
        (["scheduler=step", "scheduler.at=0.5"], "scheduler.at must be a list"),
        (["scheduler=constant", "scheduler.factor=-1"], "at least 0, got -1"),
        (["scheduler=linear", "+scheduler.steps=5"], "takes no 'steps'"),
        (["scheduler=none", "+scheduler.end=0"], "scheduler.end has no effect without a schedule. Choose one of"),
        (["+model.g_scheduler=cosine"], r"For an option of the group scheduler: \+scheduler@model.g_scheduler=cosine"),
        (["model=began", "network=mlp", "scheduler=cosine"], "~model.g_scheduler ~model.d_scheduler"),
        (["model=pca", "model.latent_dim=1", "scheduler=cosine"], "scheduler has no effect"),
    ],
)
def test_mistakes(words, said):
    with pytest.raises(UserError, match=said):
        running.build(compose(["data=ring", *QUIET, *words]))


def test_the_advice_for_a_model_with_schedules_holds():
    words = ["model=began", "network=mlp", "data=ring", "scheduler=cosine", "~model.g_scheduler", "~model.d_scheduler"]
    assert running.build(config(words)).model.moves.factories["g_scheduler"].end == 0


def test_an_unknown_option_is_answered_with_those_there_are(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "scheduler=cosin") == 1
    assert "warmup_cosine" in capfd.readouterr().err
    assert main(monkeypatch, "--list", "scheduler") == 0
    assert "half a cosine" in capfd.readouterr().out
