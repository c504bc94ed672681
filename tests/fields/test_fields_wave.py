"""Sound: 16 bits to [-1, 1] and back, wav files, outlines."""

import math
import wave

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from genlab.batch import Seq
from genlab.errors import UserError
from genlab.fields.sequences import together
from genlab.fields.wave import CELL, INK, Wave

DENSE = Wave((4,), rate=8000)
RAGGED = Wave((None,), rate=8000, most=6)
STORED = torch.tensor([-32768, -1, 0, 32767], dtype=torch.int16)


def save(path, frames, rate=8000, channels=1, width=2):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(frames, {1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return str(path)


def test_normalising_is_exact():
    values = torch.tensor([-1, -(2.0**-15), 0, 1 - 2.0**-15])
    assert_close(RAGGED.normalise(STORED), values, rtol=0, atol=0)


def test_files_hold_what_was_stored(tmp_path):
    values = together([DENSE.normalise(STORED), DENSE.normalise(STORED[1:3])])
    folder = RAGGED.write(values, tmp_path / "sounds")
    assert sorted(p.name for p in folder.iterdir()) == ["000000.wav", "000001.wav"]
    with wave.open(str(folder / "000000.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == STORED.tolist()
    again = RAGGED.parse(str(folder), 2)
    assert isinstance(again, Seq) and again.length.tolist() == [4, 2]
    assert_close(again.values, values.values, rtol=0, atol=0)


def test_loud_samples_are_clipped_when_written(tmp_path):
    folder = DENSE.write(torch.tensor([[1.0, 1.5, -2.0, 0.5]]), tmp_path / "sounds")
    assert_close(DENSE.parse(str(folder), 1), torch.tensor([[1 - 2.0**-15, 1 - 2.0**-15, -1, 0.5]]), rtol=0, atol=0)


def test_samples_are_rounded_when_written(tmp_path):
    folder = DENSE.write(torch.tensor([[1.6, 1.4, -1.6, -1.4]]) / 32768, tmp_path / "sounds")
    assert (DENSE.parse(str(folder), 1) * 32768).tolist() == [[2, 1, -2, -1]]


def test_dense_sounds_are_cut_or_followed_by_silence(tmp_path):
    save(tmp_path / "a.wav", [16384] * 9)
    save(tmp_path / "b.wav", [-16384] * 2)
    typed = DENSE.parse(str(tmp_path), 4)
    assert typed.tolist() == [[0.5] * 4, [0.5] * 4, [-0.5, -0.5, 0, 0], [-0.5, -0.5, 0, 0]]
    assert DENSE.parse(str(tmp_path), 1).tolist() == [[0.5] * 4]


def test_eight_bits_and_two_channels(tmp_path):
    assert DENSE.parse(save(tmp_path / "a.wav", [0, 128, 192, 64], width=1), 1).tolist() == [[-1, 0, 0.5, -0.5]]
    stereo = [[16384, 0], [0, -32768], [32767, 32767], [-8192, 8192]]
    found = DENSE.parse(save(tmp_path / "b.wav", stereo, channels=2), 1)
    assert_close(found, torch.tensor([[0.25, -0.5, 32767 / 32768, 0]]), rtol=0, atol=0)


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    for data, sentence in [
        (b"no sound at all, but long enough", "a.wav cannot be read as a wav file: "),
        (b"", "a.wav cannot be read as a wav file: it is cut off$"),
    ]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            DENSE.parse(str(path), 1)
    for arguments, sentence in [
        ({"rate": 44100}, "a.wav has 44100 samples a second, and the data have 8000$"),
        ({"width": 4}, "a.wav has 32 bits a sample; 8 and 16 can be read$"),
    ]:
        with pytest.raises(UserError, match=sentence):
            DENSE.parse(save(path, [1, 2, 3], **arguments), 1)
    with pytest.raises(UserError, match="a.wav holds no sound$"):
        DENSE.parse(save(path, []), 1)
    with pytest.raises(UserError, match="a.wav has 7 samples, more than the 6 of the longest in the data$"):
        RAGGED.parse(save(path, [0] * 7), 1)
    with pytest.raises(UserError, match="is no file and no folder$"):
        DENSE.parse(str(tmp_path / "b.wav"), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no sounds \(.wav\)$"):
        DENSE.parse(str(tmp_path / "empty"), 1)


def test_a_file_that_was_cut_off_within_a_frame_is_read_until_there(tmp_path):
    path = tmp_path / "a.wav"
    save(path, [16384] * 8, channels=2)
    path.write_bytes(path.read_bytes()[:-5])  # of four frames, two and three quarters are left
    assert DENSE.parse(str(path), 1).tolist() == [[0.5, 0.5, 0, 0]]


def test_outlines():
    """One period of a sine over the whole width: the upper half of the cell, then the lower half."""
    height, width = CELL
    times = torch.arange(100 * width) / (100 * width)
    cell = Wave((len(times),)).cells(torch.sin(2 * math.pi * times)[None])[0]
    assert cell.shape == (3, height, width) and cell.unique().tolist() == [INK, 255]
    middle = (height - 1) // 2
    ink = cell[0] == INK
    assert not bool(ink[middle + 1 :, : width // 2].any()) and not bool(ink[:middle, width // 2 :].any())
    assert ink[0].nonzero().flatten().float().mean() == width / 4 - 0.5  # the crest, at a quarter
    assert ink[-1].nonzero().flatten().float().mean() == 3 * width / 4 - 0.5
    assert bool(ink.any(dim=0).all())


def test_an_outline_spans_what_a_column_holds():
    cell = Wave((256,)).cells(torch.tensor([-0.5, 1.0]).repeat(128)[None])[0, 0]
    assert bool(((cell == INK) == (torch.arange(65) <= 48)[:, None]).all())  # from 1 down to -1/2


def test_short_and_ragged_sounds_have_outlines():
    values = together([torch.full((2,), 0.5), torch.full((4,), -0.5)])
    one, other = RAGGED.cells(values)[:, 0] == INK
    assert one.int().argmax(dim=0).tolist() == [16] * 64 + [32] * 64  # half as long: then silence, on one time scale
    assert other.int().argmax(dim=0).tolist() == [48] * 128


def test_texts_are_durations():
    assert Wave((4000,), rate=8000).text(torch.zeros(1, 4000)) == ["0.50 s at 8000 Hz"]
    assert RAGGED.text(together([torch.zeros(80), torch.zeros(800)])) == ["0.01 s at 8000 Hz", "0.10 s at 8000 Hz"]


def test_random_noise_lies_in_its_range():
    drawn = DENSE.random(500, torch.Generator().manual_seed(0))
    assert_close(torch.stack([drawn.min(), drawn.max(), drawn.mean()]), torch.tensor([-1.0, 1, 0]), rtol=0, atol=0.05)


def test_what_may_be_stored():
    RAGGED.check_stored(STORED)
    DENSE.check_stored(STORED[None])
    with pytest.raises(ValueError, match=r"int16 \[S\], all sounds joined, got torch.float32 \[4\]"):
        RAGGED.check_stored(STORED.float())
    with pytest.raises(ValueError, match=r"int16 \[N, 4\], got torch.int16 \[1, 3\]"):
        DENSE.check_stored(STORED[None, :3])


def test_wrong_facts_are_refused():
    with pytest.raises(UserError, match=r"A wave has the shape \[T\], or \[null\] for any length, got \[1, 8\]"):
        Wave((1, 8))
    with pytest.raises(UserError, match="positive number of samples a second, got 0"):
        Wave((8,), rate=0)
