"""Sheets of samples with what they were told: captions under them, boxes beside them."""

import numpy as np
import torch

from genlab.batch import Batch
from genlab.data.scenes import column_facts
from genlab.data.spec import DataSpec
from genlab.fields.kinds import make_field
from genlab.looks.sheets import told_sheet

FACTS = column_facts(2, (32, 32))
SPEC = DataSpec(
    {"x": make_field({"kind": "image", "shape": (3, 32, 32)}), **{k: make_field(v) for k, v in FACTS.items()}}
)
WORDS, BOXES = SPEC.fields["caption"], SPEC.fields["boxes"]
TEXTS = "a large red ellipse in the middle|a small blue triangle on the left|a small blue triangle at the top"


def ink(picture):
    """Whether each pixel is dark."""
    return (picture.max(axis=2) < 90).astype(int)


def test_captions_stand_under_their_samples():
    """White samples: all ink is below them, in each column of the grid."""
    x = torch.ones(4, 3, 32, 32)
    caption = WORDS.parse(TEXTS + "|a large green rectangle on the right", 4)
    picture = told_sheet(SPEC, x, Batch({"caption": caption}))
    width = picture.shape[1] // 2
    cell = picture.shape[0] // 2
    assert cell > width + 30  # two lines or three
    rows = ink(picture).any(axis=1)
    assert not rows[:width].any() and rows[width:cell].any() and not rows[cell - 2 : cell + width].any()
    assert ink(picture)[:cell, :width].any() and ink(picture)[:cell, width:].any()
    plain = SPEC.x.sheet(x)
    assert not ink(plain).any()
    np.testing.assert_array_equal(
        told_sheet(SPEC, x, Batch({"caption": caption.rows(slice(1)).rows(torch.zeros(4).long())})), plain
    )


def test_captions_that_come_in_rows_name_them():
    caption = WORDS.parse(TEXTS, 6)
    picture = told_sheet(SPEC, torch.ones(6, 3, 32, 32), Batch({"caption": caption}))
    found = ink(picture)
    assert found[:, : picture.shape[1] // 2].sum() > 0.8 * found.sum()  # names stand at the left


def test_boxes_are_drawn_beside_samples_and_captions_under_both():
    """Dark samples: one in each row, to the right of its boxes, and ink below both."""
    x = -torch.ones(4, 3, 32, 32)
    boxes = BOXES.parse("[[ellipse, 0.1, 0.1, 0.5, 0.5]]", 4)
    caption = WORDS.parse(TEXTS + "|a large green rectangle on the right", 4)
    alone = told_sheet(SPEC, x, Batch({"boxes": boxes}))
    both = told_sheet(SPEC, x, Batch({"caption": caption, "boxes": boxes}))
    assert both.shape[0] >= alone.shape[0] + 42  # two rows of a line at least
    assert abs(int((both == 0).all(axis=2).sum()) / (4 * 128 * 128) - 1) < 0.1
