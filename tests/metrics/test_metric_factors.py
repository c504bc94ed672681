"""Correlations of latents and factors: closed forms, constants, what is spread over latents, what leaks."""

import pytest
import torch
from torch.testing import assert_close

from genlab.judging.measures.factors import Factors
from genlab.metrics.factors import correlations, explained, factor_scores

NAMES = ("a", "b")
SIGNS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)  # uncorrelated


def test_a_latent_that_is_the_factor_tells_all_and_nothing_else():
    codes = torch.stack([3 * SIGNS[:, 1] + 7, -SIGNS[:, 0], torch.ones(4).double()], dim=1)
    assert_close(correlations(codes, SIGNS), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).double())
    scores = factor_scores(codes, SIGNS, NAMES, units=(1, 2))
    found = {name: round(value, 12) for name, value in scores.items()}
    assert found == {
        "factor_corr": 1, "factor_gap": 1, "factor_r2": 1, "factor_corr_a": 1, "factor_corr_b": 1,
        "factor_unit": 0.5, "factor_leak": 0,
    }  # fmt: skip
    assert scores.card == {"n_real": 4, "factors": ["a", "b"]}


def test_a_rotated_pair_of_latents_tells_half_and_explains_all():
    codes = torch.stack([SIGNS.sum(dim=1), SIGNS[:, 0] - SIGNS[:, 1]], dim=1)
    assert_close(correlations(codes, SIGNS), torch.full((2, 2), 0.5).double().sqrt())
    scores = factor_scores(codes, SIGNS, NAMES)
    assert scores["factor_corr"] == pytest.approx(0.5**0.5) and scores["factor_gap"] == pytest.approx(0, abs=1e-9)
    assert scores["factor_r2"] == pytest.approx(1)
    assert "factor_unit" not in scores
    assert explained(codes[:, :1], SIGNS).tolist() == pytest.approx([0.5, 0.5])
    assert factor_scores(codes, SIGNS, NAMES, units=(0, 1))["factor_leak"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, float("nan"), float("inf")])
def test_what_never_moves_or_is_no_number_tells_nothing(value):
    codes = torch.full((4, 3), value)
    scores = factor_scores(codes, SIGNS, NAMES, units=(0, 1))
    assert set(scores.values()) == {0.0}
    codes[:, 0] = SIGNS[:, 0].float()
    assert factor_scores(codes, SIGNS, NAMES)["factor_corr_a"] == pytest.approx(1)


def test_the_figures_are_numpys():
    rng = torch.Generator().manual_seed(0)
    factor = torch.rand(50, 3, generator=rng, dtype=torch.float64)
    codes = factor @ torch.randn(3, 7, generator=rng, dtype=torch.float64)  # of rank 3
    codes += 0.5 * torch.randn(50, 7, generator=rng, dtype=torch.float64)
    joint = torch.corrcoef(torch.cat([codes, factor], dim=1).T)[:7, 7:].abs()
    assert_close(correlations(codes, factor), joint)
    design = torch.cat([codes, torch.ones(50, 1).double()], dim=1)
    rest = factor - design @ torch.linalg.lstsq(design, factor).solution
    assert_close(explained(codes, factor), 1 - rest.var(dim=0) / factor.var(dim=0))
    doubled = torch.cat([codes, codes], dim=1)  # singular
    assert_close(explained(doubled, factor), explained(codes, factor))


def test_numbers_that_do_not_fit_are_refused():
    for codes, names in ((SIGNS[:1], NAMES), (SIGNS[:3], NAMES), (SIGNS, ("a",))):
        with pytest.raises(ValueError, match="factors of at least two samples"):
            factor_scores(codes, SIGNS[: len(codes) if len(codes) != 3 else 4], names)


def test_the_mean_stands_beside_the_value_of_each_factor():
    values = factor_scores(SIGNS, SIGNS, NAMES)
    assert Factors().beside("factor_corr", values, values.card) == ["a 1.00", "b 1.00"]
    assert Factors().beside("factor_gap", values, values.card) == []
