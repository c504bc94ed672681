"""Stacked digits: what a stack is made of, how its modes are counted, and what a perfect sampler gets."""

import math

import pytest
import torch

from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.data.images import Digits
from genlab.data.stacked import StackedDigits
from genlab.errors import UserError
from genlab.judging.judge import Judge
from genlab.metrics.stacked import perfect_coverage, tuple_coverage
from genlab.runs.start import train


def stacks(**changes):
    arguments = {
        "source": "digits",
        "sources": {"digits": Digits},
        "num_train": 500,
        "image_size": 8,
        "batch_size": 4,
        "labels": True,
    }
    return StackedDigits(**{**arguments, **changes})


def test_counts_of_constructed_tuples():
    """Two triples, evenly: KL to uniform log(1000 / 2); all of them once: 0; one of them: log 1000, the worst."""
    two = tuple_coverage(torch.tensor([[0, 0, 1], [9, 9, 9]]).repeat(5, 1), 10)
    assert two == pytest.approx({"modes": 2, "kl_modes": math.log(500)}) and two.card["num_modes"] == 1000
    every = torch.cartesian_prod(*[torch.arange(10)] * 3)
    assert tuple_coverage(every, 10) == pytest.approx({"modes": 1000, "kl_modes": 0}, abs=1e-12)
    assert tuple_coverage(every[7:8].repeat(9, 1), 10) == pytest.approx({"modes": 1, "kl_modes": math.log(1000)})
    assert tuple_coverage(every[[123, 321]], 10)["modes"] == 2  # the order of the channels counts
    with pytest.raises(ValueError, match="needs samples"):
        tuple_coverage(every[:0], 10)


def test_what_a_perfect_sampler_gets_is_exact():
    """Against all outcomes of three throws of a coin and, for MNIST, against the published floor."""
    share = torch.tensor([0.3, 0.7])
    expected = {"modes": 0.0, "kl_modes": 0.0}
    outcomes = torch.cartesian_prod(*[torch.arange(2)] * 3)
    for outcome in outcomes:
        probability = share[outcome].prod().item()
        for name, value in tuple_coverage(outcome[:, None], 2).items():
            expected[name] += probability * value
    assert perfect_coverage(3, share, channels=1) == pytest.approx(expected, rel=1e-6)

    mnist = torch.tensor([6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]).double()
    found = perfect_coverage(26_000, mnist / mnist.sum())
    assert found["kl_modes"] == pytest.approx(0.0236, abs=3e-4)  # 3 x .001426 of the classes, .0192 of the sample
    assert found["modes"] == pytest.approx(1000, abs=1e-3)
    uniform = perfect_coverage(1000, torch.full((10,), 0.1))
    assert uniform["modes"] == pytest.approx(1000 * (1 - 0.999**1000)) and uniform["kl_modes"] > 0.4


def test_stacks_are_of_images_of_their_split_and_always_the_same():
    data, grey = stacks(), Digits(batch_size=4, image_size=8, channels=1)
    assert data.name == "stacked-digits" and data.spec.shape == (3, 8, 8)
    for split, n in (("train", 500), ("val", 10_000), ("test", 26_000)):
        store, source = data.split(split), grey.split(split)
        assert len(store) == n
        known = {image.numpy().tobytes(): int(y) for image, y in zip(source.values("x"), source.y, strict=True)}
        x, y = store.gather(torch.arange(200)), store.y[:200]
        labels = torch.tensor(
            [[known[c.numpy().tobytes()] for c in image] for image in x]
        )  # KeyError: not of the split
        assert torch.equal(labels @ torch.tensor([100, 10, 1]), y)
        assert (x[:, 0] != x[:, 1]).flatten(1).any(dim=1).float().mean() > 0.95
    again = stacks(seed=5)
    assert data.split("train").fingerprint() == again.split("train").fingerprint()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "cifar10"}, "data.source must be one of digits"),
        ({"channels": 1}, "3 channels"),
        ({"num_train": 0}, "num_train"),
    ],
)
def test_what_is_no_stack_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        stacks(**changes)


@pytest.mark.parametrize("source", ["digits", "mnist10k", "mnist", "fashion_mnist"])
def test_the_grey_set_is_chosen_by_config(source):
    data = instantiate(compose(["data=stacked_digits", f"data.source={source}", "data.image_size=16"])["data"])
    assert data.grey.spec.shape == (1, 16, 16) and data.grey.spec.num_classes == 10
    assert data.spec.num_classes is None  # no labels, unless asked for


class Drawn:
    """Samples that are real stacks, or copies of one of them."""

    device, given = torch.device("cpu"), ()

    def __init__(self, x):
        self.x, self.at = x, 0

    def sample(self, n, given=None, rng=None):
        self.at += n
        return self.x[(torch.arange(self.at - n, self.at)) % len(self.x)].float() / 127.5 - 1


def test_the_judge_tells_a_perfect_sampler_from_a_collapsed_one():
    """By the digits' own classifier, which is wrong on 2 % of the images."""
    data, judge = stacks(), Judge(["stacked"], num_samples=4000, validation_samples=1000)
    real = data.split("test").gather(torch.arange(4000, 8000))
    perfect = judge.final(Drawn(real), data)
    card = judge.found.cards[judge.found.group["modes"]]
    assert card["extractor"] == "classifier-digits" and card["test_accuracy"] > 0.95
    assert 965 < card["expected_modes"] < 995  # of 4,000 samples, some triple is not drawn
    assert abs(perfect["test/modes"] - card["expected_modes"]) < 25
    assert abs(perfect["test/kl_modes"] - card["expected_kl_modes"]) < 0.1
    assert abs(perfect["test/modes_real"] - card["expected_modes"]) < 25  # of as many stacks
    told = dict(judge.lines())
    assert f"of 1000, perfect {card['expected_modes']:.4g} on average, real stacks " in told["modes"]
    assert "4000 generated, 4000 real, test" in told["modes"] and "right on 9" in told["judge"]

    one = judge.final(Drawn(real[:1]), data)
    assert one["test/modes"] == 1 and one["test/kl_modes"] == pytest.approx(math.log(1000))
    few = real[(data.split("test").y[4000:8000] // 100) < 2]  # two classes of the red channel: a fifth of the modes
    part = judge.validate(Drawn(few), data)
    assert part["val/modes"] < 320 and part["val/kl_modes"] > math.log(5) - 0.3
    assert judge.mode("modes") == "max" and judge.mode("kl_modes") == "min" and judge.monitor == ("modes",)
    assert [judge.count(data, split, "modes") for split in ("val", "test")] == [1000, 4000]


def test_an_experiment_from_end_to_end(tmp_path):
    """Its training, and other data, which have no grey set."""
    asked = ["data.num_train=200", "metrics.num_samples=200", "callbacks=none", "trainer.max_steps=2", "logger=csv"]
    scores = train(compose(["experiment=gan_stacked_digits", *asked]), tmp_path).scores
    assert 1 <= scores["test/modes"] <= 200 and scores["test/kl_modes"] > math.log(1000 / 200) - 1e-9
    judge = Judge(["stacked"])
    with pytest.raises(UserError, match="Try metrics=images"):
        judge.validate(Drawn(torch.zeros(1)), Digits(batch_size=4, image_size=8, channels=1))
