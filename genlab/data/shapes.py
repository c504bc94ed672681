"""Shaded shapes with known factors of variation, and training batches in which only one factor varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Batch
from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.data.stream import Stream
from genlab.errors import UserError
from genlab.seeding import stable_seed

FACTORS = ("x", "y", "rotation", "scale", "light")  # the columns of `Batch.factor`
CLASSES = ("ellipse", "rectangle", "triangle")
HELD_OUT = {"val": 1000, "test": 2000}
REACH = 0.45  # largest offset of the centre; the shorter side of the image spans [-1, 1]
TURN = math.pi / 4  # largest rotation; the shapes repeat after a half turn or more, so each rotation looks different
RADII = (0.3, 0.5)  # smallest and largest circumscribed circle; REACH + RADII[1] < 1: no shape is cut off
TILT = math.radians(75)  # largest tilt of the light, to the left and to the right
ASPECT = 0.6  # shorter side / longer side of ellipse and rectangle
AMBIENT = 0.25  # brightness of unlit parts
DOME = 0.8  # height of the surface's normals: a shape is shaded as a dome over its circle
AT_A_TIME = 256  # images rendered at once, few enough for the cache of a core


def render(factor: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of shapes, shaded as domes by Lambert's law; computed in float64, to be equal on all machines.

    Args:
        factor: `FACTORS` [N, 5], each in [-1, 1]. Larger values: further right, further up, turned counter-clockwise,
            larger, lit from the right.
        label: Indices into `CLASSES`, [N].
        size: Height and width in pixels.

    Returns:
        uint8 [N, 1, H, W]; the background is 0.
    """
    parts = zip(factor.double().split(AT_A_TIME), label.split(AT_A_TIME), strict=True)
    return torch.cat([(255 * _shaded(*part, size)).round().to(torch.uint8).unsqueeze(1) for part in parts])


def _shaded(factor: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Brightness [N, H, W] in [0, 1]."""
    dx, dy = _offsets(factor, size)
    tilt = TILT * factor[:, 4, None, None]
    toward = tilt.sin() * dx + tilt.cos() * DOME
    lit = (toward / (dx.square() + dy.square() + DOME**2).sqrt()).clamp_min(0)
    return coverage(factor, label, size) * (AMBIENT + (1 - AMBIENT) * lit)


def coverage(factor: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each pixel covered by the shape, [N, H, W] float64, from the signed distance; arguments as `render`."""
    dx, dy = _offsets(factor, size)
    angle = TURN * factor[:, 2, None, None].double()
    u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx  # rotated into the shape's axes
    distances = torch.stack([ellipse(u, v), rectangle(u, v), triangle(u, v)])
    distance = distances[label, torch.arange(len(label))] * _radius(factor)
    return (0.5 - distance * min(size) / 2).clamp(0, 1)


def _radius(factor: Tensor) -> Tensor:
    return RADII[0] + (RADII[1] - RADII[0]) * (factor[:, 3, None, None].double() + 1) / 2


def _offsets(factor: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Offsets of the pixels from the shape's centre, in radii: to the right [N, 1, W] and upwards [N, H, 1]."""
    height, width = size
    across = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) * (2 / min(size))
    up = (height / 2 - 0.5 - torch.arange(height, dtype=torch.float64)[:, None]) * (2 / min(size))
    x, y = (REACH * factor[:, k, None, None].double() for k in (0, 1))
    return (across - x) / _radius(factor), (up - y) / _radius(factor)


def ellipse(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to the ellipse with half-axes 1 and ASPECT, to first order: f / |grad f|."""
    near = (u.square() + (v / ASPECT).square()).sqrt()
    steep = (u.square() + (v / ASPECT**2).square()).sqrt()
    return near * (near - 1) / steep.clamp_min(1e-12)


def rectangle(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to the rectangle of side ratio ASPECT in the unit circle; approximate beyond the corners."""
    half = 1 / math.hypot(1, ASPECT)
    return torch.maximum(u.abs() - half, v.abs() - ASPECT * half)


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to the triangle (1, 0), (-0.8, 0.6), (-0.8, -0.6) in the unit circle; likewise approximate."""
    length = math.hypot(1.8, 0.6)
    return torch.maximum(-u - 0.8, (0.6 * u + 1.8 * v.abs() - 0.6) / length)


class GroupedStream(Stream):
    """Endless batches of fresh shapes; only one factor varies in each. Kulkarni et al. (2015), section 3.1.

    As in any `Stream`, batch `i` is a pure function of (seed, name, i). It draws the factor that varies
    (`Batch.group`), one value of each other factor for the batch, and a value of the varying factor for each sample.
    The values are uniform.

    Args:
        ratio: Weights [F + 1] of the choice between the F factors and, last, the class.
        *args: Arguments of `Stream`.
        **kwargs: Arguments of `Stream`.
    """

    def __init__(self, ratio: Sequence[float], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ratio, self._rng = torch.tensor(ratio, dtype=torch.float64), torch.Generator()

    def batch(self, i: int) -> Batch:
        """Batch number `i`: this process's share."""
        rng, n = self._rng, self.chunks.of(i) * self.batch_size
        rng.manual_seed(stable_seed(self.seed, self.name, "group", i))
        group = torch.multinomial(self._ratio, 1, generator=rng)[0]
        factor = (2 * torch.rand(1, len(FACTORS), generator=rng) - 1).repeat(n, 1)
        label = torch.randint(len(CLASSES), (1,), generator=rng).repeat(n)
        if group < len(FACTORS):
            factor[:, group] = 2 * torch.rand(n, generator=rng) - 1
        else:
            label = torch.randint(len(CLASSES), (n,), generator=rng)
        factor, label = self._share(factor), self._share(label)
        rows = {"x": render(factor, label, (self.spec.shape[1], self.spec.shape[2])), "y": label, "factor": factor}
        batch = self._finished(i, {name: value.to(self.device) for name, value in rows.items()})
        return batch.with_column("group", group.repeat(len(batch)).to(self.device))


class Shapes(ArrayData):
    """Rendered grey images of an ellipse, a rectangle or a triangle, lit from the side, with known factors.

    The factors in `Batch.factor` are position, rotation, scale and light, independent and uniform on [-1, 1]; the label
    is the shape. The splits are the same in every run. There is no `flip`: a mirrored image would have wrong factors.

    Args:
        num_train: Images for training.
        grouped: Train on batches of fresh images in which only one factor varies, see `GroupedStream`. The splits, and
            the batches that initialise a model, remain independent images.
        ratio: Relative frequency with which each of `FACTORS` and "shape" varies; None: all equal.

    The other arguments are those of `ArrayData`.

    Raises:
        UserError: If `ratio` has an unknown name or an invalid weight, or another argument is out of its range.
    """

    name = "shapes"
    class_names = CLASSES
    factor_names = FACTORS

    def __init__(
        self,
        *,
        batch_size: int,
        num_train: int = 10_000,
        grouped: bool = False,
        ratio: Mapping[str, float] | None = None,
        shape: Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = 32,
        channels: int = 1,
        kind: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        root: str | Path | None = None,
        labels: bool = True,
        binarize: str = "none",
        limit_train: int | None = None,
    ) -> None:
        if isinstance(num_train, bool) or not isinstance(num_train, int) or num_train < 1:
            raise UserError(f"data.num_train must be at least 1, got {num_train!r}. Try data.num_train=10000.")
        if channels != 1:
            raise UserError(f"Shapes are grey, got data.channels={channels}. Try data.channels=1.")
        if not isinstance(grouped, bool):
            raise UserError(f"data.grouped must be true or false, got {grouped!r}.")
        self._num_train, self.grouped, self._ratio = num_train, grouped, _weights(ratio)
        super().__init__(
            batch_size=batch_size,
            shape=shape,
            image_size=image_size if shape is None else None,
            channels=channels,
            kind=kind,
            num_classes=num_classes,
            seed=seed,
            root=root,
            labels=labels,
            binarize=binarize,
            limit_train=limit_train,
        )

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        stores = {}
        for split, n in {"train": self._num_train, **HELD_OUT}.items():
            rng = np.random.RandomState(stable_seed(self.name, split) % 2**32)
            factor = torch.from_numpy(rng.uniform(-1, 1, (n, len(FACTORS))).astype(np.float32))
            label = torch.from_numpy(rng.randint(len(CLASSES), size=n).astype(np.int64))
            stores[split] = ArrayStore({"x": render(factor, label, self.size), "y": label, "factor": factor})
        return stores

    def stream(
        self, start: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str | None = None
    ) -> Stream:
        """The training batches from number `start` on."""
        if not self.grouped:
            return super().stream(start, rank, world_size, device)
        where = {"start": start, "rank": rank, "world_size": world_size, "device": device}
        return self._made(
            partial(GroupedStream, self._ratio),
            self.split("train"),
            batches_per_step=self.batches_per_step,
            resident_bytes=0,  # the images are rendered anew, so the store is not copied to the device
            **where,
        )


def _weights(ratio: Mapping[str, float] | None) -> list[float]:
    """Weights [F + 1] of `FACTORS` and, last, the shape; 0 for names that `ratio` leaves out."""
    names = (*FACTORS, "shape")
    if ratio is None:
        return [1.0] * len(names)
    unknown = [str(name) for name in ratio if name not in names]
    weights = [ratio.get(name, 0) for name in names]
    plain = all(isinstance(w, (int, float)) and math.isfinite(w) and w >= 0 for w in weights)
    if unknown or not plain or not any(weights):
        raise UserError(
            f"data.ratio must hold weights >= 0, not all 0, of {', '.join(names)}, got {dict(ratio)}. "
            "Try data.ratio.shape=2."
        )
    return [float(w) for w in weights]
