"""Whole numbers from uniform draws."""

import pytest
import torch

from genlab.randomness import whole_below


def test_each_number_takes_an_equal_share():
    u = (torch.arange(700, dtype=torch.float64) + 0.5) / 700
    assert torch.bincount(whole_below(u, 7)).tolist() == [100] * 7


@pytest.mark.parametrize("u", [1 - 2**-24, 1.0])
@pytest.mark.parametrize("n", [1, 3, 10, 1000])
def test_the_largest_draws_stay_below(u, n):
    """The largest below 1, and 1 itself, which a normal's distribution function reaches."""
    assert whole_below(torch.tensor([0.0, u]), n).tolist() == [0, n - 1]
