"""Error rates of models that classify, and of clusters that are named by their surest sample."""

from types import SimpleNamespace

import pytest
import torch
from genlab.judging.classification import ClassificationJudge, classification_scores

from genlab.metrics.classification import cluster_error, cluster_names, error_rate


def test_the_error_counts_what_has_a_label():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0], [0.0, 1.0]])
    scores = error_rate(logits, torch.tensor([0, 0, 0, -1]))
    assert scores == {"classifier_error": pytest.approx(1 / 3)} and scores.card["n_real"] == 3
    with pytest.raises(ValueError, match="needs labels"):
        error_rate(logits, torch.full((4,), -1))


def test_a_cluster_has_the_name_of_its_surest_sample():
    """Of probabilities, not of logits, and of labelled samples alone."""
    logits = torch.tensor([[3.0, 0.0, -9.0], [4.0, 3.9, -9.0], [0.0, 2.0, -9.0], [0.0, 1.0, -9.0], [9.0, 0.0, 0.0]])
    y = torch.tensor([7, 5, 5, 7, -1])
    names = cluster_names(logits, y)
    assert names.tolist()[:2] == [7, 5]
    scores = cluster_error(logits, y, names)
    assert scores == {"classifier_error/clusters": pytest.approx(0.5)}  # the second and the fourth are wrong
    assert scores.card == {"n_real": 4, "clusters": 3}


class Data:
    """Validation and test samples that are one-hot vectors of their labels, or of others."""

    def __init__(self, y=True):
        self.y = y

    def batches(self, split, batch_size=None, limit=None):
        y = torch.tensor([0, 1, 2, 2] if split == "test" else [2, 0, 1])
        x = torch.eye(3)[y]
        for part in range(0, len(y), 2):
            yield SimpleNamespace(x=x[part : part + 2], y=y[part : part + 2] if self.y else None)


def test_the_score_is_of_what_the_model_can():
    """A permutation of the classes is all wrong as a classifier, and no matter to clusters."""
    turned = SimpleNamespace(device="cpu", classify=lambda x: x.roll(1, dims=1))
    clusters = SimpleNamespace(device="cpu", cluster=lambda x: x.roll(1, dims=1))
    assert classification_scores(turned, Data(), "test", 100) == {"classifier_error": 1.0}
    assert classification_scores(clusters, Data(), "test", 100) == {"classifier_error/clusters": 0.0}
    assert classification_scores(SimpleNamespace(device="cpu"), Data(), "test", 100) == {}
    assert classification_scores(turned, Data(y=False), "test", 100) == {}
    judge = ClassificationJudge()
    assert judge.validate(turned, Data()) == {"val/classifier_error": 1.0}
    assert (
        judge.mode("classifier_error") == "min" and judge.lines({"test/classifier_error": 0.25})[0][1][:6] == "25.00%"
    )
