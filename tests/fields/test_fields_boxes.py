"""Boxes: typed and said, mirrored, drawn."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.boxes import Boxes
from genlab.fields.drawing import CANVAS, COLOURS

FIELD = Boxes((3, 5), size=2, names=("ellipse", "red square"), most=3)
NONE = [-1.0, 0.0, 0.0, 0.0, 0.0]


def test_typed_boxes_are_filled_up():
    typed = FIELD.parse("[[ellipse, 0.1, 0.2, 0.3, 0.4], [1, .5, 0, 0.25, 1e-1]]", 2)
    assert_close(typed[0], torch.tensor([[0, 0.1, 0.2, 0.3, 0.4], [1, 0.5, 0, 0.25, 0.1], NONE]))
    assert_close(typed[1], typed[0], rtol=0, atol=0)
    assert FIELD.parse("[]", 1).tolist() == [[NONE] * 3]
    FIELD.parse("[[0, 0.667, 0.001, 0.3335, 0.9991]]", 1)  # typed shares are rounded


def test_several_values_share_the_rows():
    typed = FIELD.parse("[[red square,0,0,1,1]];[]", 4)
    assert typed[:, 0, 0].tolist() == [1, 1, -1, -1]


def test_texts_can_be_typed():
    text = "[[red square, 0.1, 0.2, 0.3, 0.4], [ellipse, 0, 0, 1, 0.125]]"
    assert FIELD.text(FIELD.parse(f"{text};[]", 2)) == [text, "[]"]
    numbers = Boxes((1, 5), size=3)
    assert numbers.text(numbers.parse("[[2, 0, 0, 1, 1]]", 1)) == ["[[2, 0, 0, 1, 1]]"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[circle, 0, 0, 1, 1]]", r"^'circle' is no class; they are 0 to 1 \(ellipse, red square\)$"),
        ("[[2, 0, 0, 1, 1]]", "^'2' is no class; they are 0 to 1"),
        ("[[-1, 0, 0, 1, 1]]", "^'-1' is no class"),
        ("[[[0], 0, 0, 1, 1]]", "is no class"),
        ("[[0, 0, 0, 1.5, 1]]", "^width must be a number from 0 to 1, got 1.5$"),
        ("[[0, 0.8, 0, 0.5, 1]]", r"^a box lies within the picture, so left \+ width is at most 1, got 1.3$"),
        ("[[0, 0, 0.5, 1, 0.75]]", r"^a box lies within the picture, so top \+ height is at most 1, got 1.25$"),
        ("[[0, 0, high, 1, 1]]", "^top must be a number from 0 to 1, got high$"),
        ("[[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]", "^there are at most 3 boxes, got 4$"),
        ("[0, 0, 0, 1, 1]", "is no list of boxes; write it as .*class, left, top, width, height$"),
        ("[[0, 0, 0, 1]]", "is no list of boxes"),
        ("{ellipse: 1}", "is no list of boxes"),
        ("ellipse", "^'ellipse' cannot be read; write it as "),
        ("[[ellipse", "cannot be read; write it as "),
    ],
)
def test_wrong_boxes_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        FIELD.parse(text, 1)


def test_classes_of_unknown_number_are_counted_upwards():
    field = Boxes((1, 5))
    assert field.parse("[[7, 0, 0, 1, 1]]", 1)[0, 0, 0] == 7
    with pytest.raises(UserError, match="^'x' is no class; they are 0 upwards$"):
        field.parse("[[x, 0, 0, 1, 1]]", 1)
    assert bool((field.cells(torch.tensor([[[7.0, 0, 0, 1, 1]]])) < 255).any())


def test_mirroring_moves_the_left_edge():
    values = FIELD.parse("[[0, 0.125, 0.25, 0.5, 0.75]]", 1)
    mirrored = FIELD.mirror(values)
    assert mirrored[0].tolist() == [[0, 0.375, 0.25, 0.5, 0.75], NONE, NONE]
    assert_close(FIELD.mirror(mirrored), values, rtol=0, atol=0)
    right = FIELD.cells(mirrored)[0]
    left = FIELD.cells(values)[0]
    edges = [cell[:, 96].ne(255).any(dim=0).nonzero().flatten() for cell in (left, right)]  # a row with sides only
    assert_close(edges[0], (CANVAS - 1 - edges[1]).flip(0))


def test_an_outline_has_the_colour_of_its_class():
    """A box from pixel 32 to 95 across and from 16 to 47 down, two pixels thick."""
    cell = FIELD.cells(torch.tensor([[[1, 0.25, 0.125, 0.5, 0.25], NONE, NONE]]))[0]
    assert cell.shape == (3, CANVAS, CANVAS)
    colour = torch.tensor(COLOURS[1])
    for row, column in [(16, 32), (17, 60), (47, 95), (46, 33), (30, 32), (30, 95), (16, 95)]:
        assert_close(cell[:, row, column].long(), colour)
    ink = cell.ne(255).any(dim=0)
    assert not ink[15].any() and not ink[48].any() and not ink[:, 31].any() and not ink[:, 96].any()
    inside = ink[18:46, 34:94]
    assert bool(inside.any()) and not bool(inside[15:].any())  # the name, at the top


def test_a_name_without_room_is_left_out():
    cell = FIELD.cells(torch.tensor([[[0, 0.25, 0.25, 0.125, 0.125], NONE, NONE]]))[0]  # pixels 32 to 47
    assert not bool(cell[:, 34:46, 34:46].ne(255).any())
    assert int(cell.ne(255).any(dim=0).sum()) == 16 * 16 - 12 * 12


def test_no_box_leaves_white():
    assert bool((FIELD.cells(torch.tensor([[NONE] * 3])) == 255).all())


def test_random_boxes_lie_in_the_picture():
    values = FIELD.random(300, torch.Generator().manual_seed(0))
    kind, left, top, width, height = values.unbind(-1)
    assert set(kind.unique().tolist()) == {-1, 0, 1}
    assert set((kind >= 0).sum(1).tolist()) == {1, 2, 3}
    assert bool(((left + width <= 1) & (top + height <= 1) & (values[..., 1:] >= 0).all(-1)).all())
    assert values[kind < 0].unique(dim=0).tolist() == [NONE]


def test_what_may_be_stored():
    FIELD.check_stored(torch.zeros(2, 3, 5))
    for wrong, came in [(torch.zeros(2, 4, 5), r"float32 \[2, 4, 5\]"), (torch.zeros(2, 3, 5).double(), "float64")]:
        with pytest.raises(ValueError, match=rf"Boxes must be float32 \[N, 3, 5\], got torch.{came}"):
            FIELD.check_stored(wrong)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"shape": (3, 4)}, r"Boxes have the shape \[K, 5\], got \[3, 4\]"),
        ({"shape": (None, 5)}, r"Boxes have the shape \[K, 5\], got \[None, 5\]"),
        ({"shape": (3, 5), "most": 4}, r"Boxes of shape \[3, 5\] are at most 3, got most=4"),
        ({"shape": (3, 5), "size": 3, "names": ("a",)}, "3 classes of boxes need as many names, got 1"),
    ],
)
def test_wrong_facts_are_refused(facts, sentence):
    with pytest.raises(UserError, match=sentence):
        Boxes(**facts)
