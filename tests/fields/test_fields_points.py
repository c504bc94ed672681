"""Points: typed and said, scatter plots."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.points import Points

FIELD = Points((2,))


@pytest.mark.parametrize("text", ["0.5,-1;2,0", "[0.5, -1; 2, 0]"])
def test_typed_points(text):
    assert FIELD.parse(text, 4).tolist() == [[0.5, -1], [0.5, -1], [2, 0], [2, 0]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b", "^'a,b' is no list of 2 numbers, such as 0.5,0.5$"),
        ("1,2;3", "^'1,2;3' is no list of 2 numbers"),
        ("1,2,3", "^a point has 2 numbers, got 3$"),
    ],
)
def test_wrong_points_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        FIELD.parse(text, 1)


def test_texts_can_be_typed():
    values = torch.tensor([[0.125, -3.0], [1e-5, 2.5]])
    assert FIELD.text(values) == ["0.125, -3", "1e-05, 2.5"]
    assert_close(FIELD.parse(";".join(FIELD.text(values)), 2), values)


def test_points_are_stored_as_they_are():
    values = torch.randn(3, 2)
    FIELD.check_stored(values)
    assert FIELD.normalise(values) is values
    for wrong, came in [(values.double(), r"float64 \[3, 2\]"), (values[0], r"float32 \[2\]")]:
        with pytest.raises(ValueError, match=rf"Points must be float32 \[N, D\], got torch.{came}"):
            FIELD.check_stored(wrong)


def many(*point: float) -> torch.Tensor:
    """A point fifty times: a single one is pale."""
    return torch.tensor([point]).repeat(50, 1)


def red(picture: np.ndarray) -> np.ndarray:
    """Rows and columns [R, 2] of pixels in the colour of generated points."""
    r, g, b = (picture[..., i].astype(int) for i in range(3))
    return np.argwhere((r > g + 60) & (r > b + 60))


def test_a_sheet_shows_samples_over_the_real_ones():
    """The window is that of the real points; a sample in their upper right corner is there in the picture."""
    real = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    picture = FIELD.sheet(many(0.9, 0.9), real)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    rows, columns = red(picture).T
    height, width = picture.shape[:2]
    assert len(rows) > 0 and rows.max() < height / 2 and columns.min() > width / 2
    assert len(red(FIELD.sheet(many(9.0, 9.0), real))) == 0  # beyond the window


def test_many_dimensions_are_projected_onto_the_two_widest():
    """Real points vary in the last two dimensions; a sample far off in the first is not far off in the picture."""
    real = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1.0, 2.0])
    assert len(red(Points((3,)).sheet(many(50.0, 0, 0), real))) > 0
    assert len(red(Points((3,)).sheet(many(0.0, 0, 50), real))) == 0


def test_random_points_lie_in_the_square():
    drawn = FIELD.random(300, torch.Generator().manual_seed(0))
    assert_close(torch.stack([drawn.min(), drawn.max()]), torch.tensor([-1.0, 1.0]), rtol=0, atol=0.05)
