"""Piano rolls: pixels of notes, pitches in words."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Seq
from genlab.errors import UserError
from genlab.fields.roll import AFTER, PAPER, Roll

FIELD = Roll((None, 3), names=("C4", "D4", "E4"))
# Two pieces: C4, then C4 and E4, then silence; and D4 alone.
VALUES = Seq(
    torch.tensor([[[1.0, 0, 0], [1, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]]), torch.tensor([3, 1])
)


def test_time_goes_to_the_right_and_pitch_upwards():
    cells = FIELD.cells(VALUES)
    assert cells.shape == (2, 3, 3, 3)
    assert_close(cells[:, 0], cells[:, 2], rtol=0, atol=0)
    assert cells[0, 0].tolist() == [[PAPER, 0, PAPER], [PAPER, PAPER, PAPER], [0, 0, PAPER]]
    assert cells[1, 0].tolist() == [[PAPER, AFTER, AFTER], [0, AFTER, AFTER], [PAPER, AFTER, AFTER]]


def test_cells_are_as_wide_as_the_longest_piece_of_the_data():
    cells = Roll((None, 3), most=5).cells(VALUES)
    assert cells.shape == (2, 3, 3, 5)
    assert cells[0, 0, 0].tolist() == [PAPER, 0, PAPER, AFTER, AFTER]


def test_a_probability_is_grey():
    half = Seq(torch.full((1, 1, 3), 0.4), torch.tensor([1]))
    assert FIELD.cells(half).unique().tolist() == [153]


def test_texts_are_pitches():
    assert FIELD.text(VALUES) == ["C4 | C4 E4 | -", "D4"]
    assert Roll((None, 3)).text(VALUES) == ["0 | 0 2 | -", "1"]


def test_normalising():
    stored = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    assert_close(FIELD.normalise(stored), torch.tensor([[0.0, 1.0, 1.0]]), rtol=0, atol=0)


def test_rolls_are_written_joined(tmp_path):
    with np.load(FIELD.write(VALUES, tmp_path / "pieces")) as found:
        assert found["flat"].tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]]
        assert found["offsets"].tolist() == [0, 3, 4]


def test_random_pieces_sound_sometimes():
    values = FIELD.random(400, torch.Generator().manual_seed(0))
    notes = values.values[values.mask]
    assert notes.unique().tolist() == [0, 1]
    assert_close(notes.mean(), torch.tensor(0.125), rtol=0, atol=0.02)


def test_what_may_be_stored():
    FIELD.check_stored(torch.zeros(9, 3, dtype=torch.uint8))
    for wrong, came in [(torch.zeros(9, 3), r"float32 \[9, 3\]"), (torch.zeros(9, 2).byte(), r"uint8 \[9, 2\]")]:
        with pytest.raises(ValueError, match=rf"uint8 \[S, 3\], all pieces joined, got torch.{came}"):
            FIELD.check_stored(wrong)


def test_rolls_cannot_be_typed():
    with pytest.raises(UserError, match="values of kind roll cannot be typed"):
        FIELD.parse("C4", 1)


def test_wrong_facts_are_refused():
    for shape in [(8, 3), (None,), (None, None)]:
        with pytest.raises(UserError, match=r"A piano roll has the shape \[null, P\], got "):
            Roll(shape)
    with pytest.raises(UserError, match="3 pitches need as many names, got 1"):
        Roll((None, 3), names=("C4",))
