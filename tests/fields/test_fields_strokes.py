"""Sketches: pen states, drawings, svg files."""

import re
from xml.etree import ElementTree

import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Seq
from genlab.errors import UserError
from genlab.fields.drawing import CANVAS
from genlab.fields.sequences import together
from genlab.fields.strokes import MARGIN, Strokes, lines

FIELD = Strokes()
# An L of 10 down and 10 to the right, then the pen is lifted and goes up to a dot at the upper right corner.
STORED = torch.tensor([[5.0, 5, 0], [0, 10, 0], [10, 0, 1], [0, -10, 1]])
CORNERS = [[5, 5], [5, 15], [15, 15]]


def sketch(stored: torch.Tensor = STORED, end: bool = False) -> Seq:
    steps = FIELD.normalise(stored)
    if end:
        steps = torch.cat([steps, torch.tensor([[9.0, 9, 0, 0, 1]])])
    return together([steps])


def test_pen_states_of_ha_and_eck():
    assert FIELD.normalise(STORED).tolist() == [
        [5, 5, 1, 0, 0],
        [0, 10, 1, 0, 0],
        [10, 0, 0, 1, 0],
        [0, -10, 0, 1, 0],
    ]


def test_lines_end_where_the_pen_is_lifted():
    drawn = lines(FIELD.normalise(STORED))
    assert [line.tolist() for line in drawn] == [CORNERS, [[15, 5]]]
    assert lines(FIELD.normalise(STORED[:2]))[0].tolist() == CORNERS[:2]  # a pen that was never lifted


def test_nothing_is_drawn_from_the_end_on():
    """Not even steps that follow it: a model may leave them."""
    ended = torch.cat([sketch(end=True).values[0], FIELD.normalise(STORED)])
    assert [line.tolist() for line in lines(ended)] == [CORNERS, [[15, 5]]]
    assert lines(torch.tensor([[1.0, 1, 0, 0, 1]])) == []
    assert_close(FIELD.cells(sketch(end=True)), FIELD.cells(sketch()), rtol=0, atol=0)


def test_mirroring_stored_and_normalised():
    mirrored = FIELD.mirror(STORED)
    assert mirrored.tolist() == [[-5, 5, 0], [0, 10, 0], [-10, 0, 1], [0, -10, 1]]
    assert_close(FIELD.normalise(mirrored), FIELD.mirror(FIELD.normalise(STORED)), rtol=0, atol=0)
    assert_close(FIELD.mirror(mirrored), STORED, rtol=0, atol=0)


def test_a_drawing_fills_its_cell():
    """The L from the upper left corner of the margin to its lower right; the dot at the upper right."""
    ink = FIELD.cells(sketch())[0].ne(255).any(dim=0)
    low, high = MARGIN, CANVAS - 1 - MARGIN
    rows, columns = ink.nonzero().unbind(1)
    found = torch.stack([rows.min(), rows.max(), columns.min(), columns.max()])
    assert_close(found, torch.tensor([low, high, low, high]), rtol=0, atol=1)  # a line is two pixels wide
    assert ink[low + 5 : high - 5, low - 1 : low + 2].any(dim=1).all()
    assert ink[high - 1 : high + 2, low + 5 : high - 5].any(dim=0).all()
    assert ink[low - 1 : low + 2, high - 1 : high + 2].any()
    assert not ink[low + 3 : high - 3, low + 3 :].any()  # from corner to dot the pen was lifted


def test_a_drawing_is_centred():
    """A line ten times as wide as high lies in the middle, whatever its place."""
    far = torch.tensor([[1000.0, -500, 0], [100, 0, 1]])
    rows, columns = FIELD.cells(sketch(far))[0].ne(255).any(dim=0).nonzero().unbind(1)
    assert_close(rows.float().mean(), torch.tensor((CANVAS - 1) / 2), rtol=0, atol=0.51)
    assert_close(columns.float().mean(), torch.tensor((CANVAS - 1) / 2), rtol=0, atol=0.51)


def test_empty_and_dotted_cells():
    empty = Seq(torch.zeros(1, 2, 5), torch.tensor([0]))
    assert bool((FIELD.cells(empty) == 255).all())
    dot = FIELD.cells(sketch(torch.tensor([[3.0, 4, 1]])))[0].ne(255).any(dim=0)
    rows, columns = dot.nonzero().unbind(1)
    assert 1 <= len(rows) <= 9 and int((rows - 63).abs().max()) <= 2 and int((columns - 63).abs().max()) <= 2


def test_texts_count():
    assert FIELD.text(sketch(end=True)) == ["strokes: 2, places: 4"]


def test_svg_files_hold_the_lines(tmp_path):
    values = together([sketch().values[0], sketch(STORED[:2]).values[0]])
    folder = FIELD.write(values, tmp_path / "sketches")
    assert sorted(p.name for p in folder.iterdir()) == ["000000.svg", "000001.svg"]
    root = ElementTree.parse(folder / "000000.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    assert (left, top, width, height) == (4.5, 4.5, 11, 11)
    drawn = root[0].attrib["d"].split("M")[1:]
    places = [[list(map(float, place.split(","))) for place in re.split(" L| ", line.strip())] for line in drawn]
    assert places == [CORNERS, [[15, 5], [15, 5]]]  # a dot is a line of no length with round ends


def test_an_empty_sketch_is_an_empty_file(tmp_path):
    folder = FIELD.write(Seq(torch.zeros(1, 1, 5), torch.tensor([0])), tmp_path / "sketches")
    assert ElementTree.parse(folder / "000000.svg").getroot()[0].attrib["d"] == ""


def test_random_sketches_have_one_pen_state_a_step():
    values = FIELD.random(300, torch.Generator().manual_seed(0))
    pen = values.values[values.mask][:, 2:]
    assert pen.sum(1).unique().tolist() == [1] and pen.unique().tolist() == [0, 1]
    assert_close(pen.mean(0), torch.tensor([0.875, 0.125, 0]), rtol=0, atol=0.03)


def test_what_may_be_stored():
    FIELD.check_stored(STORED)
    for wrong, came in [(STORED[:, :2], r"float32 \[4, 2\]"), (STORED.to(torch.int16), r"int16 \[4, 3\]")]:
        with pytest.raises(ValueError, match=rf"float32 \[S, 3\], all sketches joined, got torch.{came}"):
            FIELD.check_stored(wrong)


def test_sketches_cannot_be_typed():
    with pytest.raises(UserError, match="values of kind strokes cannot be typed"):
        FIELD.parse("1 2 3", 1)


def test_wrong_facts_are_refused():
    with pytest.raises(UserError, match=r"Strokes have the shape \[null, 5\], got \[None, 3\]"):
        Strokes((None, 3))
