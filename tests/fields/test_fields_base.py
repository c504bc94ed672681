"""The registry of kinds, what all fields share, and the batch that holds their columns."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Batch, Seq
from genlab.errors import UserError
from genlab.fields.base import KINDS, Field, spread
from genlab.fields.drawing import COLOURS, class_colours, drawn_cells, text_cells
from genlab.fields.kinds import make_field
from genlab.fields.points import Points
from genlab.fields.sequences import apart, cut, random_lengths, together
from genlab.fields.typed import listed

FIELDS = {
    "attributes": {"shape": (2,), "names": ("male", "smiling"), "value_range": (-1.0, 1.0)},
    "boxes": {"shape": (3, 5), "size": 2, "names": ("ellipse", "triangle"), "most": 3},
    "image": {"shape": (3, 4, 5)},
    "keypoints": {"shape": (2, 3), "names": ("left", "right")},
    "label": {"size": 3, "names": ("a", "b", "c")},
    "layout": {"shape": (4, 5), "size": 2, "names": ("sky", "road")},
    "masked": {"shape": (2, 4, 5)},
    "points": {"shape": (2,)},
    "roll": {"shape": (None, 3), "names": ("C4", "D4", "E4"), "most": 6},
    "strokes": {"most": 5},  # their one shape is the default
    "tokens": {"shape": (None,), "size": 3, "names": ("a", "red", "ellipse"), "most": 4},
    "video": {"shape": (3, 1, 4, 5), "fps": 25},
    "wave": {"shape": (None,), "most": 9, "rate": 8000},
}


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_every_shipped_kind_is_tested_here():
    assert {kind for kind, cls in KINDS.items() if cls.__module__.startswith("genlab.")} == FIELDS.keys()


@pytest.mark.parametrize("kind", FIELDS)
def test_facts_make_the_field_again(kind):
    """As plain containers: a checkpoint and a json file hold lists, fields hold tuples."""
    field = make_field({"kind": kind, **FIELDS[kind]})
    facts = field.to_dict()
    assert facts == {"kind": kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in FIELDS[kind].items()}}
    assert make_field(facts) == field and hash(make_field(facts)) == hash(field)  # no list among them


@pytest.mark.parametrize("kind", FIELDS)
def test_random_values_are_values(kind, rng):
    """Of the field's shape, the same for the same stream, and every display takes them."""
    field = make_field({"kind": kind, **FIELDS[kind]})
    values = field.random(4, rng)
    again = field.random(4, torch.Generator().manual_seed(0))
    if field.ragged:
        assert isinstance(values, Seq)
        assert_close(values.values, again.values, rtol=0, atol=0)
        assert values.values.shape == (4, int(values.length.max()), *field.fixed_shape)
        assert 1 <= int(values.length.min()) and int(values.length.max()) <= field.most
        assert int(values.values[~values.mask].count_nonzero()) == 0
    else:
        assert_close(values, again, rtol=0, atol=0)
        assert values.shape == (4, *field.fixed_shape)
    assert len(field.text(values)) == 4
    cells = field.cells(values)
    assert cells.dtype == torch.uint8 and cells.shape[:2] == (4, 3)


@pytest.mark.parametrize("kind", ["roll", "strokes", "tokens", "wave"])
def test_random_sequences_without_a_longest_one_have_1_to_8_steps(kind, rng):
    facts = {**FIELDS[kind], "most": None}
    assert set(make_field({"kind": kind, **facts}).random(200, rng).length.tolist()) == set(range(1, 9))


@pytest.mark.parametrize("kind", FIELDS)
def test_kinds_that_mirror_say_so(kind, rng):
    field = make_field({"kind": kind, **FIELDS[kind]})
    values = field.random(3, rng)
    steps = values.values if isinstance(values, Seq) else values
    if field.mirrors:
        assert_close(field.mirror(field.mirror(steps)), steps)
    else:
        with pytest.raises(UserError, match=f"kind {kind} cannot be mirrored with its picture. Try data.flip=false"):
            field.mirror(steps)


def test_a_kind_that_is_defined_elsewhere_is_registered():
    @dataclass(frozen=True)
    class Smell(Field):
        kind: ClassVar[str] = "smell"

        notes: tuple[str, ...] = ()

    try:
        field = make_field({"kind": "smell", "size": 2, "notes": ["wood", "rose"]})
        assert field == Smell(size=2, notes=("wood", "rose"))
        assert field.to_dict() == {"kind": "smell", "size": 2, "notes": ["wood", "rose"]}
        for refused, sentence in [
            (lambda: field.parse("wood", 1), "values of kind smell cannot be typed"),
            (lambda: field.render(torch.zeros(1)), "Samples of kind 'smell' cannot be shown as images"),
            (lambda: field.mirror(torch.zeros(1)), "A column of kind smell cannot be mirrored"),
        ]:
            with pytest.raises(UserError, match=sentence):
                refused()
    finally:
        del KINDS["smell"]


def test_a_class_without_a_kind_is_not_registered():
    before = dict(KINDS)

    class Helper(Field):
        pass

    assert KINDS == before and Helper().to_dict() == {"kind": ""}


def test_an_unknown_kind_is_refused_with_all_that_there_are():
    with pytest.raises(UserError) as error:
        make_field({"kind": "smell"})
    start, listed_kinds = str(error.value).removesuffix(".").split("; there are ")
    assert start == "'smell' is no kind of column"
    assert listed_kinds.split(", ") == sorted(KINDS)  # other tests may have defined some of their own
    with pytest.raises(UserError, match="None is no kind of column"):
        make_field({"shape": (2,)})


def test_an_unknown_fact_is_refused():
    with pytest.raises(UserError, match="A column of kind label has no 'rate'"):
        make_field({"kind": "label", "size": 2, "rate": 8000})


def test_typed_values_are_spread_evenly_in_order():
    assert spread(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    assert spread(2, 3).tolist() == [0, 0, 1]
    assert spread(4, 2).tolist() == [0, 1]  # more were typed than wanted
    assert spread(1, 0).tolist() == []


def test_a_message_lists_twenty_names():
    names = [f"n{i}" for i in range(22)]
    assert listed(names) == ", ".join(names[:20]) + " and 2 more"
    assert listed(names[:20]) == ", ".join(names[:20])


# --- Written --------------------------------------------------------------------------------------------------------


def test_values_without_a_format_are_written_as_npz(tmp_path):
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    path = Points((2,)).write(values, tmp_path / "samples.v1")  # a dot in the name is no suffix
    assert path == tmp_path / "samples.v1.npz"
    with np.load(path) as found:
        assert found.files == ["values"]
        np.testing.assert_array_equal(found["values"], values.numpy())


def test_sequences_are_written_joined_with_their_offsets(tmp_path):
    values = Seq(torch.tensor([[[1.0], [2.0], [0.0]], [[3.0], [4.0], [5.0]]]), torch.tensor([2, 3]))
    with np.load(Field(shape=(None, 1)).write(values, tmp_path / "samples")) as found:
        np.testing.assert_array_equal(found["flat"], [[1], [2], [3], [4], [5]])
        np.testing.assert_array_equal(found["offsets"], [0, 2, 5])


# --- Drawn ----------------------------------------------------------------------------------------------------------


def test_texts_become_pictures():
    """Dark on white, wrapped to a second line, and different texts give different pictures."""
    empty, short, long = text_cells(["", "hi", "a large red ellipse above a small blue square"])
    assert empty.shape == (3, 64, 128) and bool((empty == 255).all())
    ink = [(cell.amin(dim=(0, 2)) < 128).nonzero().flatten() for cell in (short, long)]  # rows with ink
    assert 0 < len(ink[0]) < 16 and int(ink[0].max()) < 18
    assert int(ink[1].max()) > 30
    assert text_cells(["x"], size=(20, 30)).shape == (1, 3, 20, 30)


def test_class_colours_differ_from_each_other_and_from_white():
    colours = class_colours(255)
    assert len(set(colours)) == 255 and (255, 255, 255) not in colours
    assert colours[:8] == list(COLOURS) and class_colours(3) == colours[:3]


def test_cells_are_drawn_one_by_one():
    cells = drawn_cells(2, lambda i, pen: pen.point((3, 5 + i), fill=(255, 0, 0)))
    where = (cells[:, 1] == 0).nonzero()
    assert where.tolist() == [[0, 5, 3], [1, 6, 3]]
    assert cells[0, :, 5, 3].tolist() == [255, 0, 0]


# --- Sequences ------------------------------------------------------------------------------------------------------


def test_sequences_are_taken_apart_and_put_together():
    values = Seq(torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([2, 3]))
    one, other = apart(values)
    assert one.tolist() == [1, 2] and other.tolist() == [3, 4, 5]
    again = together([one, other])
    assert again.values.tolist() == values.values.tolist() and again.length.tolist() == [2, 3]
    assert [v.tolist() for v in apart(torch.tensor([[1], [2]]))] == [[1], [2]]


def test_what_follows_an_end_is_cut():
    seq = cut(torch.ones(2, 3, 2), torch.tensor([1, 3]))
    assert seq.values[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_random_lengths_reach_both_ends(rng):
    assert set(random_lengths(200, 3, rng).tolist()) == {1, 2, 3}


# --- Batches --------------------------------------------------------------------------------------------------------


def make_batch() -> Batch:
    """x [5, 2], y [5] and the sequences s of 1, 2, 3, 1, 2 steps, all telling their row."""
    rows = torch.arange(5)
    length = torch.tensor([1, 2, 3, 1, 2])
    return Batch({"x": rows.float()[:, None].expand(5, 2), "y": rows, "s": cut(rows[:, None].expand(5, 3) + 1, length)})


def test_a_batch_knows_its_columns():
    batch = make_batch()
    assert len(batch) == 5 and "y" in batch and "z" not in batch
    assert batch.x is batch["x"] and batch.y is batch.columns["y"]
    assert Batch({"x": torch.zeros(1, 2)}).y is None


def test_a_missing_column_is_named_beside_those_that_are_there():
    with pytest.raises(UserError, match="The data have no column 'z', only x, y, s"):
        make_batch()["z"]
    with pytest.raises(UserError, match="no column 'z'"):
        make_batch().only(["x", "z"])


def test_only_these_columns_in_this_order():
    batch = make_batch()
    only = batch.only(("s", "x"))
    assert list(only.columns) == ["s", "x"] and only["s"] is batch["s"]
    assert list(batch.with_column("z", batch.y).columns) == ["x", "y", "s", "z"] and "z" not in batch


def test_rows_take_sequences_along():
    rows = make_batch().rows(torch.tensor([4, 1]))
    assert rows.y.tolist() == [4, 1] and rows.x[:, 0].tolist() == [4, 1]
    assert rows["s"].length.tolist() == [2, 2] and rows["s"].values.tolist() == [[5, 5, 0], [2, 2, 0]]


def test_chunks_are_cut_as_torch_cuts():
    batch = make_batch()
    for n in (1, 2, 3, 5):
        parts = batch.chunk(n)
        assert [part.y.tolist() for part in parts] == [part.tolist() for part in batch.y.chunk(n)]
        assert torch.cat([part["s"].length for part in parts]).tolist() == [1, 2, 3, 1, 2]


def test_a_batch_moves_whole_or_not_at_all():
    batch = make_batch()
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert moved is not batch
    assert {t.device.type for t in (moved.x, moved.y, moved["s"].values, moved["s"].length)} == {"meta"}


def test_the_mask_of_sequences():
    seq = Seq(torch.zeros(3, 4, 2), torch.tensor([0, 4, 2]))
    assert len(seq) == 3
    assert seq.mask.tolist() == [[False] * 4, [True] * 4, [True, True, False, False]]
