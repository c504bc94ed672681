"""Tokens: words typed and said, vocabularies, text files."""

import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Seq
from genlab.errors import UserError
from genlab.fields.tokens import Tokens

WORDS = ("a", "red", "blue", "ellipse", "square")
FIELD = Tokens((None,), size=5, names=WORDS, most=4)
DENSE = Tokens((3,), size=12)


def test_a_sentence_for_all_rows():
    typed = FIELD.parse("a red ellipse", 2)
    assert isinstance(typed, Seq) and typed.values.dtype == torch.int64
    assert typed.values.tolist() == [[0, 1, 3]] * 2 and typed.length.tolist() == [3, 3]


@pytest.mark.parametrize("text", ['"a red ellipse" | "blue"', '"a red ellipse"|"blue"', "a red ellipse|blue"])
def test_several_sentences_share_the_rows(text):
    typed = FIELD.parse(text, 4)
    assert typed.values.tolist() == [[0, 1, 3], [0, 1, 3], [2, 0, 0], [2, 0, 0]]
    assert typed.length.tolist() == [3, 3, 1, 1]


def test_a_single_sentence_may_have_quotes():
    assert FIELD.parse('"a  red ellipse"', 1).values.tolist() == [[0, 1, 3]]


def test_a_bar_may_be_a_word():
    field = Tokens((None,), names=("|", "bar"))
    assert field.parse("bar | bar", 1).values.tolist() == [[1, 0, 1]]
    assert field.parse('"bar |"|"|"', 2).values.tolist() == [[1, 0], [0, 0]]


def test_upper_case_matters_where_a_word_has_it():
    assert FIELD.parse("A Red ELLIPSE", 1).values.tolist() == [[0, 1, 3]]
    with pytest.raises(UserError, match="^'paris' is not in the vocabulary of 1 words$"):
        Tokens((None,), names=("Paris",)).parse("paris", 1)


def test_texts_can_be_typed():
    values = Seq(torch.tensor([[0, 1, 3], [2, 0, 0]]), torch.tensor([3, 1]))
    assert FIELD.text(values) == ["a red ellipse", "blue"]
    again = FIELD.parse("|".join(FIELD.text(values)), 2)
    assert again.values.tolist() == values.values.tolist() and again.length.tolist() == [3, 1]


def test_tokens_without_names_are_numbers():
    typed = DENSE.parse("0 11 7|1 1 1", 2)
    assert_close(typed, torch.tensor([[0, 11, 7], [1, 1, 1]]), rtol=0, atol=0)
    assert DENSE.text(typed) == ["0 11 7", "1 1 1"]


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        (FIELD, "a large pink ellipse", "^'large' is not in the vocabulary of 5 words$"),
        (FIELD, "a red red red square", "^a sentence has at most 4 words, got 5$"),
        (FIELD, "", "^a sentence has at least one word, got none$"),
        (FIELD, "a |", "^a sentence has at least one word, got none$"),
        (DENSE, "1 12 3", "^'12' is not in the vocabulary of 12 words from 0 to 11$"),
        (DENSE, "1 2", "^a sequence has 3 words, got 2$"),
    ],
)
def test_wrong_sentences_are_refused(field, text, sentence):
    with pytest.raises(UserError, match=sentence):
        field.parse(text, 1)


def test_normalising_makes_numbers_long_not_grey():
    stored = torch.tensor([0, 4, 255], dtype=torch.int32)
    normalised = FIELD.normalise(stored)
    assert normalised.dtype == torch.int64 and normalised.tolist() == [0, 4, 255]


def test_a_file_has_one_line_a_value(tmp_path):
    path = FIELD.write(FIELD.parse("a red ellipse|blue", 2), tmp_path / "samples")
    assert path == tmp_path / "samples.txt" and path.read_text() == "a red ellipse\nblue\n"


def test_cells_show_the_words():
    same, other = FIELD.cells(FIELD.parse("a red ellipse|blue", 2))
    assert_close(same, FIELD.cells(FIELD.parse("a red ellipse", 1))[0], rtol=0, atol=0)
    assert not torch.equal(same, other)


def test_random_words_are_all_in_the_vocabulary():
    rng = torch.Generator().manual_seed(0)
    dense, ragged = DENSE.random(100, rng), FIELD.random(100, rng)
    assert dense.shape == (100, 3) and dense.unique().tolist() == list(range(12))
    assert ragged.values[ragged.mask].unique().tolist() == list(range(5))


def test_what_may_be_stored():
    FIELD.check_stored(torch.zeros(7, dtype=torch.int32))
    DENSE.check_stored(torch.zeros(7, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"int32 \[S\], all sequences joined, got torch.int64 \[7\]"):
        FIELD.check_stored(torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got torch.int32 \[7, 3\]"):
        FIELD.check_stored(torch.zeros(7, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"int32 \[N, 3\], got torch.int32 \[7, 2\]"):
        DENSE.check_stored(torch.zeros(7, 2, dtype=torch.int32))


def test_wrong_facts_are_refused():
    with pytest.raises(UserError, match=r"Tokens have the shape \[null\], or \[T\] if all are T long, got \[None, 2\]"):
        Tokens((None, 2))
    with pytest.raises(UserError, match="A vocabulary of 4 words needs as many names, got 5"):
        Tokens((None,), size=4, names=WORDS)
