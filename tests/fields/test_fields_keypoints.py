"""Keypoints: partners, typed and said, drawn."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.drawing import COLOURS
from genlab.fields.keypoints import Keypoints

FIELD = Keypoints((3, 3), names=("nose", "left_eye", "right_eye"))
VALUES = torch.tensor([[[0.5, 0.25, 1], [0.125, 0.75, 1], [0, 0, 0]]])


def test_mirroring_swaps_partners():
    mirrored = FIELD.mirror(VALUES)
    assert mirrored.tolist() == [[[0.5, 0.25, 1], [0, 0, 0], [0.875, 0.75, 1]]]
    assert_close(FIELD.mirror(mirrored), VALUES, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("names", "partners"),
    [
        (("eyeLeft", "eyeRight", "bright"), [1, 0, 2]),
        (("LEFT", "mouth left", "mouth right", "RIGHT"), [3, 2, 1, 0]),
        (("leftmost", "upright", "rightmost"), [2, 1, 0]),
        (("a", "b"), [0, 1]),
    ],
)
def test_partners_differ_by_the_side(names, partners):
    """A side is a word, or begins one; the "right" of "bright" is none."""
    field = Keypoints((len(names), 3), names=names)
    y = torch.arange(len(names)).float()
    values = torch.stack([torch.full_like(y, 0.5), y, torch.ones_like(y)], dim=1)[None]
    assert field.mirror(values)[0, :, 1].tolist() == partners


def test_keypoints_that_cannot_be_mirrored_are_refused():
    with pytest.raises(UserError, match="Keypoints without names cannot be mirrored.*Try data.flip=false"):
        Keypoints((3, 3)).mirror(VALUES)
    with pytest.raises(UserError, match="left_ear has no partner right_ear. Try data.flip=false"):
        Keypoints((3, 3), names=("nose", "left_ear", "right_eye")).mirror(VALUES)


def test_typed_keypoints():
    typed = FIELD.parse("{nose: [0.5, 0.25], left_eye: [.125, 0.75]}", 2)
    assert_close(typed, VALUES.expand(2, 3, 3), rtol=0, atol=0)
    numbers = Keypoints((2, 3)).parse("{1: [0, 1]}", 1)
    assert numbers.tolist() == [[[0, 0, 0], [0, 1, 1]]]


def test_texts_can_be_typed():
    assert FIELD.text(VALUES) == ["{nose: [0.5, 0.25], left_eye: [0.125, 0.75]}"]
    assert FIELD.text(torch.zeros(1, 3, 3)) == ["{}"]
    texts = ";".join([*FIELD.text(VALUES), "{}"])
    assert_close(FIELD.parse(texts, 2), torch.cat([VALUES, torch.zeros(1, 3, 3)]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{chin: [0, 0]}", "^'chin' is no keypoint; they are nose, left_eye, right_eye$"),
        ("{nose: [0, 1.5]}", "^y of nose must be a number from 0 to 1, got 1.5$"),
        ("{nose: [mid, 0]}", "^x of nose must be a number from 0 to 1, got mid$"),
        ("{nose: [0, 0, 1]}", "is no list of keypoints; write it as .nose"),
        ("{nose: 0.5}", "is no list of keypoints"),
        ("[0.5, 0.5]", "is no list of keypoints"),
        ("nose", "^'nose' cannot be read; write it as .nose: "),
    ],
)
def test_wrong_keypoints_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        FIELD.parse(text, 1)


def test_a_dot_lies_at_its_place_in_a_colour_of_its_own():
    cell = FIELD.cells(VALUES)[0]
    assert cell[:, 30:35, 62:67].flatten(1).T.unique(dim=0).tolist() == [list(COLOURS[0])]  # around pixel 64 of row 32
    assert cell[:, 94:99, 14:19].flatten(1).T.unique(dim=0).tolist() == [list(COLOURS[1])]
    ink = cell.ne(255).any(dim=0)
    rows, columns = ink.nonzero().unbind(1)
    assert [int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())] == [29, 99, 13, 67]
    assert bool((FIELD.cells(torch.zeros(1, 3, 3)) == 255).all())  # nothing is seen


def test_random_keypoints_are_zero_where_unseen():
    values = FIELD.random(200, torch.Generator().manual_seed(0))
    seen = values[..., 2]
    assert set(seen.unique().tolist()) == {0, 1}
    assert_close(seen.mean(), torch.tensor(0.75), rtol=0, atol=0.05)
    assert int(values[seen == 0].count_nonzero()) == 0


def test_what_may_be_stored():
    FIELD.check_stored(torch.zeros(2, 3, 3))
    for wrong, came in [(torch.zeros(2, 3, 2), r"float32 \[2, 3, 2\]"), (torch.zeros(2, 3, 3).long(), "int64")]:
        with pytest.raises(ValueError, match=rf"Keypoints must be float32 \[N, 3, 3\], got torch.{came}"):
            FIELD.check_stored(wrong)


def test_wrong_facts_are_refused():
    for shape in [(3, 2), (None, 3), (3,)]:
        with pytest.raises(UserError, match=r"Keypoints have the shape \[P, 3\], got "):
            Keypoints(shape)
    with pytest.raises(UserError, match="3 keypoints need as many names, got 2"):
        Keypoints((3, 3), names=("a", "b"))
