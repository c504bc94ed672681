"""FID and spread within told classes: of a model that draws training images, and of some that fall short of it."""

import pytest
import torch

from genlab.config.composition import compose
from genlab.config.instantiate import build_data
from genlab.extractors.choice import dataset_classifier
from genlab.judging.judge import take
from genlab.judging.measure import Settings, known
from genlab.judging.subject import Subject

KEYS = {"fid_within/classifier-digits", "spread_within", "spread_within_least"}


@pytest.fixture(scope="module")
def digits():
    data = build_data(compose(["data=digits"]))
    data.setup()
    return data, dataset_classifier(data, torch.device("cpu"))


class Library:
    """Draws a training image of the class that it is told."""

    device, has_averages, given = torch.device("cpu"), False, ("y",)

    def __init__(self, data):
        store = data.split("train")
        self.x, self.y = data.spec.x.normalise(store.values("x")), store.y
        self.of_class = [(self.y == k).nonzero().squeeze(1) for k in range(10)]

    def chosen(self, y, rng):
        rows = self.of_class[y]
        return rows[torch.randint(len(rows), (), generator=rng)]

    def sample(self, n, given=None, rng=None):
        return self.x[torch.stack([self.chosen(int(y), rng) for y in given["y"]])]


class Collapsed(Library):
    """Draws one and the same image of a class."""

    def chosen(self, y, rng):
        return self.of_class[y][0]


class Deaf(Library):
    """Draws an image of any class."""

    def chosen(self, y, rng):
        return torch.randint(len(self.y), (), generator=rng)


def scored(model, digits, n=359):
    data, extractor = digits
    subject = Subject(model, data, "test", Settings(num_samples=n), lambda: extractor)
    return take(subject, [known()["within"]()])


def test_what_each_failure_does_to_the_scores(digits):
    found = {kind: scored(kind(digits[0]), digits) for kind in (Library, Collapsed, Deaf)}
    scores = {kind: each.scores for kind, each in found.items()}
    assert all(each.keys() == KEYS for each in scores.values())
    fids = {kind: each["fid_within/classifier-digits"] for kind, each in scores.items()}
    assert 2 * fids[Library] < fids[Collapsed] and 2 * fids[Library] < fids[Deaf]
    assert 0.8 < scores[Library]["spread_within_least"] < scores[Library]["spread_within"]  # of 36 images a class
    assert 0.95 < scores[Library]["spread_within"] < 1.05
    assert scores[Collapsed]["spread_within"] == 0 and scores[Deaf]["spread_within"] > 1.2
    about, card = found[Library].about, found[Library].cards["spread_within"]
    assert about["spread_within"]["better"] is None and about["spread_within"]["section"] == "within told classes"
    least = scores[Library]["spread_within_least"]
    assert about["spread_within"]["beside"] == f"of 10 classes, the least {least:.4g}"
    assert about["fid_within/classifier-digits"]["title"] == "FID within classes (classifier-digits)"
    assert card["classes"] == 10 and card["given"] == "y of rows of the split" and 20 <= card["rarest_class"] <= 36
    assert "spread_within_least" not in about
    assert [note.partition(":")[0] for note in found[Library].notes] == ["FID within classes has a large upward bias"]


def test_few_images_of_a_class_have_no_scores(digits):
    found = scored(Library(digits[0]), digits, n=100)
    assert found.scores == {}
    assert found.notes == [note for note in found.notes if "and 20 are needed" in note] != []


def test_it_needs_a_model_that_is_told_classes(digits):
    data, extractor = digits
    model = Library(data)
    model.given = ()
    subject = Subject(model, data, "test", Settings(), lambda: extractor)
    assert known()["within"]().missing(subject) == "Library is told no classes."
    nobody = Subject(None, data, "test", Settings(), lambda: extractor)
    assert known()["within"]().missing(nobody) == "There is no model."
    assert not known()["within"].cheap
