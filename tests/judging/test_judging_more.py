"""Any metric of torchmetrics among the scores of a run."""

import json

import pytest
import torch

from genlab.batch import Seq
from genlab.cli.evaluate import evaluate_run
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.judging.judge import Judge
from genlab.reports import report
from genlab.runs.start import train
from tests.cli.helpers import command
from tests.models.helpers import config

QUICK = ["trainer.max_steps=2", "metrics.every_n_steps=2", "callbacks=default", "logger=csv", "metrics.num_samples=40"]
PSNR = "metrics.more.psnr={_target_: torchmetrics.image.PeakSignalNoiseRatio, data_range: 2.0, feeds: pairs}"


def test_from_the_command_line(tmp_path):
    """Curves, card and rows; the value by hand."""
    run = tmp_path / "run"
    result = command(["model=vae", PSNR, *QUICK, f"hydra.run.dir={run}"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "psnr" in result.stdout and "val/psnr" in (run / "metrics.csv").read_text()
    own = json.loads((run / "run.json").read_text())
    card = own["cards"][own["group"]["psnr"]]
    assert card["metric"] == "torchmetrics.image.psnr.PeakSignalNoiseRatio" and card["n_real"] == 40
    record = evaluate_run(run, {"allow_targets": ["torchmetrics.*"], "iwae_samples": 2})
    assert record["scores"]["psnr"] == own["scores"]["test/psnr"]
    assert record["cards"][record["group"]["psnr"]] == card
    (row,) = (row for row in report.collect([str(run)]).rows if row.score == "psnr")
    assert (row.title, row.better, row.section) == ("psnr, PeakSignalNoiseRatio", "higher", "torchmetrics")


def test_a_perplexity_of_tokens(tmp_path):
    """Of independent words, exp of the cross-entropy of the split's frequencies; padding does not count."""
    lines = ["a b a", "a", "c a a b", "a a"] * 60
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    words = ["data=text", f"data.root={tmp_path / 'lines.txt'}", "data.columns.x.size=4", "data.columns.x.most=5"]
    more = "metrics.more.perplexity={_target_: torchmetrics.text.Perplexity, feeds: tokens}"
    overrides = [*words, "metrics=more", more, "metrics.every_n_steps=2", "callbacks=default", "logger=csv"]
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05}
    model = {"_target_": "tests.fields.sentences.Unigram", "size": 4, "most": 5, "optimizer": adam}
    found = train({**config(overrides, 4), "model": model}, tmp_path / "run")
    assert "val/perplexity" in (tmp_path / "run" / "metrics.csv").read_text()
    x = found.model.trainer.datamodule.rows("test", ["x"], torch.arange(len(lines) // 10))["x"]
    tokens = x.values[x.mask]
    expected = (-found.model.next_logits(x)[x.mask][torch.arange(len(tokens)), tokens].mean()).exp().item()
    assert found.scores["test/perplexity"] == pytest.approx(expected, rel=1e-3)
    record = evaluate_run(tmp_path / "run", {"allow_targets": ["torchmetrics.*", "tests.*"]})
    assert record["scores"]["perplexity"] == found.scores["test/perplexity"]
    assert record["about"]["perplexity"]["better"] == "lower"
    (row,) = report.collect([str(tmp_path / "run")]).rows
    assert row.score == "perplexity"


def test_texts_of_samples_and_of_real_ones(tmp_path):
    """The same words in the same order, by the word error rate."""
    (tmp_path / "lines.txt").write_text("a\n" * 300)
    words = ["data=text", f"data.root={tmp_path / 'lines.txt'}", "data.columns.x.size=2", "data.columns.x.most=1"]
    more = "metrics.more.wer={_target_: torchmetrics.text.WordErrorRate, feeds: text}"
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1.0}
    model = {"_target_": "tests.fields.sentences.Unigram", "size": 2, "most": 1, "optimizer": adam}
    found = train({**config([*words, "metrics=more", more], 40), "model": model}, tmp_path / "run")
    assert found.scores == {"test/wer": 0.0}


FEATURES = "{_target_: tests.judging.test_judging_more.Identity, num_features: 64}"
KIND = "torchmetrics.image"


class Identity(torch.nn.Identity):
    """In place of a network: features in, features out."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features


def test_features_images_and_labels(tmp_path):
    """torchmetrics' own FID of the classifier's features is the run's; an accuracy is one less the error."""
    fid = f"metrics.more.theirs={{_target_: {KIND}.FrechetInceptionDistance, feature: {FEATURES}, feeds: features}}"
    variation = f"metrics.more.tv={{_target_: {KIND}.TotalVariation, feeds: images, reduction: mean}}"
    scores = train(compose([fid, variation, *QUICK, "metrics.scores=[fid]"]), tmp_path / "gan").scores
    assert scores["test/theirs"] == pytest.approx(scores["test/fid/classifier-digits"], rel=1e-3)
    assert scores["test/tv"] > 0
    accuracy = "{_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10, average: micro}"
    labels = ["model=aae_semi_supervised", f"metrics.more.right={accuracy}", "metrics.more.right.feeds=labels"]
    scores = train(compose([*labels, *QUICK, "trainer.max_steps=1"]), tmp_path / "aae").scores
    assert scores["test/right"] == pytest.approx(1 - scores["test/classifier_error"], abs=1e-6)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("{_target_: torchmetrics.image.TotalVariation}", "metrics.more.x.feeds says what the metric is given: one of"),
        ("{_target_: torchmetrics.image.TotalVariation, feeds: imags}", "feeds must be one of images, pairs, labels"),
        (
            "{_target_: torch.nn.Identity, feeds: images}",
            "must name a metric of torchmetrics or a measure",
        ),
        ("{feeds: images}", "metrics.more.x needs a _target_"),
        (
            "{_target_: torchmetrics.image.LearnedPerceptualImagePatchSimilarity, feeds: pairs}",
            "metrics.more.x downloads a file from download.pytorch.org. To allow it: metrics.more.x.download=true",
        ),
        (
            "{_target_: torchmetrics.image.StructuralSimilarityIndexMeasure, feeds: pairs, reduction: all}",
            "metrics.more.x cannot be built: Argument `reduction` must be one of",
        ),
    ],
)
def test_a_mistake_is_told_before_training(node, words, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # without any downloaded file
    with pytest.raises(UserError) as error:
        train(compose([f"metrics.more.x={node}", *QUICK]), tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_a_metric_cannot_take_are_told_before_training(tmp_path):
    """torchmetrics' MS-SSIM has five scales; digits have 8 pixels."""
    name = "MultiScaleStructuralSimilarityIndexMeasure"
    scales = f"metrics.more.scales={{_target_: {KIND}.{name}, data_range: 2.0, feeds: pairs}}"
    with pytest.raises(UserError, match=f"metrics.more.scales: {name} cannot take pairs of digits: For a given number"):
        train(compose(["model=vae", scales, *QUICK]), tmp_path / "run")


def test_a_metric_does_not_touch_training_or_its_own_past():
    """No state is left between two scorings, and none is an attribute of the model."""
    judge = Judge([], num_samples=40, more={"tv": {"_target_": f"{KIND}.TotalVariation", "feeds": "images"}})
    (measure,) = judge.measures
    assert judge.monitor == ("tv",) and judge.mode("tv") == "min"
    assert measure.metric._update_count == 0 and not measure.metric.sync_on_compute


def test_sequences_are_fed_one_by_one_without_their_padding():
    """The error of two sequences is the mean over their steps, by hand."""
    target = Seq(torch.tensor([[1.0, 2.0, 0.0], [4.0, 4.0, 4.0]]), torch.tensor([2, 3]))
    made = Seq(torch.tensor([[2.0, 2.0, 9.0], [4.0, 4.0, 1.0]]), torch.tensor([2, 3]))
    node = {"_target_": "torchmetrics.MeanSquaredError", "feeds": "pairs"}
    (measure,) = Judge([], more={"mse": node}).measures

    class Given:
        def pairs(self, n):
            return [(made, target, None)]

    found = measure._computed(list(measure._pairs(Given(), 2)), 2)
    assert found["mse"] == pytest.approx((1 + 0 + 0 + 0 + 9) / 5)
