"""Readback: samples that are as they were told, samples that are not, and readers that are trained once."""

import json
import math
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.batch import Batch, Seq
from genlab.cli.evaluate import evaluate_run
from genlab.config.composition import compose
from genlab.data.scenes import Scenes
from genlab.extractors import classifier, reader
from genlab.extractors.classifier import epochs_for
from genlab.extractors.reader import Mapper, agreement, load_or_train
from genlab.fields.attributes import Attributes
from genlab.fields.base import KINDS
from genlab.fields.boxes import Boxes
from genlab.fields.keypoints import Keypoints
from genlab.fields.label import Label
from genlab.fields.layout import Layout
from genlab.fields.readout import Readout
from genlab.fields.tokens import Tokens
from genlab.judging.judge import take
from genlab.judging.measure import Settings, known
from genlab.judging.subject import Subject
from genlab.runs.start import train
from tests.cli.helpers import on_two_processes

KINDS_OF_SCENES = ("attributes", "caption", "boxes", "keypoints", "layout")
QUICK = ["trainer=cpu", "threads=1", "logger=csv"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _budget(monkeypatch):
    """Seconds for a reader, and for the classifier of the scenes; digits, which other tests share, have their own."""
    monkeypatch.setattr(reader, "SEEN", 5000)
    monkeypatch.setattr(classifier, "epochs_for", lambda n, tiny=True, usual=epochs_for: usual(n, tiny) if tiny else 8)


@pytest.fixture
def rng_untouched():
    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    before = states()
    yield
    assert states() == before


@pytest.fixture(scope="module")
def scenes():
    data = Scenes(batch_size=16, objects=1, image_size=20, num_train=1000)
    data.setup()
    return data


class Obedient:
    """Gives the picture of the row whose columns it is told."""

    device, has_averages = torch.device("cpu"), False

    def __init__(self, *given):
        self.given = ("x", *given) if given else ()

    def sample(self, n, given=None, rng=None):
        return given["x"]


class Deaf(Obedient):
    """Gives the picture of another row."""

    def sample(self, n, given=None, rng=None):
        return given["x"].roll(1, 0)


def scored(model, data, n=200, brief=False):
    subject = Subject(model, data, "test", Settings(num_samples=n), lambda: None, brief=brief)
    return take(subject, [known()["readback"]()])


@pytest.mark.parametrize("column", KINDS_OF_SCENES)
def test_what_is_told_is_read_from_pictures(column, scenes, rng_untouched):
    """Pictures of the told rows score as real ones do, those of other rows far less."""
    told, other = (scored(model(column), scenes) for model in (Obedient, Deaf))
    name, real = f"read_{column}", told.scores[f"read_{column}_real"]
    assert told.scores[name] == pytest.approx(real, abs=0.05)
    assert other.scores[f"{name}_real"] == real and other.scores[name] < real - 0.15
    card, facts = told.cards[name], told.about[name]
    assert card["reader"] == f"reader-scenes-{column}" and len(card["checksum"]) == 64
    assert (
        card["reader_agreement"] == pytest.approx(real, abs=0.05)
        and card["given"] == f"x, {column} of rows of the split"
    )
    assert facts["better"] == "higher" and facts["beside"].endswith(f"real {real:.4g}") and column in facts["title"]


def test_labels_are_read_by_the_classifier_of_the_data(scenes, rng_untouched):
    told, other = (scored(model("y"), scenes) for model in (Obedient, Deaf))
    assert told.cards["read_y"]["reader"] == "classifier-scenes"
    assert other.scores["read_y"] + 0.2 < other.scores["read_y_real"] == pytest.approx(told.scores["read_y"], abs=0.1)


def test_several_columns_have_a_score_each_and_curves_none_of_real_samples(scenes):
    found = scored(Obedient("y", "keypoints"), scenes, brief=True)
    assert found.scores.keys() == {"read_y", "read_keypoints"} == found.cards.keys()


@pytest.mark.parametrize("given", [(), ("x",)])
def test_models_that_are_told_nothing_else_than_pictures_have_no_readback(given, scenes):
    model = Obedient()
    model.given = given
    subject = Subject(model, scenes, "test", Settings(), lambda: None)
    assert known()["readback"]().missing(subject) == "Obedient is told nothing that can be read from a picture."
    assert scored(model, scenes).scores == {}


# --- Readers ----------------------------------------------------------------------------------------------------------


def colours(n, seed=0):
    """Pictures of one grey, which is told."""
    grey = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))
    return Batch({"images": (255 * grey).byte()[:, :, None, None].expand(-1, 1, 8, 8).contiguous(), "told": grey})


def test_one_reader_for_the_same_rows(tmp_path, monkeypatch, rng_untouched):
    """Bit for bit; the second time from its file, a damaged one is replaced, other rows have another."""
    field, rows = Attributes(shape=(1,), value_range=(0.0, 2.0)), (colours(100), colours(40, 1))
    monkeypatch.setattr(reader, "SEEN", 300)
    readers = []
    for folder in ("a", "b"):
        monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / folder))
        readers.append(load_or_train("greys", field, *rows))
    (file,) = (tmp_path / "b" / "readers").iterdir()
    with monkeypatch.context() as no_training:
        no_training.setattr(reader, "fit", None)
        readers.append(load_or_train("greys", field, *rows))
    file.write_bytes(file.read_bytes()[:500])
    readers.append(load_or_train("greys", field, *rows))
    assert len({each.checksum for each in readers}) == 1 == len({each.agreement for each in readers})
    load_or_train("greys", field, colours(100, 2), rows[1])
    assert len(list((tmp_path / "b" / "readers").iterdir())) == 2


@pytest.mark.parametrize("sides", [(4, 4), (8, 21), (16, 16), (28, 28), (33, 50), (100, 40)])
def test_maps_have_even_sides(sides):
    net = Mapper((1, *sides), 3)
    expected = [min(side, 64 if min(sides) <= 16 else 32) // 2 * 2 for side in sides]
    assert net.head(net.features(torch.zeros(2, 1, *sides))).shape == (2, 3, *expected)


def agrees(field, out, told, size=(4, 4), training=None):
    readout = field.readout(size)
    weights = readout.weights(told if training is None else training)
    sums = [part.double().sum(dim=0) for part in readout.compared(out, readout.target(told))]
    return agreement([torch.stack(sums)], weights)


def test_agreements_by_hand():
    logits = torch.tensor([[3.0, 1.0], [0.0, 1.0], [2.0, 0.0]])
    assert agrees(Label(size=2), logits, torch.tensor([0, 0, -1])) == 0.5  # one of two that are known
    assert agrees(Attributes(shape=(2,)), logits - 0.5, torch.tensor([[1.0, 1], [0, 0], [1, 1]])) == pytest.approx(
        4 / 6
    )
    even = agrees(Attributes(shape=(1,), value_range=(-1.0, 1.0)), torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
    assert even == pytest.approx(1 - 0.5 / 2)  # 0.5 of the range from 0 and from the end, halved
    points = torch.tensor([[[0.0, 0.0, 1], [0.3, 0.4, 1], [0.9, 0.9, 0]]])
    assert agrees(Keypoints(shape=(3, 3)), torch.zeros(1, 6), points) == pytest.approx((1 + 0.5) / 2)
    maps = torch.tensor([[0, 0, 1, -1]]).expand(4, 4)[None]
    assert agrees(Layout(shape=(4, 4), size=3), F.one_hot(torch.zeros_like(maps), 3).movedim(3, 1).float(), maps) == (
        pytest.approx((8 / 12 + 0) / 2)  # of class 0, and of class 1; class 2 is nowhere
    )


def test_boxes_are_filled():
    """A box of the left half against one of the upper half: a quarter of the picture of three."""
    field = Boxes(shape=(2, 5), size=2)
    left, upper = ([0.0, 0, 0, 0.5, 1], [0.0, 0, 0, 1, 0.5])
    none = [-1.0, 0, 0, 0, 0]
    told, other = torch.tensor([[left, none]]), torch.tensor([[none, upper]])
    target = field.readout((4, 4)).target(other)
    assert_close(target[0], torch.tensor([[[1.0], [1], [0], [0]], [[0], [0], [0], [0]]]).expand(2, 4, 4))
    assert agrees(field, target - 0.5, told) == pytest.approx(1 / 3)
    assert agrees(field, target - 0.5, other) == 1
    assert agrees(Boxes(shape=(2, 5)), target[:, :1] - 0.5, told) == pytest.approx(1 / 3)  # classes unknown


def test_words_that_all_or_few_pictures_have_do_not_count():
    """The word "a" is in all, "rare" in one of 200 sentences: found or not, only "red" and "blue" count."""
    field = Tokens(shape=(None,), names=("a", "red", "blue", "rare"))
    sentences = torch.tensor([[0, 1], [0, 2]] * 100)
    training = Seq(sentences, torch.full((200,), 2))
    training.values[0, 1] = 3
    told = Seq(torch.tensor([[0, 1, 3], [0, 2, 0]]), torch.tensor([3, 2]))
    out = torch.tensor([[-1.0, 1, 1, -1], [-1, 1, -1, -1]])
    assert agrees(field, out, told, training=training) == 0.5
    fixed = Tokens(shape=(2,), size=3)  # words 1 and 2 in half of the sentences, 0 in all
    assert agrees(fixed, torch.tensor([[1.0, 1, -1]] * 2), torch.tensor([[0, 1], [0, 2]])) == 0.5


def test_nothing_asked_is_no_number():
    assert math.isnan(agrees(Label(size=2), torch.zeros(2, 2), torch.tensor([-1, -1])))


# --- From outside, and in a run --------------------------------------------------------------------------------------


def test_a_kind_from_outside_takes_part(scenes):
    """By a `readout` of its own."""

    @dataclass(frozen=True)
    class Loudness(KINDS["attributes"]):
        kind: ClassVar[str] = "loudness"

        def readout(self, size):
            return Readout("hits", (1,), lambda out, t: ((out - t).abs() < 0.2, torch.ones_like(t)), loss=F.mse_loss)

    try:
        field = Loudness(shape=(1,))
        images = colours(200)
        found = load_or_train("loud", field, images, colours(100, 1))
        assert found.agreement > 0.7 and found.quality.startswith("hits ")
    finally:
        del KINDS["loudness"]


def test_a_conditional_gan_is_read_back(tmp_path):
    """While it trains, at its end and by `evaluate.py`; a GAN that is told nothing has no such score."""
    steps = [
        "trainer.max_steps=20",
        "metrics.every_n_steps=10",
        "metrics.num_samples=100",
        "metrics.scores=[fid,readback]",
    ]
    train(compose(["model=cgan", "data=digits", *steps, *QUICK]), tmp_path / "cgan")
    own = json.loads((tmp_path / "cgan" / "run.json").read_text())
    assert "val/read_y" in (tmp_path / "cgan" / "metrics.csv").read_text()
    record = evaluate_run(tmp_path / "cgan", {"scores": ["readback"]})
    for name in ("read_y", "read_y_real"):
        assert record["scores"][name] == own["scores"][f"test/{name}"]
    assert record["cards"]["read_y"] == own["cards"]["read_y"]
    assert record["cards"]["read_y"]["reader"] == "classifier-digits" and record["scores"]["read_y_real"] > 0.9
    train(compose(["model=gan", "data=digits", *steps, *QUICK, "trainer.max_steps=2"]), tmp_path / "gan")
    assert not [name for name in json.loads((tmp_path / "gan" / "run.json").read_text())["scores"] if "read_" in name]


def test_two_processes_read_alike(tmp_path):
    """The first prepares the reader before the others start, and nobody waits for it: real samples score as in one."""
    common = ["model=cgan", "data=digits", "metrics.scores=[readback]", "metrics.num_samples=100", "threads=1"]
    common += ["trainer.max_steps=2", "metrics.every_n_steps=1", "logger=csv"]
    jobs = tmp_path / "jobs.json"
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    jobs.write_text(json.dumps([["train", [*common, *two], str(tmp_path / "two")]]))
    on_two_processes("tests.runs.two_processes", str(jobs))
    train(compose([*common, "trainer=cpu"]), tmp_path / "one")
    real = [
        json.loads((tmp_path / run / "run.json").read_text())["scores"]["test/read_y_real"] for run in ("one", "two")
    ]
    assert real[0] == real[1] > 0.9
