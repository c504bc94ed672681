"""The last and the best weights at the end of a run: scored side by side, and an early end."""

import json

import pytest
import torch

from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.runs import summary
from genlab.runs.stages import train_stages
from genlab.runs.start import train
from genlab.runs.sweeps import earlier
from tests.cli.helpers import main

WORDS = ["data=ring", "network=mlp", "network.hidden=[16]", "trainer=cpu", "threads=1", "logger=none"]
SHORT = ["trainer.max_steps=6", "metrics.every_n_steps=1", "metrics.num_samples=100", "callbacks.grid=null"]


def falling(monkeypatch, worse_after):
    """The energy distance on validation data rises after an iteration; on test data it is the judge's own."""
    from genlab.judging.judge import Judge

    def validate(self, model, data):
        return {"val/energy": float(abs(model.iteration - worse_after))}

    monkeypatch.setattr(Judge, "validate", validate)


def test_both_are_scored_on_test_data(tmp_path, monkeypatch, capsys):
    """Those of best.ckpt as a run that ended there has them; the last weights, averages and cards stay."""
    falling(monkeypatch, 2)
    result = train(compose([*WORDS, *SHORT, "checkpoint.smooth=1"]), tmp_path / "run")
    there = train(compose([*WORDS, *SHORT, "trainer.max_steps=2"]), tmp_path / "there")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    best, last = record["best"], record["last"]
    assert (best["iteration"], best["validation"], best["idle"]) == (2, 0.0, 4)
    assert best["test"] == pytest.approx(there.scores["test/energy"], rel=1e-6)
    assert (last["iteration"], last["validation"], last["n"]) == (6, 4.0, {"val": 100, "test": 100})
    assert last["test"] == record["scores"]["test/energy"] == result.scores["test/energy"] != best["test"]
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, kept["state_dict"][name]) for name, value in result.model.state_dict().items())
    assert all(torch.equal(value, kept["genlab"]["ema"][name]) for name, value in result.model.averages.values.items())
    shown = capsys.readouterr().out
    assert "n = 100" in shown and "iteration 2, best.ckpt" in shown
    assert record["cards"][record["group"]["energy"]]["n_fake"] == 100


@pytest.mark.parametrize("monitor", ["recon", "kl", "elbo", "factor_corr_x", "classifier_error"])
def test_whatever_chose_the_best_is_taken_of_it_on_test_data(monitor, monkeypatch, tmp_path):
    """A term of the objective and a score of one factor too, which have no rows in tables."""
    from genlab.judging.judge import Judge

    def validate(self, model, data):
        return {name: value if model.iteration == 1 else float("nan") for name, value in own(self, model, data).items()}

    own = Judge.validate
    monkeypatch.setattr(Judge, "validate", validate)
    quiet = ["trainer=cpu", "threads=1", "logger=none", "callbacks.grid=null", "checkpoint.smooth=1"]
    of_model = {
        "factor_corr_x": ["model=dc_ign", "data.num_train=64", "data.batch_size=16"],
        "classifier_error": ["model=aae_semi_supervised"],
    }.get(monitor, ["model=vae", "data=ring", "network=mlp", "network.hidden=[8]", "likelihood=gaussian"])
    numbers = ["trainer.max_steps=2", "metrics.every_n_steps=1", "metrics.num_samples=40"]
    of_bounds = [] if monitor == "classifier_error" else ["metrics=likelihood", "metrics.iwae_samples=2"]
    train(compose([*of_model, *quiet, *of_bounds, *numbers, f"checkpoint.monitor={monitor}"]), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["best"]["monitor"] == monitor and record["best"]["iteration"] == 1
    assert record["best"]["test"] is not None and record["last"]["test"] is not None


def test_rows_side_by_side():
    best = {"monitor": "fid", "score": 5.0, "mean_of": 3, "iteration": 20, "validation": 5.25, "test": 6.03}
    last = {"iteration": 50, "validation": 5.5, "test": 4.3, "n": {"val": 180, "test": 360}}
    assert summary.compared(best, last) == [
        ("fid", "validation      test"),
        ("", "   n = 180   n = 360"),
        ("last", "       5.5       4.3   iteration 50"),
        ("best", "      5.25      6.03   iteration 20, best.ckpt, chosen by the mean of 3"),
    ]
    unscored = summary.compared(
        {**best, "mean_of": 1, "test": None}, {"iteration": 50, "validation": 5.5, "test": None}
    )
    assert unscored[1:] == [
        ("last", "       5.5         -   iteration 50"),
        ("best", "      5.25         -   iteration 20, best.ckpt"),
    ]
    assert summary.compared({**best, "score": None}, last) == []


def test_an_early_end_on_the_command_line(tmp_path, monkeypatch, capfd):
    """Exit code 0; said in the summary and the log; refused to go on without more patience; done for a sweep."""
    falling(monkeypatch, 2)
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, *SHORT, "checkpoint.early_stop=2", "checkpoint.smooth=1", "hydra.run.dir=run"]
    assert main(monkeypatch, *words) == 0
    out, log = capfd.readouterr().out, (tmp_path / "run" / "train.log").read_text()
    said = "stopped early after iteration 4: 2 validations without a better energy"
    assert said in out and said in log and "checkpoint.early_stop=null" in out
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["sessions"][-1]["status"] == "done" and state["iterations"] == 4
    assert earlier(tmp_path / "run", compose(words[:-1])).done
    with pytest.raises(UserError, match="are done"):  # as a stage it is not trained again
        train_stages({**compose(words[:-1]), "stages": [{"name": "run"}]}, tmp_path)
    assert main(monkeypatch, "resume=run") == 2
    assert "checkpoint.early_stop=null, or a number above 2" in capfd.readouterr().err
    assert main(monkeypatch, "resume=run", "checkpoint.early_stop=null") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["iterations"] == 6
