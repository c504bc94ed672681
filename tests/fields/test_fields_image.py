"""Pictures: bytes and [-1, 1], files, mirroring."""

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.image import Image, from_uint8, to_uint8

FIELD = Image((3, 2, 2))
STORED = torch.arange(12, dtype=torch.uint8).mul(20).view(1, 3, 2, 2)


def test_every_byte_survives():
    stored = torch.arange(256).to(torch.uint8)
    values = from_uint8(stored)
    assert values[0] == -1 and values[255] == 1
    assert_close(to_uint8(values), stored, rtol=0, atol=0)
    assert_close(FIELD.normalise(STORED), STORED.float() / 127.5 - 1)


def test_values_out_of_range_are_clamped_and_nan_is_black():
    assert to_uint8(torch.tensor([-3.0, 3.0, float("nan"), float("inf")])).tolist() == [0, 255, 0, 255]


def test_mirroring():
    mirrored = FIELD.mirror(STORED)
    assert mirrored[0, 0].tolist() == [[20, 0], [60, 40]]
    assert_close(FIELD.mirror(mirrored), STORED, rtol=0, atol=0)


def test_files_are_written_and_read_again(tmp_path):
    values = FIELD.normalise(torch.cat([STORED, FIELD.mirror(STORED)]))
    folder = FIELD.write(values, tmp_path / "samples")
    assert sorted(p.name for p in folder.iterdir()) == ["000000.png", "000001.png"]
    with Picture.open(folder / "000000.png") as picture:
        assert_close(torch.from_numpy(np.array(picture)).permute(2, 0, 1), STORED[0], rtol=0, atol=0)
    assert_close(FIELD.parse(str(folder), 4), values[[0, 0, 1, 1]], rtol=0, atol=0)
    assert_close(FIELD.parse(str(folder), 1), values[:1], rtol=0, atol=0)


def test_a_file_is_cropped_and_resized(tmp_path):
    """A grey strip with a white square in the middle becomes the square."""
    pixels = np.zeros((4, 12), dtype=np.uint8)
    pixels[:, 4:8] = 255
    Picture.fromarray(pixels).save(tmp_path / "a.png")
    assert FIELD.parse(str(tmp_path / "a.png"), 1).unique().tolist() == [1]


def test_files_of_another_size_are_spoken_of(tmp_path):
    for name, shape in (("a", (4, 12)), ("b", (2, 2)), ("c", (3, 2))):
        Picture.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    fate = "cropped around the middle and resized to the 2 x 2 of these data"
    assert FIELD.fitting(str(tmp_path / "a.png"), 1) == f"12 x 4 pixels, {fate}"
    assert FIELD.fitting(str(tmp_path / "b.png"), 1) is None
    assert FIELD.fitting(str(tmp_path), 3) == f"2 of 3 pictures, {fate}"
    assert FIELD.fitting(str(tmp_path), 1) == f"12 x 4 pixels, {fate}"  # the others are not read


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing.png is no file and no folder$"):
        FIELD.parse(str(tmp_path / "nothing.png"), 1)
    with pytest.raises(UserError, match=r"holds no pictures \(.png, .jpg"):
        FIELD.parse(str(tmp_path), 1)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="a.png cannot be read as a picture: "):
        FIELD.parse(str(tmp_path), 1)


def test_cells_have_three_channels_and_renderings_their_own():
    grey = torch.tensor([[[[-1.0, 1.0]]]])
    assert Image((1, 1, 2)).render(grey).tolist() == [[[[0, 255]]]]
    assert Image((1, 1, 2)).cells(grey).tolist() == [[[[0, 255]]] * 3]
    assert Image((1, 1, 2)).text(grey) == ["2 x 1 pixels"]


def test_random_pixels_lie_in_their_range():
    drawn = FIELD.random(100, torch.Generator().manual_seed(0))
    assert_close(torch.stack([drawn.min(), drawn.max()]), torch.tensor([-1.0, 1.0]), rtol=0, atol=0.05)


def test_what_may_be_stored():
    FIELD.check_stored(STORED)
    for wrong, came in [(STORED.float(), r"float32 \[1, 3, 2, 2\]"), (STORED[0], r"uint8 \[3, 2, 2\]")]:
        with pytest.raises(ValueError, match=rf"Images must be uint8 \[N, C, H, W\], got torch.{came}"):
            FIELD.check_stored(wrong)


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"An image has the shape \[C, H, W\], got data.shape=\[2, 2\]"):
        Image((2, 2))
