"""A search over settings: four short trials by Optuna, through Hydra's sweeper."""

import json
from importlib.util import find_spec

import pytest
import yaml

from genlab.config.composition import check_plugins
from genlab.errors import UserError
from tests.cli.helpers import command


def has_sweeper():
    try:
        return find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(not has_sweeper(), reason='needs pip install -e ".[optuna]"')
def test_a_search_minimises_the_monitored_score(tmp_path):
    quick = ["trainer.max_steps=20", "metrics.every_n_steps=10", "callbacks.grid=null", "logger=none", "trainer=cpu"]
    done = command(["-m", "+search=optuna_fid", "hydra.sweeper.n_trials=4", *quick], tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs").glob("multirun_*")
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    records = [json.loads((sweep / str(i) / "run.json").read_text()) for i in range(4)]
    assert all(r["best"]["monitor"] == "fid" and r["choices"]["search"] == "optuna_fid" for r in records)
    scores = [r["best"]["score"] for r in records]
    assert found["best_value"] == pytest.approx(min(scores))
    best = yaml.safe_load((sweep / str(scores.index(min(scores))) / "config.yaml").read_text())
    assert best["model"]["latent_dim"] == found["best_params"]["model.latent_dim"]
    assert best["model"]["g_optimizer"]["lr"] == pytest.approx(found["best_params"]["model.g_optimizer.lr"])
    assert len({r["best"]["score"] for r in records}) > 1  # the trials differ


def test_a_missing_sweeper_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_plugins(["model=gan", "search=other"])
    with pytest.raises(UserError, match=r'\+search=optuna_fid needs .*pip install -e ".*\[optuna\]"'):
        check_plugins(["-m", "+search=optuna_fid"])
