"""Labels: typed and said, unknown ones, vectors."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.label import Label, one_hot

FIELD = Label(size=3, names=("cat", "dog", "red fox"))


@pytest.mark.parametrize(
    ("text", "n", "classes"),
    [
        ("2", 3, [2, 2, 2]),
        ("0,2", 4, [0, 0, 2, 2]),
        ("[dog, red fox]", 2, [1, 2]),
        ("each", 6, [0, 0, 1, 1, 2, 2]),
        ("each", 2, [0, 1]),
        ("2,0,1", 1, [2]),
    ],
)
def test_typed_labels(text, n, classes):
    assert FIELD.parse(text, n).tolist() == classes


@pytest.mark.parametrize("word", ["3", "-1", "cow", "", "1.5"])
def test_wrong_labels_are_refused(word):
    with pytest.raises(UserError) as error:
        FIELD.parse(f"0,{word}", 1)
    assert str(error.value) == f"{word!r} is no class; they are 0 to 2 (cat, dog, red fox), or each"


def test_many_names_are_not_listed():
    with pytest.raises(UserError, match="^'x' is no class; they are 0 to 20, or each$"):
        Label(size=21, names=tuple(f"n{i}" for i in range(21))).parse("x", 1)


def test_texts_can_be_typed():
    y = torch.tensor([2, 0, -1])
    assert FIELD.text(y) == ["red fox", "cat", "?"]
    assert Label(size=3).text(y) == ["2", "0", "?"]
    assert FIELD.parse(",".join(FIELD.text(y[:2])), 2).tolist() == [2, 0]


def test_each_class_in_order():
    assert FIELD.each(7).tolist() == [0, 0, 1, 1, 2, 2]
    assert FIELD.each(1).tolist() == [0, 1, 2]  # all of them, though more than asked for


def test_minus_one_is_not_known():
    assert FIELD.known(torch.tensor([0, -1, 2])).tolist() == [True, False, True]


def test_vectors_are_one_hot_and_zero_where_not_known():
    assert FIELD.vector_width == 3
    assert_close(FIELD.vector(torch.tensor([1, -1])), torch.tensor([[0.0, 1, 0], [0, 0, 0]]), rtol=0, atol=0)
    maps = one_hot(torch.tensor([[[0, 1]]]), 2, dim=1)
    assert maps.tolist() == [[[[1, 0]], [[0, 1]]]]


def test_random_labels_are_all_classes():
    counts = FIELD.random(3000, torch.Generator().manual_seed(0)).bincount(minlength=3)
    assert_close(counts / 3000, torch.full((3,), 1 / 3), rtol=0, atol=0.03)


def test_cells_are_names():
    cells = FIELD.cells(torch.tensor([0, 1, 0]))
    assert_close(cells[0], cells[2], rtol=0, atol=0)
    assert not torch.equal(cells[0], cells[1])
    y = torch.tensor([1, 2])
    assert FIELD.mirror(y) is y and FIELD.normalise(y) is y


def test_what_may_be_stored():
    FIELD.check_stored(torch.zeros(2, dtype=torch.int64))
    for wrong, came in [(torch.zeros(2), r"float32 \[2\]"), (torch.zeros(2, 1).long(), r"int64 \[2, 1\]")]:
        with pytest.raises(ValueError, match=rf"Labels must be int64 of shape \[N\], got torch.{came}"):
            FIELD.check_stored(wrong)
