"""Maps put into boxes and cut out of pictures."""

import pytest
import torch
from torch.testing import assert_close

from genlab.networks.places import crop, inside, place


def boxes(*values):
    return torch.tensor(values, dtype=torch.float64)


def maps(n, seed=0):
    return torch.randn(n, 3, 12, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WHOLE = [0.0, 0, 0, 1, 1]
PART = [2.0, 0.25, 0.5, 0.5, 0.25]
NONE = [-1.0, 0, 0, 0, 0]


def test_the_whole_picture_as_a_box_changes_nothing():
    x = maps(2)
    whole = boxes(WHOLE, WHOLE)
    assert_close(place(x, whole), x, rtol=0, atol=1e-12)
    assert_close(crop(x, whole), x, rtol=0, atol=1e-12)
    assert_close(place(crop(x, whole), whole), x, rtol=0, atol=1e-12)


def test_cells_are_inside_by_their_middles():
    found = inside(boxes(PART, NONE, [0, 0.99, 0.99, 0.01, 0.01]), 12, 8)
    expected = torch.zeros(12, 8, dtype=torch.float64)
    expected[6:9, 2:6] = 1
    assert torch.equal(found[0], expected)
    assert found[1:].sum() == 0


@pytest.mark.parametrize("box", [PART, [0, 0.1, 0.3, 0.33, 0.47], [1, 0.6, 0, 0.4, 1], NONE])
def test_nothing_is_placed_outside(box):
    """Exactly 0 there, and a constant keeps its value inside."""
    box = boxes(box)
    within = inside(box, 12, 8).unsqueeze(1)
    placed = place(maps(1), box)
    assert (placed * (1 - within) == 0).all()
    assert_close(place(torch.full_like(placed, 1.7), box), 1.7 * within.expand_as(placed))
    if box[0, 0] >= 0:
        assert (placed.abs() > 0)[within.expand_as(placed) > 0].all()


def test_a_crop_of_a_constant_map_is_constant():
    x = torch.full((1, 2, 6, 6), -0.3, dtype=torch.float64)
    for box in (PART, WHOLE, [0, 0.9, 0.9, 0.1, 0.1], NONE):
        assert_close(crop(x, boxes(box)), x)


def test_where_things_come_to_lie():
    """A ramp from left to right, and one from top to bottom, at the places in the box that they name."""
    across = ((torch.arange(8, dtype=torch.float64) + 0.5) / 8).expand(1, 1, 12, 8)
    box = boxes([0, 0.25, 0.25, 0.5, 0.75])
    assert_close(place(across, box)[0, 0, 6, 2:6], torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64))
    assert_close(crop(across, box)[0, 0, 0], 0.25 + 0.5 * across[0, 0, 0])
    down = ((torch.arange(12, dtype=torch.float64) + 0.5) / 12)[:, None].expand(1, 1, 12, 8)
    assert_close(crop(down, box)[0, 0, :, 0], (0.25 + 0.75 * down[0, 0, :, 0]).clamp_max(11.5 / 12))


def test_what_is_placed_is_cut_out_again():
    """Smooth maps in boxes of at least half of the picture, but for the outermost cells."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 16).double(), torch.linspace(0, 1, 16).double(), indexing="ij")
    smooth = torch.sin(2 * x + y).expand(2, 1, 16, 16)
    box = boxes([0, 0.25, 0.25, 0.5, 0.5], [0, 0, 0.25, 0.75, 0.5])
    back = crop(place(smooth, box), box)
    assert (back - smooth).abs()[:, :, 2:-2, 2:-2].max() < 0.05


def test_gradients_reach_the_maps_alone_inside():
    x = maps(1).requires_grad_(True)
    place(x, boxes(PART)).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda v: place(v, boxes(PART)), maps(1)[:, :1].requires_grad_(True))
