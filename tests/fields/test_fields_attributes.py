"""Attributes: bytes and numbers, what is typed, what is said."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.attributes import Attributes

FACE = Attributes((3,), names=("male", "smiling", "young"))
FACTOR = Attributes((2,), names=("x", "light"), value_range=(-1.0, 1.0))


def test_bytes_become_the_ends_of_the_range_and_numbers_stay():
    stored = torch.tensor([[0, 1]], dtype=torch.uint8)
    for field, expected in [(Attributes((2,)), [0.0, 1.0]), (FACTOR, [-1.0, 1.0])]:
        assert_close(field.normalise(stored), torch.tensor([expected]), rtol=0, atol=0)
    known = torch.tensor([[0.25, -1.0]])
    assert_close(FACTOR.normalise(known), known, rtol=0, atol=0)


def test_what_may_be_stored():
    FACE.check_stored(torch.zeros(4, 3, dtype=torch.uint8))
    FACE.check_stored(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"uint8 or float32 \[N, 3\], got torch.int64 \[4, 3\]"):
        FACE.check_stored(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got torch.float32 \[4, 2\]"):
        FACE.check_stored(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{smiling: 1, male: 0}", [0.0, 1.0, 0.0]),
        ("{smiling:1}", [0.0, 1.0, 0.0]),  # as the command line's grammar writes it
        ("smiling,male", [1.0, 1.0, 0.0]),
        (" young , smiling: 0.25", [0.0, 0.25, 1.0]),
        ("none", [0.0, 0.0, 0.0]),
        ("{}", [0.0, 0.0, 0.0]),
    ],
)
def test_typed_attributes(text, values):
    assert_close(FACE.parse(text, 2), torch.tensor([values, values]), rtol=0, atol=0)


def test_attributes_that_are_not_typed_are_at_the_lower_end():
    assert_close(FACTOR.parse("{light: 0.5}", 1), torch.tensor([[-1.0, 0.5]]), rtol=0, atol=0)
    assert_close(FACTOR.parse("x", 1), torch.tensor([[1.0, -1.0]]), rtol=0, atol=0)


def test_several_values_share_the_rows():
    assert FACE.parse("male;young", 4)[:, 0].tolist() == [1, 1, 0, 0]


def test_texts_can_be_typed():
    values = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.51, 0.5]])
    assert FACE.text(values) == ["male, young", "none", "smiling"]
    assert_close(FACE.parse(";".join(FACE.text(values[:2])), 2), values[:2], rtol=0, atol=0)
    factors = torch.tensor([[-0.25, 0.125]])
    assert FACTOR.text(factors) == ["x: -0.25, light: 0.125"]
    assert_close(FACTOR.parse(FACTOR.text(factors)[0], 1), factors, rtol=0, atol=0)


def test_each_attribute_goes_from_end_to_end_alone():
    ways = FACTOR.ways(torch.tensor([[0.25, -0.5]]), 3)
    assert [way.part for way in ways] == ["x", "light"] and ways[0].texts == ["-1", "0", "1"]
    assert ways[0].values.tolist() == [[-1, -0.5], [0, -0.5], [1, -0.5]]
    assert ways[1].values.tolist() == [[0.25, -1], [0.25, 0], [0.25, 1]]
    (way,) = Attributes((1,)).ways(torch.tensor([[1.0]]), 2)
    assert way.values.tolist() == [[0], [1]] and way.part == "0"


def test_attributes_without_names_have_numbers():
    field = Attributes((2,), value_range=None)
    assert field.text(torch.tensor([[1.5, 0.0]])) == ["0: 1.5, 1: 0"]
    assert_close(field.parse("{1: -7}", 1), torch.tensor([[0.0, -7.0]]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bald", "^'bald' is no attribute; they are male, smiling, young$"),
        ("smiling,", "^'' is no attribute"),
        ("{smiling: 2}", "^smiling must be a number from 0 to 1, got 2$"),
        ("{smiling: yes}", "^smiling must be a number from 0 to 1, got yes$"),
        ("{smiling: nan}", "^smiling must be a number from 0 to 1, got nan$"),
    ],
)
def test_wrong_attributes_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        FACE.parse(text, 1)


def test_a_refusal_lists_twenty_of_many():
    many = Attributes((40,), names=tuple(f"n{i}" for i in range(40)))
    with pytest.raises(UserError, match="n18, n19 and 20 more$"):
        many.parse("bald", 1)


def test_without_bounds_any_finite_number_will_do():
    with pytest.raises(UserError, match="^0 must be a number, got inf$"):
        Attributes((2,), value_range=None).parse("0: inf", 1)


def test_random_values_lie_in_their_range():
    drawn = FACTOR.random(400, torch.Generator().manual_seed(0))
    assert_close(drawn.amin(0), torch.tensor([-1.0, -1.0]), rtol=0, atol=0.05)
    assert_close(drawn.amax(0), torch.tensor([1.0, 1.0]), rtol=0, atol=0.05)
    assert FACTOR.mirror(drawn) is drawn


@pytest.mark.parametrize("shape", [(), (2, 3), (None,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=r"Attributes have the shape \[A\], got "):
        Attributes(shape)


def test_each_attribute_has_one_name():
    with pytest.raises(UserError, match="3 attributes need as many names, got 1"):
        Attributes((3,), names=("male",))
