"""Sound as a wave."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.fields.sequences import apart, cut, random_lengths, together
from genlab.fields.typed import files_at
from genlab.files import write_atomic

CELL = (65, 128)  # height and width of a picture; an odd height has a middle row
INK = 34


@dataclass(frozen=True)
class Wave(Field):
    """Samples of a sound: int16 in the store, float32 in [-1, 1] for a model (x / 32768).

    The shape (T,) is that of sounds of one length, [N, T]; (None,) that of sounds of any, a `Seq` [N, T].

    Attributes:
        rate: Samples a second.
    """

    kind: ClassVar[str] = "wave"
    suffixes: ClassVar[tuple[str, ...]] = (".wav",)
    pictured: ClassVar[bool] = True

    value_range: tuple[float, float] | None = (-1.0, 1.0)
    rate: int = 16000

    def __post_init__(self) -> None:
        if len(self.shape) != 1:
            raise UserError(f"A wave has the shape [T], or [null] for any length, got {list(self.shape)}.")
        if self.rate < 1:
            raise UserError(f"The rate of a wave is a positive number of samples a second, got {self.rate}.")

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not int16: [N, T], or all samples joined, [S]."""
        if stored.dtype != torch.int16 or stored.dim() < 1 or stored.shape[1:] != self.fixed_shape:
            kept = "[S], all sounds joined" if self.ragged else f"[N, {self.shape[0]}]"
            raise ValueError(f"Waves must be int16 {kept}, got {stored.dtype} {list(stored.shape)}.")

    def normalise(self, stored: Tensor) -> Tensor:
        """int16 to float32 in [-1, 1)."""
        return stored.float() / 32768

    def stored(self, values: Tensor) -> Tensor:
        """float to the nearest int16."""
        return (values.float() * 32768).round().clamp(-32768, 32767).to(torch.int16)

    def random(self, n: int, rng: torch.Generator) -> Column:
        """White noise, uniform in [-1, 1]."""
        if not self.ragged:
            return 2 * torch.rand(n, *self.fixed_shape, generator=rng) - 1
        length = random_lengths(n, self.most, rng)
        return cut(2 * torch.rand(n, int(length.max()), generator=rng) - 1, length)

    def text(self, values: Column) -> list[str]:
        """Their durations."""
        return [f"{len(value) / self.rate:.2f} s at {self.rate} Hz" for value in apart(values)]

    def cells(self, values: Column) -> Tensor:
        """The outlines, dark on white: time to the right, in each column the smallest to the largest sample, +1 above.

        Sounds of different lengths have one scale of time.
        """
        sounds = values if isinstance(values, Tensor) else values.values
        height, width = CELL
        x = sounds.float().cpu().clamp(-1, 1).unsqueeze(1)
        high, low = F.adaptive_max_pool1d(x, width), -F.adaptive_max_pool1d(-x, width)  # [N, 1, width]
        top, bottom = (((1 - v) / 2 * (height - 1)).round() for v in (high, low))
        rows = torch.arange(height)[:, None]
        cells = torch.where((rows >= top) & (rows <= bottom), INK, 255).to(torch.uint8)
        return cells.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()

    def parse(self, text: str, n: int) -> Column:
        """n sounds of a wav file, or of a folder's in the order of their names; channels are averaged.

        Where sounds have one length, longer ones are cut and shorter ones followed by silence.
        """
        sounds = [self._fitted(self._read(path), path) for path in files_at(text, self.suffixes, "sounds")[:n]]
        rows = spread(len(sounds), n)
        return together(sounds).rows(rows) if self.ragged else torch.stack(sounds)[rows]

    def _read(self, path: Path) -> Tensor:
        sound, rate = read_wav(path)
        if rate != self.rate:
            raise UserError(f"{path} has {rate} samples a second, and the data have {self.rate}")
        return self.normalise(sound)

    def _fitted(self, sound: Tensor, path: Path) -> Tensor:
        if not self.ragged:
            return F.pad(sound, (0, self.fixed_shape[0] - len(sound)))  # a negative padding cuts
        if self.most is not None and len(sound) > self.most:
            raise UserError(f"{path} has {len(sound)} samples, more than the {self.most} of the longest in the data")
        return sound

    def write(self, values: Column, path: Path) -> Path:
        """A folder of wav files with 16 bits a sample, 000000.wav, 000001.wav, ..."""
        for i, value in enumerate(apart(values)):
            samples = self.stored(value).numpy().astype("<i2")
            write_atomic(path / f"{i:06d}.wav", partial(self._save, samples.tobytes()))
        return path

    def _save(self, data: bytes, file: BinaryIO) -> None:
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(self.rate)
            out.writeframes(data)


def read_wav(path: Path) -> tuple[Tensor, int]:
    """The sound in a wav file with 8 or 16 bits a sample. A file that was cut off is read as far as it goes.

    Returns:
        The samples, int16 [T] with T >= 1, and how many there are a second. Channels are averaged; a sample v of 8 bits
        becomes 256 (v - 128).

    Raises:
        UserError: If it is no wav file, has other bits, or holds no sound.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as a wav file: {str(error) or 'it is cut off'}") from error
    if width not in (1, 2):
        raise UserError(f"{path} has {8 * width} bits a sample; 8 and 16 can be read")
    data = data[: len(data) - len(data) % (channels * width)]  # a file that was cut off may end within a frame
    if not data:
        raise UserError(f"{path} holds no sound")
    samples = np.frombuffer(data, np.uint8 if width == 1 else "<i2").astype(np.int32)
    samples = 256 * (samples - 128) if width == 1 else samples
    mean = samples if channels == 1 else np.rint(samples.reshape(-1, channels).mean(axis=1))
    return torch.from_numpy(mean.astype(np.int16)), rate
