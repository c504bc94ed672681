"""MS-SSIM diversity, memorisation, mode coverage: all against answers known beforehand."""

import math

import pytest
import torch

from genlab.errors import UserError
from genlab.metrics.diversity import (
    _pairs,
    diversity_ratio,
    ms_ssim_diversity,
    ms_ssim_settings,
    nearest_neighbour_ratio,
)
from genlab.metrics.toy import energy_distance, high_quality_ceiling, mode_coverage

pytestmark = pytest.mark.usefixtures("rng_untouched")


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ MS-SSIM
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 5, 9), (3, 64, 48)])
def test_identical_images_have_no_diversity(shape):
    x = noise(1, *shape).expand(10, *shape)
    assert ms_ssim_diversity(x, pairs=20)["ms_ssim_diversity"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("side", [32, 64, 176])
def test_independent_noise_is_diverse(side):
    """Not quite 1 at five scales: averaged 16-fold, all noise is the same grey."""
    assert ms_ssim_diversity(noise(12, 1, side, side), pairs=30)["ms_ssim_diversity"] > 0.9


def test_collapse_lowers_diversity(digits):
    everything = ms_ssim_diversity(digits.x_test, pairs=500)
    collapsed = ms_ssim_diversity(digits.x_test[:4].repeat(50, 1, 1, 1), pairs=500)
    assert collapsed["ms_ssim_diversity"] < 0.85 * everything["ms_ssim_diversity"]


def test_pairs_within_classes_are_less_diverse(digits):
    across, within = (ms_ssim_diversity(digits.x_test, 500, labels=labels) for labels in (None, digits.y_test))
    assert within["ms_ssim_diversity"] < 0.9 * across["ms_ssim_diversity"]
    assert within.card["ms_ssim_within_class"] and not across.card["ms_ssim_within_class"]


def test_diversity_is_seeded_and_stated(digits):
    one, again, other = (ms_ssim_diversity(digits.x_test, 50, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one.card == {
        "ms_ssim_scales": 2,
        "ms_ssim_window": 3,
        "ms_ssim_sigma": pytest.approx(1.5 * 3 / 11),
        "ms_ssim_pairs": 50,
        "ms_ssim_seed": 1,
        "ms_ssim_within_class": False,
        "n_fake": 360,
    }


def test_the_published_settings_where_images_are_large_enough():
    assert ms_ssim_settings(256, 176) == {"ms_ssim_scales": 5, "ms_ssim_window": 11, "ms_ssim_sigma": 1.5}


def test_every_size_has_settings_that_torchmetrics_takes():
    for side in (*range(3, 40), 63, 64, 65, 96, 128, 175):
        settings = ms_ssim_settings(side, side)
        assert settings["ms_ssim_window"] % 2 == 1 and settings["ms_ssim_window"] >= 3
        value = ms_ssim_diversity(noise(3, 1, side, side), pairs=2)["ms_ssim_diversity"]
        assert 0 < value <= 1


def test_pairs_are_two_different_images_of_a_class_and_reach_them_all():
    labels = torch.tensor([2, 0, 0, 5, 2, 2, 0])  # class 5 has nobody to be compared with
    first, second = _pairs(7, 4000, torch.Generator().manual_seed(0), labels)
    assert (first != second).all() and (labels[first] == labels[second]).all()
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {
        (i, j) for i in range(7) for j in range(7) if i != j and labels[i] == labels[j]
    }
    with pytest.raises(UserError, match="two images"):
        _pairs(3, 5, torch.Generator(), torch.arange(3))


# -------------------------------------------------------------------------------------------------------- memorisation
def test_planted_copies_are_found():
    train, test = noise(300, 3, 8, 8, seed=1), noise(100, 3, 8, 8, seed=2)
    copies = nearest_neighbour_ratio(train[40:90], train, test)
    assert copies["nn_ratio"] < 1e-6 and copies["nn_samples"] < 1e-4
    fresh = nearest_neighbour_ratio(noise(100, 3, 8, 8, seed=3), train, test)
    assert fresh["nn_ratio"] == pytest.approx(1, abs=0.03)
    assert fresh.card == {"n_fake": 100, "n_train": 300, "n_test": 100, "nn_copy": 0.0}


def test_nearest_neighbour_distances_by_hand():
    train = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    values = nearest_neighbour_ratio(torch.tensor([[0.0, 1.0]]), train, torch.tensor([[10.0, 4.0]]))
    assert values == pytest.approx(
        {"nn_ratio": 0.25, "nn_samples": 1, "nn_test": 4, "nn_copies": 0, "nn_copies_real": 0}
    )
    near = nearest_neighbour_ratio(torch.tensor([[0.0, 1.0], [5.0, 0.0]]), train, train, copy=2.0)
    assert near["nn_copies"] == 0.5 and near["nn_copies_real"] == 1
    assert math.isnan(nearest_neighbour_ratio(train, train, train)["nn_ratio"])


def test_diversity_ratio_scales_with_the_samples():
    x = noise(60, 1, 4, 4).float()
    assert diversity_ratio(0.25 * x + 7, x)["diversity_ratio"] == pytest.approx(0.25)
    assert diversity_ratio(x[:1].repeat(9, 1, 1, 1), x)["diversity_ratio"] == pytest.approx(0, abs=1e-7)


# ------------------------------------------------------------------------------------------------------- mode coverage
def ring(modes=8, radius=2.0):
    angle = torch.arange(modes, dtype=torch.float64) * 2 * math.pi / modes
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def test_mode_coverage_of_constructed_points():
    """Two good points at mode 0, one at mode 3, one just outside mode 5's 3 std, one nowhere."""
    centres, std = ring(), 0.02
    offsets = torch.tensor([[0, 0], [0.059, 0], [0, -0.059], [0.061, 0]], dtype=torch.float64)
    x = torch.cat([centres[[0, 0, 3, 5]] + offsets, torch.zeros(1, 2)])
    values = mode_coverage(x, centres, std)
    assert values["modes"] == 2 and values["hq"] == pytest.approx(3 / 5)
    expected = 2 / 3 * math.log(2 / 3 * 8) + 1 / 3 * math.log(1 / 3 * 8)
    assert values["kl_modes"] == pytest.approx(expected)
    assert values.card["num_modes"] == 8 and values.card["n_fake"] == 5


def test_a_perfect_ring_sampler_meets_the_ceiling():
    generator = torch.Generator().manual_seed(0)
    mode = torch.randint(8, (200_000,), generator=generator)
    x = ring()[mode] + 0.02 * torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    values = mode_coverage(x.float(), ring(), 0.02)
    assert values["hq"] == pytest.approx(0.98889, abs=1e-3)  # standard error 2.3e-4
    assert values["modes"] == 8 and values["kl_modes"] < 1e-3
    assert values.card["hq_ceiling"] == pytest.approx(1 - math.exp(-4.5))


def test_ceilings_follow_the_chi_distribution():
    assert high_quality_ceiling(1, 1.0) == pytest.approx(math.erf(1 / math.sqrt(2)))
    assert high_quality_ceiling(2, 3.0) == pytest.approx(1 - math.exp(-4.5))


def test_collapse_even_cover_and_no_good_sample():
    one = mode_coverage(ring()[:1].repeat(50, 1), ring(), 0.02)
    assert one == pytest.approx({"modes": 1, "hq": 1, "kl_modes": math.log(8)})
    assert mode_coverage(ring().repeat(5, 1), ring(), 0.02) == pytest.approx({"modes": 8, "hq": 1, "kl_modes": 0})
    none = mode_coverage(torch.full((5, 2), math.nan), ring(), 0.02)
    assert none == pytest.approx({"modes": 0, "hq": 0, "kl_modes": math.log(8)})
    with pytest.raises(ValueError, match="centres"):
        mode_coverage(torch.zeros(5, 3), ring(), 0.02)


def test_energy_distance_by_hand_and_without_bias():
    """{0, 1} against {3, 5}: 2 * mean(3, 5, 2, 4) - 1 - 2 = 4."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    assert energy_distance(x, y)["energy"] == pytest.approx(4)
    generator = torch.Generator().manual_seed(0)
    values = [energy_distance(*torch.randn(2, 200, 2, generator=generator))["energy"] for _ in range(20)]
    assert min(values) < 0 < max(values) and abs(sum(values) / 20) < 0.01
