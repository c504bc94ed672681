"""Videos: strips, gif files, mirroring."""

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.fields.video import Video

FIELD = Video((3, 1, 2, 4), fps=5)
# Frame t is black but for one white pixel in row 0, column t.
STORED = torch.zeros(1, 3, 1, 2, 4, dtype=torch.uint8)
STORED[0, range(3), 0, 0, range(3)] = 255
VALUES = STORED.float() * 2 / 255 - 1


def test_normalising_is_exact():
    assert_close(FIELD.normalise(STORED), VALUES, rtol=0, atol=0)


def test_mirroring_every_frame():
    mirrored = FIELD.mirror(STORED)
    assert mirrored[0, :, 0, 0].argmax(dim=1).tolist() == [3, 2, 1]
    assert_close(FIELD.mirror(mirrored), STORED, rtol=0, atol=0)


def test_a_strip_shows_frames_side_by_side():
    strip = FIELD.cells(VALUES)
    assert strip.shape == (1, 3, 2, 12)
    assert strip[0, 0, 0].nonzero().flatten().tolist() == [0, 5, 10]  # frame t begins at column 4 t
    assert not bool(strip[0, 0, 1].any())
    assert_close(strip[:, 0], strip[:, 2], rtol=0, atol=0)


def test_a_long_strip_shows_eight_frames_from_the_first_to_the_last():
    values = torch.linspace(-1, 1, 15)[None, :, None, None, None].expand(1, 15, 3, 1, 1)
    strip = Video((15, 3, 1, 1)).cells(values)
    assert strip.shape == (1, 3, 1, 8)
    assert strip[0, 1, 0].tolist() == [0, 36, 73, 109, 146, 182, 219, 255]  # each second frame


def test_gif_files_hold_the_frames(tmp_path):
    both = torch.cat([VALUES, FIELD.mirror(VALUES)])
    folder = FIELD.write(both, tmp_path / "videos")
    assert sorted(p.name for p in folder.iterdir()) == ["000000.gif", "000001.gif"]
    with Image.open(folder / "000000.gif") as image:
        assert image.n_frames == 3 and image.size == (4, 2)
        assert image.info["duration"] == 200  # 5 frames a second
    assert_close(FIELD.parse(str(folder), 2), both, rtol=0, atol=0)
    assert_close(FIELD.parse(str(folder / "000001.gif"), 1), both[1:], rtol=0, atol=0)


def test_a_longer_file_gives_its_first_frames_resized(tmp_path):
    frames = [Image.new("RGB", (8, 8), (60 * t, 0, 0)) for t in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    typed = Video((2, 3, 4, 4)).parse(str(tmp_path / "a.gif"), 1)
    assert typed.shape == (1, 2, 3, 4, 4)
    expected = torch.tensor([[0.0, 0, 0], [60, 0, 0]])[None, :, :, None, None].expand(1, 2, 3, 4, 4) / 127.5 - 1
    assert_close(typed, expected)


def test_wrong_files_are_refused(tmp_path):
    folder = FIELD.write(VALUES, tmp_path / "videos")
    with pytest.raises(UserError, match="000000.gif has 3 frames, fewer than the 4 of a video of these data$"):
        Video((4, 1, 2, 4)).parse(str(folder), 1)
    (folder / "000000.gif").write_bytes(b"no video")
    with pytest.raises(UserError, match="000000.gif cannot be read as a video: "):
        FIELD.parse(str(folder), 1)
    with pytest.raises(UserError, match=r"holds no videos \(.gif\)$"):
        FIELD.parse(str(tmp_path), 1)


def test_texts_are_sizes():
    assert FIELD.text(VALUES) == ["3 frames of 4 x 2 pixels"]


def test_random_pixels_lie_in_their_range():
    drawn = FIELD.random(100, torch.Generator().manual_seed(0))
    assert_close(torch.stack([drawn.min(), drawn.max()]), torch.tensor([-1.0, 1.0]), rtol=0, atol=0.05)


def test_what_may_be_stored():
    FIELD.check_stored(STORED)
    for wrong, came in [(VALUES, r"float32 \[1, 3, 1, 2, 4\]"), (STORED[:, :2], r"uint8 \[1, 2, 1, 2, 4\]")]:
        with pytest.raises(ValueError, match=rf"Videos must be uint8 \[N, 3, 1, 2, 4\], got torch.{came}"):
            FIELD.check_stored(wrong)


def test_wrong_facts_are_refused():
    for shape in [(1, 2, 4), (None, 1, 2, 4)]:
        with pytest.raises(UserError, match=r"A video has the shape \[T, C, H, W\], got "):
            Video(shape)
    with pytest.raises(UserError, match="positive number of pictures a second, got 0"):
        Video((3, 1, 2, 4), fps=0)
