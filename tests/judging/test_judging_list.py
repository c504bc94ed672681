"""One list of measures: the same while training and afterwards, open to others, without a table elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genlab.cli import evaluate
from genlab.cli.evaluate import evaluate_run
from genlab.config.composition import compose, insisted
from genlab.config.shipped import options
from genlab.errors import UserError
from genlab.judging import measures
from genlab.judging.judge import Judge
from genlab.judging.measure import Measure, Settings, chosen, known
from genlab.judging.records import Findings
from genlab.judging.subject import Subject
from genlab.metrics.scores import Scores
from genlab.reports import report
from genlab.runs.start import train
from tests.cli.helpers import REPO

NAMES = [name for name, each in known().items() if not each.part_of]
QUICK = ["trainer.max_steps=2", "callbacks=none", "logger=csv", "threads=1", "trainer=cpu"]
ALL = [f"metrics.scores=[{','.join(name for name in NAMES if name != 'stacked')}]"]
SMALL = {  # of the settings that make a scoring small, those that a preset has
    "num_samples": 40,
    "iwae_samples": 3,
    "batch_size": 16,
    "splits": 3,
}
DATA = {
    "dc_ign": ["data=shapes", "data.num_train=64"],
    **{model: ["data.num_train=64"] for model in options("model") if insisted(model, "data") == "scenes"},
    **dict.fromkeys(("attribute2image", "attribute2image_layered"), ["data.num_train=64", "network.width=8"]),
}


def small(overrides):
    """Overrides with all measures and few samples; keys that a preset does not have are added."""
    own = compose(overrides)["metrics"] or {}
    return [*overrides, *ALL, *(f"{'' if k in own else '+'}metrics.{k}={v}" for k, v in SMALL.items())]


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[] if m in ("gan", "cvae") else pytest.mark.matrix) for m in options("model")]
)
def test_training_and_evaluate_agree_on_every_measure(model, tmp_path):
    """The same figures bit for bit, one card, and one word about each."""
    overrides = [f"model={model}", *DATA.get(model, []), *QUICK]
    train(compose(small(overrides)), tmp_path / "run")
    own = json.loads((tmp_path / "run" / "run.json").read_text())
    record = evaluate_run(tmp_path / "run")
    assert own["about"]
    for name, facts in own["about"].items():
        assert record["about"][name] == facts
        assert record["cards"][record["group"][name]] == own["cards"][own["group"][name]], name
    theirs = {name.removeprefix("test/"): value for name, value in own["scores"].items()}
    assert {name: record["scores"][name] for name in theirs} == pytest.approx(theirs, rel=0, abs=0, nan_ok=True)
    assert record["scores"].keys() - theirs.keys() == set()  # all that apply were taken while training
    assert report.collect([str(tmp_path / "run")]).refusals == []


@pytest.mark.parametrize("file", sorted(path.stem for path in Path(measures.__path__[0]).glob("[a-z]*.py")))
def test_a_measure_is_one_file(file, tmp_path):
    """Without its file the scores are gone from training, evaluate, report and help, and all else works."""
    source = tmp_path / "clone"
    for name in ("genlab", "configs"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", source)  # by which a checkout knows its configs
    (source / "genlab" / "judging" / "measures" / f"{file}.py").unlink()
    mine = {name for name, each in known().items() if each.__module__.endswith(f".{file}")}
    code = (
        "from genlab.judging.measure import known, chosen; from genlab.cli.evaluate import HELP, listed\n"
        f"gone = set({sorted(mine)!r})\n"
        "assert not gone & set(known()) and len(chosen(None)) == len(known()) > 8\n"
        "assert not any(f'| `{name}` |' in listed() for name in gone)"
    )
    result = run(code, source)
    assert result.returncode == 0, result.stderr


def run(code, source):
    """Python code on a copy of the sources."""
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=source, env=env, text=True, capture_output=True)


@pytest.mark.long
def test_a_run_without_the_file_of_a_measure(tmp_path):
    """Trained, scored and reported on without precision and recall; the docs' table is made of the same list."""
    source = tmp_path / "clone"
    shutil.copytree(REPO, source, ignore=shutil.ignore_patterns("__pycache__", ".git", "outputs", ".venv", "tests"))
    (source / "genlab" / "judging" / "measures" / "diversity.py").unlink()
    code = (
        "import sys\nfrom genlab.config.composition import compose\nfrom genlab.runs.start import train\n"
        "from genlab.cli.evaluate import evaluate_run\nfrom genlab.reports import report\nfrom pathlib import Path\n"
        "train(compose(['trainer.max_steps=2', 'callbacks=none', 'logger=csv', 'metrics.scores=[fid,kid]',"
        "'metrics.num_samples=40']), Path('run'))\n"
        "found = evaluate_run('run')\n"
        "assert not any('ms_ssim' in name or 'nn_' in name for name in found['scores'])\n"
        "rows = report.markdown(report.collect(['run']))\n"
        "assert 'KID' in rows and 'memorisation' not in rows and 'diversity' not in rows"
    )
    result = run(code, source)
    assert result.returncode == 0, result.stderr


def test_a_measure_from_outside(tmp_path):
    """Scores a run while training, in evaluate and in the report."""
    more = "metrics.more.bright={_target_: tests.judging.outside.Brightness, name: brightness, scale: 2.0}"
    overrides = [more, "metrics.num_samples=40", "metrics.every_n_steps=2", *QUICK, "callbacks=default"]
    train(compose(overrides), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.csv").read_text()
    own = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "val/brightness" in lines and own["about"]["brightness"]["beside"].startswith("real ")
    unseen = evaluate_run(tmp_path / "run", {"scores": None})
    assert "brightness" not in unseen["scores"]
    assert any("allow_targets=[tests.judging.outside.Brightness]" in note for note in unseen["notes"])
    record = evaluate_run(tmp_path / "run", {"allow_targets": ["tests.*"]})
    assert record["scores"]["brightness"] == own["scores"]["test/brightness"]
    assert record["cards"]["brightness"] == own["cards"]["brightness"]
    rows = {row.score: row for row in report.collect([str(tmp_path / "run")]).rows}
    assert (rows["brightness"].section, rows["brightness"].better) == ("brightness", "higher")
    assert rows["brightness"].title == "mean grey value"


def test_a_score_that_a_run_took_has_the_runs_own_settings(tmp_path):
    """What is typed comes before them; scores that it did not take have the defaults."""
    run_own = ["model=vae", "metrics.num_samples=60", "metrics.splits=3", "metrics.seed=7", *QUICK]
    train(compose(run_own), tmp_path / "run")
    record = evaluate_run(tmp_path / "run", {"scores": ["fid", "is", "kid", "reconstruction"]})
    cards = {name: record["cards"][record["group"][name]] for name in record["about"]}
    assert cards["fid/classifier-digits"]["n_fake"] == 60 and cards["kid/classifier-digits"]["n_fake"] == 359
    assert cards["is/classifier-digits"]["is_splits"] == 3 and cards["recon_mse"]["n_real"] == 359
    assert {card["seed"] for card in cards.values()} == {7} and record["file"].endswith("seed7.json")
    typed = evaluate_run(tmp_path / "run", {"scores": ["fid", "is"], "n": 80, "splits": 2, "seed": 3})
    card = typed["cards"][typed["group"]["is/classifier-digits"]]
    assert (card["n_fake"], card["is_splits"], card["seed"]) == (80, 2, 3)


def test_names_and_settings_that_are_wrong():
    with pytest.raises(UserError, match="There is no score 'fd'; metrics.scores takes fid, is"):
        Judge(["fd"])
    with pytest.raises(UserError, match="metrics.num_samples must be a whole number from 20 on, got 5"):
        Judge(["fid"], num_samples=5)
    with pytest.raises(UserError, match="metrics.every_n_steps must be a whole number from 1 on, got 0"):
        Judge(["fid"], every_n_steps=0)
    with pytest.raises(UserError, match="metrics.scores and metrics.more are empty"):
        Judge([])
    with pytest.raises(UserError, match="extractor must be one of classifier, inception, random, or a classifier file"):
        Judge(["fid"], extractor="vgg")


def test_parts_are_chosen_with_the_whole():
    assert [m.name for m in chosen(["is", "reconstruction"])] == ["is", "classes", "reconstruction", "rfid"]
    assert [m.name for m in chosen(["rfid"])] == ["rfid"]
    assert all(name in evaluate.HELP for name in NAMES)


def test_every_measure_tells_its_facts():
    for name, make in known().items():
        each = make()
        assert each.about and each.place and {a.better for a in each.about.values()} <= {None, "lower", "higher"}, name
        assert all(each.kind(score) in each.about for score in each.monitor), name


def test_of_scores_of_one_name_the_last_counts():
    """And a card that no score has is not kept."""
    found, first, second = Findings(), Objective(), Objective()
    found.add(first, Scores({"elbo": 1.0}, {"n_real": 1}), {"split": "test"})
    found.add(second, Scores({"elbo": 2.0, "iwae_5": 3.0}, {"n_real": 2}), {"split": "test"})
    assert found.scores == {"elbo": 2.0, "iwae_5": 3.0} and found.cards == {"elbo": {"split": "test", "n_real": 2}}
    found.add(first, Scores({"bound": 0.0, "elbo": 1.0, "iwae_5": 2.0}, {"n_real": 3}), {"split": "test"})
    assert found.cards == {"bound": {"split": "test", "n_real": 3}}


class Objective(Measure):
    name, about = "", {}


def test_a_fault_in_one_batch_is_told_once(caplog):
    """A split that is too small is said once, and gives no scores."""
    from genlab.data.toy import Ring

    class Drawing:
        device, given = torch.device("cpu"), ()

        def sample(self, n, given=None, rng=None):
            return torch.randn(n, 2, generator=rng)

    data = Ring(batch_size=10)
    store = data.split("val").subset(torch.arange(10))
    data._splits = {**data._splits, "val": store}
    judge = Judge(["points"], num_samples=30)
    assert judge.validate(Drawing(), data) == {} == judge.validate(Drawing(), data)
    assert caplog.text.count("No val scores: they need at least 20 samples, got 10.") == 1
    assert judge.final(Drawing(), data)["test/energy"] < 1


def test_the_docs_hold_the_list():
    """Rows of measures whose file is there, as `evaluate.py --list` prints them."""
    text = (REPO / "docs" / "scores.md").read_text()
    written = text[text.index("<!-- list -->") : text.index("<!-- end -->")].strip().splitlines()[1:]
    typed = {f"| `{each.part_of or each.name}` |" for each in known().values()}
    assert [
        line for line in written if line.startswith(("| scores", "| ---", *typed))
    ] == evaluate.listed().splitlines()


def test_batches_of_one_size_are_no_others():
    """Measures with settings of their own share what they draw only if the draws are the same."""
    from genlab.data.toy import Ring

    class Still:
        device, given = torch.device("cpu"), ()

        def reconstruct(self, x):
            return x

        def told(self, batch):
            return ()

    subject = Subject(Still(), Ring(batch_size=10), "val", Settings(batch_size=30), lambda: None)
    sizes = [len(subject.batches(60)), len(subject.reconstructions(60)), len(subject.pairs(60))]
    subject.settings = Settings(batch_size=20)
    sizes += [len(subject.batches(60)), len(subject.reconstructions(60)), len(subject.pairs(60))]
    assert sizes == [2, 2, 2, 3, 3, 3]


def test_numbers_that_are_typed_come_before_the_runs_own():
    """`likelihood_images=null` is all of n; a run's own number counts where none is typed."""
    own, typed = {"num_samples": 300, "batch_size": 7}, {**evaluate.DEFAULTS, "seed": 1}
    assert evaluate.settings_of(typed).likelihood_images == 1000
    assert evaluate.settings_of({**typed, "likelihood_images": None}).likelihood_images is None
    found = evaluate.settings_of(typed, own)
    assert (found.likelihood_images, found.num_samples, found.batch_size) == (None, 300, 7)
    found = evaluate.settings_of({**typed, "likelihood_images": 50, "n": 90}, own)
    assert (found.likelihood_images, found.num_samples) == (50, 90)


def test_an_untrained_extractor_is_told_with_the_keys_of_each_command(tmp_path):
    """`metrics.extractor` while training, `extractor` of evaluate."""
    train(compose(["metrics.extractor=random", "metrics.scores=[fid]", *QUICK]), tmp_path / "run")
    own = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    theirs = evaluate_run(tmp_path / "run", {"scores": ["fid"]})["notes"]
    assert "metrics.extractor=inception" in own[0] and "metrics.extractor" not in theirs[0]
    assert "extractor=inception" in theirs[0]
