"""Error rates of models that classify, and of clusters that are named by their surest sample."""

from types import SimpleNamespace

import pytest
import torch

from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.judging.judge import Judge
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


class OneHot(ArrayData):
    """Validation and test samples that are one-hot vectors of their labels."""

    name, kind, own_shape, class_names = "one-hot", "points", (3,), ("a", "b", "c")

    def _load(self, download):
        def store(labels):
            y = torch.tensor(labels * 10)
            return ArrayStore({"x": torch.eye(3)[y]}).with_column("y", y)

        return {"train": store([0, 1, 2]), "val": store([2, 0, 1]), "test": store([0, 1, 2, 2])}


def model(**able):
    return SimpleNamespace(device=torch.device("cpu"), given=(), **able)


def test_the_score_is_of_what_the_model_can(caplog):
    """A permutation of the classes is all wrong as a classifier, and no matter to clusters."""
    turned, data = model(classify=lambda x: x.roll(1, dims=1)), OneHot(batch_size=2)
    clusters = model(cluster=lambda x: x.roll(1, dims=1))

    def scores(model, data=data):
        return Judge(["classification"]).final(model, data)

    assert scores(turned) == {"test/classifier_error": 1.0}
    assert scores(clusters) == {"test/classifier_error/clusters": 0.0}
    assert scores(model()) == {} and "No scores are taken: SimpleNamespace has no `classify`." in caplog.text
    assert scores(turned, OneHot(batch_size=2, labels=False)) == {} and "one-hot has no column y." in caplog.text
    judge = Judge(["classification"])
    assert judge.validate(turned, data) == {"val/classifier_error": 1.0}
    assert judge.monitor == ("classifier_error",) and judge.mode("classifier_error") == "min"
    judge.final(model(classify=lambda x: x[:, [0, 0, 0]]), data)  # all are taken for the first class
    assert judge.lines() == [("classifier_error", "0.75  (40 real, test)")]


def test_a_discriminator_is_judged_apart_from_the_models_own_classifier():
    """Each by its own error; one alone has its own name, too."""
    data = OneHot(batch_size=2)
    right, turned = (lambda x: x), (lambda x: x.roll(1, dims=1))
    judge = Judge(["classification"])
    assert judge.final(model(classify=right, discern=turned), data) == {
        "test/classifier_error": 0.0,
        "test/classifier_error/discriminator": 1.0,
    }
    titles = {name: facts["title"] for name, facts in judge.found.about.items()}
    assert titles["classifier_error/discriminator"] == "classification error (discriminator)"
    alone = Judge(["classification"])
    assert alone.validate(model(discern=turned, cluster=right), data) == {"val/classifier_error/discriminator": 1.0}
    assert alone.mode("classifier_error/discriminator") == "min"
