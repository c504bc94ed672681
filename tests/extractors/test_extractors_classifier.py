"""The judge that genlab trains itself, and its cache."""

import logging
import warnings

import pytest
import torch

from genlab.errors import UserError
from genlab.extractors import classifier
from genlab.extractors.classifier import (
    ClassifierData,
    ClassifierExtractor,
    Recipe,
    epochs_for,
    load_classifier,
    load_or_train,
    random_shift,
    save_classifier,
    train_classifier,
)
from genlab.metrics.features import features_of
from genlab.metrics.images import fid, inception_score, kid


@pytest.fixture(scope="module")
def judge(digits):
    return train_classifier(digits, "digits")


def small(digits, classes=10):
    return ClassifierData(digits.x_train[:200], digits.y_train[:200], digits.x_test, digits.y_test, classes)


QUICK = Recipe(epochs=1)


def test_it_learns_the_digits(judge):
    assert judge.accuracy >= 0.97
    assert judge.card()["test_accuracy"] == judge.accuracy and judge.card()["extractor"] == "classifier-digits"


def test_scores_tell_digits_from_noise_and_collapse(judge, digits):
    """The order that any honest judge gives: other digits, then one digit repeated, then noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (360, 1, 8, 8), dtype=torch.uint8, generator=generator)
    sevens = digits.x_train[digits.y_train == 7].repeat(3, 1, 1, 1)[:360]
    real = features_of(judge, [digits.x_test])
    fakes = [features_of(judge, [x]) for x in (digits.x_train[:360], sevens, noise)]
    good, one, bad = (fid(real, fake) | inception_score(fake) | kid(real, fake) for fake in fakes)
    assert good["fid"] < 0.1 * one["fid"] and good["fid"] < 0.1 * bad["fid"]
    assert good["kid"] < 0.1 * one["kid"] and good["kid"] < 0.1 * bad["kid"]
    assert good["is"] > 8 and one["is"] < 1.5


def test_training_is_repeatable_and_alone_with_its_random_numbers(digits, rng_untouched):
    data = small(digits)
    first = train_classifier(data, "digits", recipe=QUICK)
    torch.rand(3, generator=torch.Generator())  # not the global stream either
    again = train_classifier(data, "digits", recipe=QUICK)
    other = train_classifier(data, "digits", recipe=QUICK, seed=1)
    assert first.checksum == again.checksum != other.checksum


def test_training_inside_inference_mode_autocast_and_no_grad(digits):
    """Where a callback calls it from: a validation loop in mixed precision."""
    data = small(digits)
    expected = train_classifier(data, "digits", recipe=QUICK).checksum
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert train_classifier(data, "digits", recipe=QUICK).checksum == expected


def test_it_is_frozen_whatever_is_asked(judge, digits):
    x = digits.x_test[:50]
    before = judge(x)
    judge.train()
    assert not any(module.training for module in judge.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = judge(x)
    assert features.dtype == logits.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close((features, logits), before, rtol=0, atol=0)
    assert features.shape == (50, judge.num_features) and logits.shape == (50, judge.num_classes)
    torch.testing.assert_close(judge(x[:7])[0], features[:7], rtol=1e-5, atol=1e-5)  # no image sees its neighbours


def test_other_images_are_refused(judge):
    with pytest.raises(ValueError, match="uint8 images of shape"):
        judge(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="uint8 images of shape"):
        judge(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 13), (1, 28, 28), (3, 32, 32), (3, 96, 200)])
def test_every_size_fits(shape, rng_untouched):
    extractor = ClassifierExtractor("any", shape, 5)
    features, logits = extractor(torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator()))
    assert features.shape == (3, extractor.num_features) and logits.shape == (3, 5)
    assert features.std(dim=0).mean() > 0


def test_no_labels_too_small_images_and_impossible_labels(digits):
    data = small(digits)
    unlabelled = ClassifierData(data.x_train, torch.full((200,), -1), data.x_test, data.y_test, 10)
    with pytest.raises(UserError, match="have no labels.*metrics.extractor=random.*metrics=none"):
        train_classifier(unlabelled, "digits")
    with pytest.raises(UserError, match="4x4"):
        ClassifierExtractor("tiny", (1, 3, 8), 10)
    with pytest.raises(UserError, match="Label 9 is out of range for data.num_classes=9"):
        train_classifier(small(digits, classes=9), "digits")


def test_images_without_label_are_left_out(digits):
    data = small(digits)
    extra = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    more = ClassifierData(
        torch.cat([extra, data.x_train]),
        torch.cat([torch.full((20,), -1), data.y_train]),
        data.x_test,
        data.y_test,
        10,
    )
    trained = [train_classifier(each, "digits", recipe=QUICK).checksum for each in (data, more)]
    assert trained[0] == trained[1]


def test_fewer_images_are_seen_more_often():
    assert epochs_for(100) == 60 and epochs_for(1437) == 27 and epochs_for(50_000) == 12


def test_shifts_move_whole_images_and_repeat_their_edge():
    x = torch.arange(2 * 3 * 5 * 6, dtype=torch.uint8).view(2, 3, 5, 6).repeat(50, 1, 1, 1)
    moved = random_shift(x, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x.float(), (1, 1, 1, 1), mode="replicate")
    places = [(i, j) for i in range(3) for j in range(3)]
    views = torch.stack([padded[:, :, i : i + 5, j : j + 6] for i, j in places])
    matches = (views == moved.float()).flatten(2).all(dim=2)
    assert (matches.sum(dim=0) == 1).all() and matches.any(dim=1).all()  # one shift each, and all of them occur


# -------------------------------------------------------------------------------------------------------------- cache
def test_a_cached_judge_is_not_trained_again(digits, tmp_path, monkeypatch, rng_untouched):
    def load(**changes):
        arguments = {"cache_dir": tmp_path, "recipe": QUICK} | changes
        return load_or_train("digits", "digits-8x8", lambda: small(digits), **arguments)

    first = load()
    monkeypatch.setattr(classifier, "train_classifier", lambda *_, **__: pytest.fail("trained again"))
    again = load_or_train("digits", "digits-8x8", lambda: pytest.fail("read data"), cache_dir=tmp_path, recipe=QUICK)
    assert again.card() == first.card()
    x = digits.x_test[:20]
    torch.testing.assert_close(again(x), first(x), rtol=0, atol=0)
    for change in ({"seed": 1}, {"recipe": Recipe(epochs=2)}, {"cache_dir": tmp_path / "elsewhere"}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            load(**change)


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "weights", "format"])
def test_a_damaged_file_is_trained_anew(digits, tmp_path, caplog, damage):
    def load():
        return load_or_train("digits", "key", small(digits), cache_dir=tmp_path, recipe=QUICK)

    first = load()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "overwritten":
        path.write_bytes(b"not a torch file")
    else:
        record = torch.load(path, weights_only=True)
        if damage == "weights":
            record["state"]["head.bias"][0] += 1
        else:
            record["format"] = -1
        torch.save(record, path)
    with pytest.raises(ValueError, match="damaged|not a readable"):
        load_classifier(path)
    with caplog.at_level(logging.WARNING, logger="genlab"):
        again = load()
    assert "training it again" in caplog.text
    assert again.checksum == first.checksum == load_classifier(path).checksum


def test_the_file_executes_nothing(judge, tmp_path):
    path = save_classifier(judge, tmp_path / "judge.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.load(path, weights_only=True)["name"] == "digits"

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    torch.save({"format": 1, "state": Evil()}, path)
    with pytest.raises(ValueError, match="not a readable"):
        load_classifier(path)
    assert not (tmp_path / "owned").exists()


def test_the_cache_folder_is_the_users(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    load_or_train("digits", "a/b c", small(digits), recipe=QUICK)
    (path,) = (tmp_path / "classifiers").iterdir()
    assert path.name.startswith("digits-a_b_c-") and path.suffix == ".pt"


def test_a_cache_that_cannot_be_written_costs_no_scores(digits, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.touch()
    extractor = load_or_train("digits", "key", small(digits), cache_dir=blocked / "folder", recipe=QUICK)
    assert extractor.accuracy > 0 and "could not be cached" in caplog.text
