"""`scripts/report.py`: runs that are made up, so that every figure on the page is known."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from genlab.cli import report as cli
from genlab.errors import UserError
from genlab.fields.drawing import save_png
from genlab.judging.measure import known
from genlab.judging.measures.likelihood import parted
from genlab.judging.records import FORMAT, Findings
from genlab.metrics.scores import Scores
from genlab.reports.page import html_page
from genlab.reports.report import cell, collect, draw_boxes, markdown, number

FID = "fid/classifier-digits"
CARD = {"extractor": "classifier-digits", "checksum": "c" * 64, "n_real": 359, "n_fake": 359, "split": "test"}


def found(*parts):
    """What scoring finds, with the facts that the measures tell: of (measure, scores, card)."""
    findings = Findings()
    for measure, values, card in parts:
        findings.add(known()[measure](), Scores(values, card), {})
    return {key: getattr(findings, key) for key in ("scores", "group", "cards", "about", "notes")}


def score_file(folder, record, seed=2020):
    """A file of `genlab-evaluate` in a run."""
    (folder / "scores").mkdir(exist_ok=True)
    content = {"format": FORMAT, "checkpoint": {"file": "last.ckpt"}, **record}
    (folder / "scores" / f"test-classifier-digits-seed{seed}.json").write_text(json.dumps(content))


def own_scores(record):
    """The part of `run.json` that holds what the run's own judge found."""
    return {**record, "scores": {f"test/{name}": value for name, value in record["scores"].items()}}


def make_run(folder, model="gan", seed=0, scores=None, weight=1.0, card=None, scoring_seeds=(2020,), curves=True):
    """A run folder as training and evaluation leave it, without the training."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "choices": {"model": model, "data": "digits"},
        "model": {"_target_": f"genlab.models.{model}", "kl_weight": weight},
        "data": {"_target_": "genlab.data.images.Digits", "seed": seed, "label_seed": seed, "root": str(folder)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    session = {
        "command": "train.py",
        "wall_seconds": 90.0,
        "status": "done",
        "hardware": {"cpu": "A CPU", "threads": 1},
    }
    record = {
        "choices": config["choices"],
        "seed": seed,
        "sessions": [session],
        "iterations": 1000,
        "images_per_second": 1234.5,
        "parameters": {"generator": 66_688},
        **own_scores(found(("fid", {FID: 50.0}, CARD))),
    }
    (folder / "run.json").write_text(json.dumps(record))
    for i, scoring_seed in enumerate(scoring_seeds if scores else ()):
        of_seed = {**CARD, **(card or {}), "seed": scoring_seed}
        parts = [(name.partition("/")[0], {name: value + i}, of_seed) for name, value in scores.items()]
        score_file(folder, found(*parts), scoring_seed)
    save_png(folder / "samples.png", np.full((32, 32, 3), 40 * seed % 255, np.uint8))
    if curves:
        rows = [f"{step},{step / 10},train/d_loss,{1 + step / 100}" for step in range(1, 50)]
        rows += [f"{step},{step / 10},val/{FID},{1000 / step}" for step in (1, 20, 40)]
        (folder / "metrics.csv").write_text("\n".join(["step,seconds,metric,value", *rows]) + "\n")
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two compositions with three and two seeds, in a multirun folder."""
    for i, (model, seed, fid) in enumerate(
        [("gan", 1, 10), ("gan", 2, 12), ("gan", 3, 14), ("vae", 1, 30), ("vae", 2, 40)]
    ):
        make_run(tmp_path / "sweep" / str(i), model, seed, {FID: fid, "is/classifier-digits": 5.0})
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}")
    (tmp_path / "sweep" / "latest").symlink_to("0", target_is_directory=True)
    return tmp_path / "sweep"


def rows_of(report):
    return {row.score: row for row in report.rows}


def test_seeds_are_averaged_and_the_best_is_marked(sweep):
    report = collect([str(sweep)])
    assert [c.label for c in report.compositions] == ["model=gan", "model=vae"]
    assert [len(c.entries) for c in report.compositions] == [3, 2] and report.shared == {"data": "digits"}
    row = rows_of(report)[FID]
    assert row.values == [[10, 12, 14], [30, 40]] and row.differs is None and row.best == [0]
    text = markdown(report)
    assert "| FID (classifier-digits) ↓ |  | **12 ± 2** | 35 ± 7.1 |" in text
    assert rows_of(report)["is/classifier-digits"].best == [0, 1]  # equal: within one standard deviation
    assert (
        "| 3 | model=vae | 1 | 1000 | 90 s | 1,234 |" in text or "| 3 | model=vae | 1 | 1000 | 90 s | 1,235 |" in text
    )


def test_cards_that_differ_are_not_ranked_and_the_field_is_named(sweep, tmp_path):
    make_run(tmp_path / "odd", "vae", 3, {FID: 1.0}, card={"n_fake": 50})
    report = collect([str(sweep), str(tmp_path / "odd")])
    row = rows_of(report)[FID]
    assert row.best == [] and row.mixed == [False, True]
    sentence = "FID (classifier-digits) is not ranked: the cards differ in n_fake (359 in 5 scorings, 50 in odd)."
    assert report.refusals == [sentence]
    assert sentence in markdown(report) and sentence in html_page(report) and "1 to 40, mixed" in markdown(report)
    assert rows_of(report)["is/classifier-digits"].differs is None  # what can be ranked still is


def test_a_run_that_was_scored_twice_counts_once(tmp_path):
    for seed, fid in ((1, 10.0), (2, 20.0)):
        make_run(tmp_path / "runs" / str(seed), "gan", seed, {FID: fid}, scoring_seeds=(1, 2, 3))
    report = collect([str(tmp_path / "runs")])
    assert rows_of(report)[FID].values == [[11.0, 21.0]]
    assert report.compositions[0].spread_of_scorings(FID) == 1.0  # of 10, 11, 12
    assert "varies between scorings with a std of 1 " in html_page(report)


def test_labels_name_what_differs(tmp_path):
    for i, weight in enumerate((1.0, 4.0)):
        make_run(tmp_path / "runs" / str(i), "vae", 1, {FID: 10.0}, weight=weight)
    labels = [c.label for c in collect([str(tmp_path / "runs")]).compositions]
    assert labels == ["model.kl_weight=1.0", "model.kl_weight=4.0"]


def test_all_settings_of_a_method_make_one_box(tmp_path):
    """`by=model`: draws of settings and seeds together, and a picture with a box of each method for every score."""
    for i, (model, weight, fid) in enumerate([("gan", 1.0, 10), ("vae", 1.0, 20), ("gan", 3.0, 16), ("vae", 9.0, 40)]):
        make_run(tmp_path / "runs" / str(i), model, i, {FID: fid, "is/classifier-digits": 5.0 - i}, weight=weight)
    report = collect([str(tmp_path / "runs")], by="model")
    assert [c.label for c in report.compositions] == ["model=gan", "model=vae"] and report.shared == {"data": "digits"}
    assert rows_of(report)[FID].values == [[10, 16], [20, 40]]
    path = draw_boxes(report, tmp_path / "boxes.png")
    assert np.asarray(Image.open(path)).std() > 10
    panels = {}

    def spy(given):
        panels.update(given)
        return np.zeros((4, 4, 3), np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genlab.looks.pictures.box_plots", spy)
        draw_boxes(report, tmp_path / "again.png")
    assert panels["FID (classifier-digits) (lower is better)"] == {"gan": [10, 16], "vae": [20, 40]}
    with pytest.raises(UserError, match="has no choice of 'loss'. Try by=data"):
        collect([str(tmp_path / "runs")], by="loss")


def test_a_runs_own_scores_serve_where_it_was_not_evaluated(tmp_path):
    make_run(tmp_path / "run")
    report = collect([str(tmp_path / "run")])
    assert rows_of(report)[FID].values == [[50.0]] and rows_of(report)[FID].best == []


def test_the_page_stands_alone(sweep):
    """Nothing is fetched and nothing runs: no script, no link, pictures and curves inside."""
    page = html_page(collect([str(sweep)]))
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 7 and all(s.startswith("data:image/png;base64,") for s in sources)  # 2 large, 5 small
    assert page.count("<polyline") == 10 and "<h2>Curves</h2>" in page and "prefers-color-scheme: dark" in page
    assert "12 ± 2" in page and "90 s" in page and "1,23" in page and "Protocol cards" in page


def test_a_strangers_texts_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    make_run(tmp_path / "run", evil, 1, {FID: 1.0, f"is/{evil}": 2.0}, card={"extractor": evil})
    (tmp_path / "run" / "samples.png").write_bytes(b"no picture")
    page = html_page(collect([str(tmp_path / "run")]))
    assert evil not in page and "&lt;script&gt;" in page
    record = found(("fid", {FID: 1.0}, CARD))
    record["about"][FID] |= {"title": f"1{evil}", "section": f"2{evil}", "beside": f"3{evil}"}
    score_file(make_run(tmp_path / "facts", seed=1), {**record, "notes": [f"4{evil}"]})
    page = html_page(collect([str(tmp_path / "facts")]))
    assert evil not in page and all(f"{i}&lt;script&gt;" in page for i in "1234")


def test_score_files_stand_for_images(tmp_path):
    for name, fid in (("theirs", 5.0), ("ours", 6.0)):
        make_run(tmp_path / "tmp" / name, "gan", 1, {FID: fid})
        content = json.loads(next((tmp_path / "tmp" / name / "scores").glob("*.json")).read_text())
        (tmp_path / "scores").mkdir(exist_ok=True)
        (tmp_path / "scores" / f"{name}.json").write_text(json.dumps({**content, "run": f"/data/{name}.npz"}))
    report = collect([str(tmp_path / "scores")])
    assert [c.label for c in report.compositions] == ["ours.npz", "theirs.npz"] and rows_of(report)[FID].best[0] == 1
    assert "theirs.npz" in html_page(report)


def test_files_and_mistakes(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", f"runs={sweep}"])
    cli.main()
    assert (sweep / "report.html").is_file() and (sweep / "report.md").read_text().startswith("All runs: `data=digits`")
    assert "report.html" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([], "Say what"),
        ([str(tmp_path / "empty")], "nothing in it"),
        (["nowhere"], "no run folder"),
    ):
        with pytest.raises(UserError, match=words):
            collect(arguments)
    (sweep / "0" / "scores" / "test-classifier-digits-seed2020.json").write_text("{")  # cut off: the rest is shown
    assert rows_of(collect([str(sweep)]))["is/classifier-digits"].values[0] == [5.0, 5.0]


DAMAGED = [
    {"fid/classifier-digits": {}},
    {"fid/classifier-digits": "FID"},
    {"fid/classifier-digits": {"title": "FID", "better": "lower", "section": "features", "beside": None}},
    {"fid/classifier-digits": {"title": "FID", "better": "best", "section": "features", "beside": ""}},
    [],
    None,
]


@pytest.mark.parametrize("about", DAMAGED, ids=str)
def test_damaged_facts_are_left_out_with_a_warning(about, sweep, caplog):
    """Of a score file, whose run's own scores stand in its place, and of the run itself."""
    file, run = sweep / "4" / "scores" / "test-classifier-digits-seed2020.json", sweep / "4" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "about": about}))
    collect([str(sweep / "4")])
    assert "is no score file of this version" in caplog.text
    for each in file.parent.iterdir():
        each.unlink()
    run.write_text(json.dumps({**json.loads(run.read_text()), "about": about}))
    rows = rows_of(collect([str(sweep)]))
    assert "are not of this version and are left out" in caplog.text and "evaluate.py run=" in caplog.text
    assert rows["fid/classifier-digits"].values


def test_a_run_from_before_the_facts_says_how_to_take_its_scores_again(sweep, caplog):
    for each in (sweep / "4" / "scores").iterdir():
        each.unlink()
    record = json.loads((sweep / "4" / "run.json").read_text())
    (sweep / "4" / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("about", "group")}))
    assert collect([str(sweep / "4")]).rows == []
    assert "are not of this version and are left out" in caplog.text


def test_score_files_of_another_version_are_left_out(sweep, caplog):
    """Their scores were computed otherwise; the run's own stand in their place."""
    file = sweep / "4" / "scores" / "test-classifier-digits-seed2020.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT - 1}))
    rows = rows_of(collect([str(sweep)]))
    assert f"is no score file of this version and is left out (format {FORMAT - 1})" in caplog.text
    assert rows["is/classifier-digits"].values == [[5.0, 5.0, 5.0], [5.0]] and rows[FID].values[1] == [30.0, 50.0]


def test_facts_come_from_the_records(tmp_path):
    """Title, direction, section and reference of a score that no measure here knows; without them it has no row."""
    facts = {"measure": "mine", "title": "brightness", "better": "higher", "section": "light", "beside": "real 3"}
    for folder, model, value in (("a", "gan", 1.0), ("b", "vae", 2.0)):
        record = {"scores": {"bright": value, "bright_std": 0.1}, "cards": {"bright": CARD}, "about": {"bright": facts}}
        score_file(make_run(tmp_path / folder, model), {**record, "group": dict.fromkeys(record["scores"], "bright")})
    (row,) = collect([str(tmp_path / "a"), str(tmp_path / "b")]).rows
    assert (row.score, row.title, row.better, row.section) == ("bright", "brightness", "higher", "light")
    assert row.reference == "real 3" and row.best == [1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12.0, "12"), (12.3456, "12.35"), (0.012345, "0.01235"), (-57.678, "-57.68"), (1e6, "1e+06")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_cells():
    assert [cell([]), cell([1.5]), cell([1.0, 2.0])] == ["–", "1.5", "1.5 ± 0.71"]


COMMON = {"protocol": 1, "seed": 2020, "split": "test", "data": "digits", "fingerprint": "f" * 64, "sampler": "prior"}
JUDGE = {"extractor": "classifier-digits", "checksum": "c" * 64}


def trained(folder, record, model="vae"):
    """A run that its own judge scored."""
    made = json.loads((make_run(folder, model, 1) / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**made, **own_scores(record)}))
    return folder


def evaluated(folder, record, model="vae"):
    """A run that `genlab-evaluate` scored."""
    score_file(make_run(folder, model, 1), record)
    return folder


# A measure, scores that stand on one of its cards, and the fields of the card that their references are made of.
OF_MEASURES = [
    ("likelihood", ("elbo", "elbo_recon"), {}),
    ("likelihood", ("iwae_500", "bits_per_dim", "ess"), {"iwae_samples": 500}),
    ("likelihood", ("active_units",), {"latent_dim": 8}),
    ("likelihood", ("objective", "objective_kl"), {}),
    ("stacked", ("modes", "kl_modes"), {"num_modes": 1000}),
    ("points", ("modes", "hq"), {"num_modes": 8, "hq_ceiling": 0.99}),
    ("points", ("energy",), {}),
    ("factors", ("factor_corr", "factor_gap"), {"factors": []}),
    ("classification", ("classifier_error",), {}),
    ("classification", ("classifier_error/clusters",), {}),
]


@pytest.mark.parametrize(("measure", "names", "fields"), OF_MEASURES)
def test_cards_of_all_measures_are_found(measure, names, fields, tmp_path):
    """Scores on two sets of data are not ranked, whatever measured them; those on one set are."""
    for folder, model, data in (("a", "gan", "digits"), ("b", "vae", "digits"), ("c", "aae", "letters")):
        values = {name: 1.0 + (folder == "b") for name in names}
        trained(tmp_path / folder, found((measure, values, {**COMMON, **fields, "data": data})), model)
    alike = collect([str(tmp_path / "a"), str(tmp_path / "b")])
    assert {row.score for row in alike.ranked} == set(names) and not alike.refused
    report = collect([str(tmp_path / each) for each in "abc"])
    assert {row.score for row in report.refused} == set(names) and all(row.best == [] for row in report.refused)
    assert "the cards differ in data (digits in a and b, letters in c)" in report.refusals[0]


def test_a_missing_card_agrees_with_nothing(tmp_path):
    def bare(value):
        return {**found(("objective", {"elbo": value}, COMMON)), "cards": {}}

    for folder, model in (("a", "gan"), ("b", "vae")):
        trained(tmp_path / folder, bare(-80.0 - len(model)), model)
    evaluated(tmp_path / "c", {**bare(-70.0), "group": {}}, "aae")
    for named in ("ab", "abc", "a"):
        report = collect([str(tmp_path / each) for each in named])
        row = rows_of(report)["elbo"]
        assert row.best == [] and report.ranked == []
    assert report.refusals == ["ELBO, nats is not ranked: there is no protocol card in a."]
    page, text = html_page(report), markdown(report)
    assert all("there is no protocol card in a." in shown and "-83" in shown for shown in (page, text))
    trained(tmp_path / "again" / "d", bare(-1.0), "gan")
    assert rows_of(collect([str(tmp_path / "a"), str(tmp_path / "again" / "d")]))["elbo"].mixed == [True]


def test_the_error_of_classes_and_clusters_is_shown(tmp_path):
    """The semi-supervised autoencoder's; less is better."""
    names = ("classifier_error", "classifier_error/clusters")
    for folder, model, error in (("a", "aae", 0.03), ("b", "vae", 0.2)):
        record = found(*(("classification", {name: error}, {**COMMON, "n_real": 359}) for name in names))
        trained(tmp_path / folder, record, model)
    report = collect([str(tmp_path / "a"), str(tmp_path / "b")])
    assert rows_of(report)["classifier_error"].best == rows_of(report)["classifier_error/clusters"].best == [0]
    text = markdown(report)
    assert "| classification error ↓ |  | **0.03** | 0.2 |" in text and "classification error (clusters) ↓" in text
    assert "classification" in html_page(report) and "extractor clusters" not in html_page(report)


def test_real_stacks_are_not_called_a_perfect_sampler(tmp_path):
    card = {**COMMON, **JUDGE, "num_modes": 1000, "expected_modes": 999.5, "expected_kl_modes": 0.0194}
    scores = {"modes": 640.0, "modes_real": 997.0, "kl_modes": 1.5, "kl_modes_real": 0.05}
    rows = rows_of(collect([str(trained(tmp_path / "stacks", found(("stacked", scores, card))))]))
    assert rows["modes"].reference == "of 1000, perfect 999.5 on average, real stacks 997"
    assert rows["kl_modes"].reference == "perfect 0.0194 on average, real stacks 0.05"
    points = found(("points", {"modes": 7.0, "modes_real": 8.0}, {**COMMON, "num_modes": 8}))
    reference = rows_of(collect([str(evaluated(tmp_path / "points", points))]))["modes"].reference
    assert reference == "perfect 8, of 8"


def test_scores_of_training_and_of_evaluate_rank_together(tmp_path):
    """Each score has a card with fields of its own, whoever wrote it; one that differs counts for its scores alone."""
    name, sizes = "classifier-digits", {"n_real": 359, "n_fake": 359}
    drawn = {**COMMON, **JUDGE, "given": "real"}

    def scored(value, is_splits=10, iwae_samples=500, latent_dim=8):
        own = {"n_real": 359, "support": "binary", "latent_dim": latent_dim, "active_threshold": 0.01}
        bounds = dict.fromkeys(("elbo", "iwae_500", "active_units"), value)
        parts = parted(Scores(bounds, {**COMMON, **own, "iwae_samples": iwae_samples, "is_likelihood": True}))
        return found(
            ("fid", {f"fid/{name}": value}, {**drawn, **sizes}),
            ("is", {f"is/{name}": value}, {**drawn, "n_fake": 359, "is_splits": is_splits, "is_seed": 2020}),
            ("kid", {f"kid/{name}": value}, {**drawn, **sizes, "kid_subsets": 100}),
            ("pr", {f"precision/{name}": value}, {**drawn, **sizes, "pr_k": 3, "pr_n_real": 359}),
            ("classes", {f"rarest_class/{name}": value}, {**drawn, "n_fake": 2000, "num_classes": 10}),
            *(("likelihood", each, each.card) for each in parts),
        )

    trained(tmp_path / "a", scored(1.0), "gan")
    evaluated(tmp_path / "b", scored(2.0, latent_dim=16))
    report = collect([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [row.score for row in report.refused] == ["active_units"] and len(report.ranked) == 7
    assert rows_of(report)[f"is/{name}"].best == [1] and rows_of(report)["elbo"].best == [1]
    assert rows_of(report)[f"fid/{name}"].best == [0]
    evaluated(tmp_path / "c", scored(2.0, is_splits=5, iwae_samples=50))
    refused = {row.score for row in collect([str(tmp_path / "a"), str(tmp_path / "c")]).refused}
    assert refused == {f"is/{name}", "iwae_500", "active_units"}  # a field counts for its own scores


@pytest.mark.parametrize("value", [7.9, 8.9])
def test_an_inception_score_above_the_real_images_is_explained(value, tmp_path):
    for folder, model, own in (("a", "gan", 7.0), ("b", "vae", value)):
        scores = {"is/classifier-digits": own, "is_real/classifier-digits": 8.4}
        trained(tmp_path / folder, found(("is", scores, {**COMMON, **JUDGE, "n_fake": 100})), model)
    row = next(r for r in collect([str(tmp_path / each) for each in "ab"]).ranked if r.score == "is/classifier-digits")
    assert row.reference.startswith("real 8.4") and ("surest of samples like them" in row.reference) == (value > 8.4)
