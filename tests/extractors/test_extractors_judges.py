"""The networks that judge: from what they learn, what they cost, and what happens where they cannot."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genlab.extractors.classifier as classifier
from genlab.data.images import CIFAR10
from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.data.toy import Ring
from genlab.errors import NotNumbers, UserError
from genlab.extractors.choice import dataset_classifier
from genlab.extractors.classifier import ClassifierExtractor, RandomExtractor, epochs_for, train_classifier
from genlab.judging.cards import SEEN
from genlab.judging.judge import Judge
from genlab.judging.measure import Settings
from genlab.judging.measures.diversity import memorisation
from genlab.judging.measures.features import InceptionScore
from genlab.judging.subject import Subject
from genlab.metrics.diversity import nearest_neighbour_ratio
from genlab.metrics.features import Features, features_of
from genlab.metrics.images import fid, inception_score
from genlab.metrics.scores import rarest_class


def images(n, side=8, channels=1, seed=0):
    shape = (n, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Set(ArrayData):
    """Random pictures of two classes."""

    name = "pictures"
    labelled = True

    def _load(self, download):
        x = images(120, self.spec.shape[1], self.spec.shape[0])
        return {"all": ArrayStore({"x": x}).with_column("y", torch.arange(120) % 2 if self.labelled else None)}


class Photographs(Set):
    mirrors = True


class Unlabelled(Set):
    labelled = False


class Sampler:
    device, given = torch.device("cpu"), ()

    def __init__(self, draw):
        self.draw = draw

    def sample(self, n, given=None, rng=None):
        return self.draw(torch.randn(n, 1, 8, 8, generator=rng).clamp(-1, 1))


@pytest.fixture
def learned(monkeypatch):
    """What the classifier would have been trained on: data, recipe, key."""
    seen = {}

    def load_or_train(name, key, data, *, recipe, device):
        seen.update(data=data(), recipe=recipe, key=key)
        return ClassifierExtractor(name, tuple(seen["data"].x_train.shape[1:]), seen["data"].num_classes, 1.0)

    monkeypatch.setattr(classifier, "load_or_train", load_or_train)
    return seen


# ------------------------------------------------------------------------------------------------- what it learns from
@pytest.mark.parametrize("binarize", ["dynamic", "static", "none"])
def test_judge_and_data_are_of_one_kind(binarize, learned):
    """A judge of grey digits was right on 63 % of binary ones, instead of 83 %."""
    data = Set(batch_size=10, image_size=8, channels=1, binarize=binarize)
    dataset_classifier(data, torch.device("cpu"))
    for x in (learned["data"].x_train, learned["data"].x_test):
        assert bool(((x == 0) | (x == 255)).all()) == (binarize != "none")
    grey = Set(batch_size=10, image_size=8, channels=1)
    binary_key = learned["key"]
    dataset_classifier(grey, torch.device("cpu"))
    assert (binary_key == learned["key"]) == (binarize == "none")  # the cache keeps them apart
    assert torch.equal(data.judged("test").gather(torch.arange(3)), data.split("test").gather(torch.arange(3)))
    assert data.judged("train") is data.judged("train")


@pytest.mark.parametrize(("kind", "mirrored"), [(Set, False), (Photographs, True)])
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_alone_are_mirrored(kind, mirrored, channels, learned):
    """Colour does not make a photograph: digits and letters in colour stay as they are."""
    dataset_classifier(kind(batch_size=10, image_size=8, channels=channels), torch.device("cpu"))
    assert learned["recipe"].flip == mirrored
    assert CIFAR10.mirrors and not ArrayData.mirrors


def test_the_classes_are_told_with_their_counts(caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "epochs_for", lambda *_: 1)
    data = Set(batch_size=10, image_size=8, channels=1)
    with caplog.at_level(logging.INFO, logger="genlab"):
        dataset_classifier(data, torch.device("cpu"))
    zeros, ones = torch.bincount(data.split("train").y).tolist()
    told = caplog.text
    assert f"96 images of 2 classes (0 {zeros}, 1 {ones})" in told and "metrics=none" in told


def test_twelve_classes_are_named():
    data = classifier.ClassifierData(images(40), torch.arange(40) % 20, images(4), torch.arange(4), 20)
    assert classifier._counts(data).endswith("11 2 and 8 more)")


# ------------------------------------------------------------------------------------------------------- what it costs
def multiplications(net, shape):
    """Multiply-adds of one image, by the layers' own sizes."""
    total = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda m, _, out: total.append(m.weight.numel() * (out[0, 0].numel() if out.ndim == 4 else 1))
            )
    net.features(torch.zeros(1, *shape))
    return sum(total)


def test_tiny_images_keep_their_network():
    for side, blocks in ((8, 2), (16, 3)):
        net = ClassifierExtractor("any", (1, side, side), 10).net
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert [c.out_channels for c in convolutions] == [32, 32, 64, 64, 128, 128][: 2 * blocks]
        assert all(c.kernel_size == (3, 3) and c.stride == (1, 1) for c in convolutions)
    assert [epochs_for(n) for n in (10, 1000, 1258, 50_000)] == [60, 40, 31, 12]


def test_larger_images_are_cheap_and_seen_at_32_pixels():
    small = ClassifierExtractor("any", (3, 32, 32), 10)
    assert multiplications(small.net, (3, 32, 32)) < 8.5e6  # 53 million with two convolutions at full size
    assert [epochs_for(n, tiny=False) for n in (10, 240, 1000, 50_000)] == [40, 40, 18, 12]
    large = ClassifierExtractor("any", (3, 64, 128), 10)
    large.net.load_state_dict(small.net.state_dict())
    x = images(5, 32, 3)
    spread = x.repeat_interleave(2, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(large(spread), small(x), rtol=1e-4, atol=1e-4)
    assert large.card()["resize"] == "averaged down to 32x32 pixels" and small.card()["resize"] == "none"


def test_the_larger_network_learns(digits):
    """Digits at 20 pixels."""
    large = [
        F.interpolate(x.float(), size=20, mode="bilinear").to(torch.uint8) for x in (digits.x_train, digits.x_test)
    ]
    data = classifier.ClassifierData(large[0][:600], digits.y_train[:600], large[1], digits.y_test, 10)
    assert train_classifier(data, "digits").accuracy > 0.93


# ------------------------------------------------------------------------------------------------------ without labels
def test_an_untrained_judge_orders_noise_blur_and_repeats(digits):
    judge, rng = RandomExtractor((1, 8, 8)), torch.Generator().manual_seed(0)
    half = len(digits.x_train) // 2
    real, x, y = features_of(judge, [digits.x_train[:half]]), digits.x_train[half:][:half], digits.y_train[half:][:half]

    def distance(fake):
        return fid(real, features_of(judge, [fake]))["fid"]

    def noisy(std):
        return (x + torch.randn(x.shape, generator=rng) * 255 * std).round().clamp(0, 255).to(torch.uint8)

    def blurred(times):
        soft = x.float()
        for _ in range(times):
            soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return soft.round().to(torch.uint8)

    def classes(k):
        kept = x[y < k]
        return kept.repeat(half // len(kept) + 1, 1, 1, 1)[:half]

    for changed in (noisy, blurred):
        found = [distance(x)] + [
            distance(changed(much)) for much in ((0.05, 0.1, 0.2) if changed is noisy else (1, 2, 3))
        ]
        assert found == sorted(found) and found[-1] > 3 * found[0]
    found = [distance(x[:k].repeat(half // k + 1, 1, 1, 1)[:half]) for k in (half, 200, 50, 10)]
    assert found == sorted(found) and found[-1] > 3 * found[0]
    assert distance(classes(6)) < distance(noisy(0.2))  # what it hardly sees, and says so
    assert judge.card()["extractor"] == "random-vgg" and judge.checksum == RandomExtractor((1, 8, 8)).checksum


@pytest.mark.parametrize(("kind", "asked"), [(Unlabelled, "classifier"), (Unlabelled, "random"), (Set, "random")])
def test_data_without_labels_have_fid_and_a_best_checkpoint(kind, asked, caplog):
    data = kind(batch_size=10, image_size=8, channels=1, limit_train=None)
    data._splits = {
        "train": data._load(False)["all"],
        "val": data._load(False)["all"],
        "test": data._load(False)["all"],
    }
    judge = Judge(("fid", "is", "kid", "pr"), extractor=asked, num_samples=60)
    scores = judge.validate(Sampler(lambda x: x), data)
    assert "val/fid/random-vgg" in scores and "val/precision/random-vgg" in scores
    assert not any(name.startswith("val/is") for name in scores)
    assert ("has no labels" in caplog.text) == (asked == "classifier")
    judge.final(Sampler(lambda x: x), data)
    assert any("hardly missing classes" in text for _, text in judge.lines())
    assert judge.found.cards["fid"]["n_fake"] == 60 and judge.found.cards["fid"]["extractor"] == "random-vgg"


# ------------------------------------------------------------------------------------------------------- what it tells
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers_are_not_judged(value, caplog):
    """They counted as black pictures, or as points at no distance."""

    def broken(x):
        x = x.clone()
        x[3, 0, 2, 2] = value
        return x

    data = Unlabelled(batch_size=10, image_size=8, channels=1)
    data._splits = dict.fromkeys(("train", "val", "test"), data._load(False)["all"])
    judge = Judge(["fid"], extractor="random", num_samples=60)
    assert judge.validate(Sampler(broken), data) == {}
    assert "1 of 60 samples of a batch are NaN or infinite" in caplog.text
    with pytest.raises(NotNumbers):
        Subject(Sampler(broken), data, "val", Settings(), lambda: None).fake(60)
    points = Ring(batch_size=10)
    noise = Sampler(lambda x: x.flatten(1)[:, :2] * value)
    assert Judge(["points"], num_samples=60).validate(noise, points) == {}
    fine = Judge(["points"], num_samples=60).validate(Sampler(lambda x: x.flatten(1)[:, :2]), points)
    assert fine["val/energy"] > 0


def stats(labels, classes=4, sure=6.0, seed=0):
    """Features and logits of images that a judge takes for these classes."""
    logits = F.one_hot(torch.as_tensor(labels), classes).float() * sure
    return Features.of(torch.rand(len(logits), 3, generator=torch.Generator().manual_seed(seed)), logits)


def test_a_class_that_no_real_image_has_is_not_the_rarest():
    real, fake = stats([0, 1, 2] * 20), stats([0] * 30 + [1] * 20 + [2] * 10)
    assert rarest_class(real, fake) == pytest.approx(1 / 6)
    assert rarest_class(stats([0, 1, 2, 3] * 20), fake) == 0


class Given:
    """A subject whose features are given."""

    split, brief, settings, seed = "test", False, Settings(), 2020

    def __init__(self, real, fake):
        self.real_features, self.fake_features = (lambda n: real), (lambda n: fake)
        self.notes, self.size = [], max(real.n, fake.n)

    def available(self):
        return self.size

    def note(self, text):
        self.notes.append(text)


def test_the_real_images_inception_score_is_of_equally_many():
    logits = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    many = Features.of(torch.rand(400, 3), logits, {"extractor": "features"})
    few = Features.of(torch.rand(60, 3), logits[:60], {"extractor": "features"})
    (scores,) = InceptionScore().take(Given(many, few))
    own = inception_score(many, n=60)
    assert scores["is_real/features"] == own["is"] and own["is"] < inception_score(many)["is"] - 0.05
    turned = Given(few, many)
    (other_way,) = InceptionScore().take(turned)
    assert "is/features" in other_way and "is_real/features" not in other_way  # there are not as many
    assert turned.notes == ["No Inception score of real images: there are 60 real, 400 generated images."]
    assert inception_score(many, n=400) == inception_score(many)


def test_a_judge_that_has_seen_the_training_set_says_so():
    card = {"extractor": "classifier-digits"}
    for value, told in ((8.5, True), (7.5, False)):
        beside = InceptionScore().beside("is/x", {"is/x": value, "is_real/x": 8.0}, card)
        assert (SEEN in beside) == told and beside[0] == "real 8"


def test_ten_percent_copies_are_seen():
    """The median of the distances does not move by them."""
    train, test, fresh = images(500, seed=1), images(200, seed=2), images(200, seed=3)
    fake = torch.cat([train[:20], fresh[:180]])
    scores = memorisation(fake, train, test)
    assert scores["nn_copies"] == pytest.approx(0.1) and scores["nn_copies_real"] == 0
    assert scores["nn_ratio"] == pytest.approx(1, abs=0.05)
    nearly = (train[:20].int() + 1).clamp(0, 255).to(torch.uint8)  # one grey value
    assert memorisation(nearly, train, test)["nn_copies"] == 1
    far = (train[:20].int() + torch.where(train[:20] > 127, -5, 5)).to(torch.uint8)
    assert memorisation(far, train, test)["nn_copies"] == 0
    points = torch.randn(50, 2), torch.randn(60, 2)
    assert nearest_neighbour_ratio(points[1][:10], points[1], points[0])["nn_copies"] == 1


# --------------------------------------------------------------------------------------------- images of any origin
def test_no_image_that_is_judged_has_taught_the_judge(learned, tmp_path, monkeypatch):
    import numpy as np

    from genlab.cli.evaluate import evaluate_images

    monkeypatch.chdir(tmp_path)
    x, y = images(100).permute(0, 2, 3, 1).numpy(), np.arange(100) % 2
    np.savez("real.npz", x=x, y=y)
    np.savez("fake.npz", x=images(50, seed=5).permute(0, 2, 3, 1).numpy())
    np.savez("train.npz", x=images(80, seed=6).permute(0, 2, 3, 1).numpy(), y=y[:80])
    options = {"real": "real.npz", "fake": "fake.npz", "scores": ["fid", "is", "nn"]}
    half = evaluate_images(options)
    taught = {bytes(image.numpy()) for image in learned["data"].x_train}
    rest = {bytes(image.tobytes()) for image in images(100).numpy()} - taught
    assert len(taught) == len(rest) == 50 and half["cards"]["fid"]["n_real"] == 50
    assert {bytes(image.numpy()) for image in learned["data"].x_test} == rest
    assert any("trained on 50 of the real images" in note for note in half["notes"])
    assert not learned["recipe"].flip
    apart = evaluate_images({**options, "train": "train.npz"})
    assert apart["cards"]["fid"]["n_real"] == 100 and len(learned["data"].x_train) == 64
    assert "nn_copies" in apart["scores"] and "is_real/classifier-train" in apart["scores"]
    np.savez("bare.npz", x=x)
    bare = evaluate_images({**options, "real": "bare.npz"})
    assert "fid/random-vgg" in bare["scores"] and any("untrained" in note for note in bare["notes"])
    with pytest.raises(UserError, match="20 real images or more that the classifier has not seen, got 15"):
        np.savez("few.npz", x=x[:30], y=y[:30])
        evaluate_images({**options, "real": "few.npz"})
    assert Path("outputs/scores").is_dir()
