"""Class maps: files of them, colours, what is not known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.drawing import COLOURS
from genlab.fields.layout import Layout

FIELD = Layout((2, 3), size=3, names=("sky", "road", "tree"))
STORED = torch.tensor([[[0, 1, 2], [255, 1, 1]]], dtype=torch.uint8)
VALUES = torch.tensor([[[0, 1, 2], [-1, 1, 1]]])


def test_255_is_not_known():
    assert_close(FIELD.normalise(STORED), VALUES, rtol=0, atol=0)
    unknown = torch.cat([STORED, torch.full_like(STORED, 255)])
    assert FIELD.known(unknown).tolist() == FIELD.known(FIELD.normalise(unknown)).tolist() == [True, False]


def test_mirroring_stored_and_normalised():
    assert FIELD.mirror(STORED).tolist() == [[[2, 1, 0], [1, 1, 255]]]
    assert_close(FIELD.normalise(FIELD.mirror(STORED)), FIELD.mirror(VALUES), rtol=0, atol=0)


def test_each_class_has_its_colour():
    cell = FIELD.cells(VALUES)[0]
    assert cell.shape == (3, 2, 3)
    assert [cell[:, 0, i].tolist() for i in range(3)] == [list(c) for c in COLOURS[:3]]
    assert cell[:, 1, 0].tolist() == [255, 255, 255]


def test_texts_are_shares():
    assert FIELD.text(VALUES) == ["road 50 %, sky 17 %, tree 17 %"]
    assert FIELD.text(torch.full((1, 2, 3), -1)) == ["?"]
    assert Layout((2, 3), size=3).text(torch.zeros(1, 2, 3).long()) == ["0 100 %"]


def test_maps_are_written_and_read_again(tmp_path):
    both = torch.cat([VALUES, FIELD.mirror(VALUES)])
    folder = FIELD.write(both, tmp_path / "maps")
    assert sorted(p.name for p in folder.iterdir()) == ["000000.png", "000001.png"]
    assert_close(FIELD.parse(str(folder), 2), both, rtol=0, atol=0)
    assert_close(FIELD.parse(str(folder / "000001.png"), 2), both[[1, 1]], rtol=0, atol=0)
    with Image.open(folder / "000000.png") as image:
        assert image.mode == "P"
        shown = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert_close(shown, FIELD.cells(VALUES)[0], rtol=0, atol=0)


def test_grey_files_are_resized_by_nearest_neighbours(tmp_path):
    """No class lies between two classes; of 8 x 18 pixels the middle 8 x 12 are seen, as of pictures."""
    pixels = np.ones((8, 18), dtype=np.uint8)
    pixels[:, 3:15] = 0
    pixels[:4, 7:11], pixels[4:, 11:15] = 2, 255
    Image.fromarray(pixels, "L").save(tmp_path / "map.png")
    assert FIELD.parse(str(tmp_path / "map.png"), 1).tolist() == [[[0, 2, 0], [0, 0, -1]]]


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing.png is no file and no folder$"):
        FIELD.parse(str(tmp_path / "nothing.png"), 1)
    with pytest.raises(UserError, match=r"holds no class maps \(.png\)$"):
        FIELD.parse(str(tmp_path), 1)
    path = tmp_path / "map.png"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="map.png cannot be read as a picture: "):
        FIELD.parse(str(path), 1)
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(UserError, match="has pixels of mode RGB; a class map is a palette or a grey png of 8 bits$"):
        FIELD.parse(str(path), 1)
    Image.new("L", (3, 2), 7).save(path)
    with pytest.raises(UserError, match=r"holds the class 7; they are 0 to 2 \(sky, road, tree\), and 255 for what"):
        FIELD.parse(str(path), 1)


def test_random_maps_hold_every_class():
    assert FIELD.random(50, torch.Generator().manual_seed(0)).unique().tolist() == [0, 1, 2]


def test_what_may_be_stored():
    FIELD.check_stored(STORED)
    for wrong, came in [(VALUES, r"int64 \[1, 2, 3\]"), (STORED.mT, r"uint8 \[1, 3, 2\]")]:
        with pytest.raises(ValueError, match=rf"Class maps must be uint8 \[N, 2, 3\], got torch.{came}"):
            FIELD.check_stored(wrong)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"shape": (3,)}, r"A class map has the shape \[H, W\], got \[3\]"),
        ({"shape": (2, 3), "size": 256}, "A class map has 1 to 255 classes, got size=256"),
        ({"shape": (2, 3), "size": 0}, "got size=0"),
        ({"shape": (2, 3), "size": 2, "names": ("sky",)}, "2 classes of a map need as many names, got 1"),
    ],
)
def test_wrong_facts_are_refused(facts, sentence):
    with pytest.raises(UserError, match=sentence):
        Layout(**facts)
