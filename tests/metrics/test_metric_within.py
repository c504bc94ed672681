"""Scores within classes, against shifts, swaps and shrinkings of which the answer is known."""

import math

import pytest
import torch

from genlab.errors import UserError
from genlab.metrics.features import Features
from genlab.metrics.images import fid
from genlab.metrics.within import class_sizes, fid_within, spread_within

pytestmark = pytest.mark.usefixtures("rng_untouched")
Y = torch.arange(3).repeat_interleave(50)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fid_within_is_the_mean_of_shifts():
    """Each class moved by its own vector: equal covariances, so that its FID is the squared length."""
    x, shift = draw(150, 4), torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    found = fid_within(Features.of(x), Features.of(x + shift[Y]), Y, Y)
    assert found["fid_within"] == pytest.approx(5 / 3, rel=1e-5)
    assert {key: found.card[key] for key in ("classes", "rarest_class", "n_fake")} == {
        "classes": 3,
        "rarest_class": 50,
        "n_fake": 150,
    }


def test_classes_in_each_others_place_are_seen_within_them_alone():
    """All samples together are the real ones; a class is not."""
    centre = torch.tensor([[0.0, 0], [5, 0], [0, 5]])
    x = draw(150, 2) + centre[Y]
    real, turned = Features.of(x), (Y + 1) % 3
    assert fid(real, real)["fid"] == pytest.approx(0, abs=1e-6)
    assert fid_within(real, real, Y, Y)["fid_within"] == pytest.approx(0, abs=1e-6)
    assert fid_within(real, real, Y, turned)["fid_within"] > 25


def test_unknown_labels_and_few_images():
    y = Y.clone()
    y[:5] = -1
    assert class_sizes(y, Y) == ([0, 1, 2], 45)
    x = Features.of(draw(150, 2))
    assert fid_within(x, x, y, Y).card["rarest_class"] == 45
    with pytest.raises(UserError, match="FID needs 20 images or more, got 19"):
        fid_within(x, x, Y, torch.where(torch.arange(150) < 31, 1, Y))
    with pytest.raises(ValueError, match="two images of each class, got 1"):
        spread_within(x.features, x.features, Y, torch.where(torch.arange(150) < 49, 1, Y))


def test_the_spread_is_relative_to_that_of_real_images():
    """Classes shrunk to a half, not at all and to a point."""
    x, scale = draw(150, 1, 2, 2), torch.tensor([0.5, 1.0, 0.0])
    found = spread_within(x, 7 + scale[Y].view(-1, 1, 1, 1) * x, Y, Y)
    assert found["spread_within"] == pytest.approx(0.5) and found["spread_within_least"] == pytest.approx(0, abs=1e-6)
    assert spread_within(x, x, Y, Y) == pytest.approx({"spread_within": 1, "spread_within_least": 1})
    pixels = (255 * torch.rand(150, 1, 2, 2, generator=torch.Generator().manual_seed(0))).byte()
    assert spread_within(pixels, pixels, Y, Y)["spread_within"] == pytest.approx(1)


def test_a_spread_by_hand():
    """{0, 1, 2}: pairs 1, 1, 2. {0, 3}: one pair. Against {0, 1} and {0, 2}."""
    real, of_real = torch.tensor([0.0, 1, 0, 2])[:, None], torch.tensor([0, 0, 1, 1])
    fake, of_fake = torch.tensor([0.0, 1, 2, 0, 3])[:, None], torch.tensor([0, 0, 0, 1, 1])
    found = spread_within(real, fake, of_real, of_fake)
    assert found == pytest.approx({"spread_within": (4 / 3 + 1.5) / 2, "spread_within_least": 4 / 3})
    assert math.isnan(spread_within(torch.zeros(4, 1), fake, of_real, of_fake)["spread_within"])
