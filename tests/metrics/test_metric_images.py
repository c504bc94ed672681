"""Pixels: the conversion to uint8, grids and png files."""

import numpy as np
import pytest
import torch

from genlab.extractors.checksums import tensors_checksum
from genlab.fields.drawing import image_grid, save_png, to_rgb
from genlab.fields.image import to_uint8
from genlab.files import write_atomic


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_uint8_inverts_the_normalisation_of_every_byte(dtype):
    byte = torch.arange(256)
    torch.testing.assert_close(to_uint8(byte.to(dtype) / 127.5 - 1), byte.to(torch.uint8))


def test_to_uint8_cuts_off_what_is_out_of_range():
    x = torch.tensor([-1.0, -3.0, 0.0, 1.0, 5.0, float("inf"), float("-inf"), float("nan")])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 255, 0, 0]


def test_grid_places_images_row_by_row_and_enlarges_small_ones():
    x = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 1, 8, 8) * 10
    grid = image_grid(x, nrow=4, gap=2)
    assert grid.dtype == np.uint8 and grid.shape[2] == 3
    assert 512 <= grid.shape[1] < 512 + 4 * 8
    cell = (grid.shape[1] + 2) // 4
    assert grid.shape[0] == 2 * cell - 2
    for i in range(7):
        centre = (i // 4) * cell + cell // 2, (i % 4) * cell + cell // 2
        assert grid[centre].tolist() == [10 * i] * 3
    assert (grid[cell:, 3 * cell :] == 255).all()  # the eighth place is empty


def test_grid_enlarges_by_whole_pixels():
    x = torch.randint(0, 256, (1, 1, 16, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = image_grid(x, min_width=51, gap=0)
    np.testing.assert_array_equal(grid[:, :, 0], np.kron(x[0, 0].numpy(), np.ones((3, 3))))


def test_grid_interpolates_tiny_images_within_their_range():
    x = torch.tensor([[[[0, 255], [255, 0]]]], dtype=torch.uint8)
    grid = image_grid(x, min_width=6, gap=0)
    assert grid.shape == (6, 6, 3) and grid[0, 0, 0] < 30 and grid[0, 5, 0] > 225 and len(np.unique(grid)) > 2
    np.testing.assert_array_equal(image_grid(x, min_width=2, gap=0)[:, :, 0], x[0, 0])


def test_large_and_non_square_images_keep_their_size():
    grid = image_grid(torch.zeros(2, 3, 40, 600, dtype=torch.uint8), nrow=1, gap=0)
    assert grid.shape == (80, 600, 3)


def test_grid_refuses_floats():
    with pytest.raises(ValueError, match="uint8"):
        image_grid(torch.zeros(1, 1, 8, 8))


def test_rgb_repeats_grey():
    grey = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (to_rgb(grey) == grey).all() and to_rgb(grey).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="1 or 3"):
        to_rgb(torch.zeros(2, 4, 4, 4))


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (5, 7)])
def test_png_round_trip(tmp_path, shape):
    from PIL import Image

    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = save_png(tmp_path / "new" / "grid.png", array)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), array.squeeze())
    assert [each.name for each in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_checksum_sees_values_names_types_and_shapes():
    base = {"a": torch.zeros(2, 3), "n": torch.tensor(1)}
    same = {"n": torch.tensor(1), "a": torch.zeros(3, 2).T}
    assert tensors_checksum(base) == tensors_checksum(same)
    others = [
        {"b": base["a"], "n": base["n"]},
        base | {"a": torch.zeros(3, 2)},
        base | {"a": torch.zeros(2, 3).bfloat16()},
        base | {"a": torch.tensor([[0, 0, 0], [0, 0, 1e-30]])},
    ]
    assert len({tensors_checksum(each) for each in (base, *others)}) == 5
