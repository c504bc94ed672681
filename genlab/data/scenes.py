"""Scenes of coloured shapes: pictures or videos, with factors, captions, boxes, keypoints and class maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genlab.data.columns import Ragged, Rows, Stored
from genlab.data.module import ArrayData
from genlab.data.objects import (
    COLOURS,
    HALF,
    PLACES,
    SIZES,
    STYLES,
    Objects,
    behind,
    direction,
    draw_objects,
    move_objects,
    random_objects,
)
from genlab.data.shapes import CLASSES, HELD_OUT
from genlab.data.store import ArrayStore, cached_array, digest
from genlab.errors import UserError
from genlab.seeding import stable_seed

_FORMAT = "genlab-scenes-1"  # part of every key of the cache; change it whenever the pictures change
MOST_OBJECTS = 8
PIXELS_AT_A_TIME = 2**16  # that are drawn, few enough for the cache of a core

WHERE = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")  # in the order of `PLACES`
RELATIONS = ("left of", "right of", "above", "below")  # likewise
WORDS = ("a", *SIZES, *COLOURS, *CLASSES, "on", "at", "in", "the", *PLACES, "above", "below", "of")
ATTRIBUTES = (*CLASSES, *COLOURS, *SIZES, *PLACES)
FACTORS = ("x", "y", "scale")  # of each object
POINTS = ("centre", "top", "bottom", "left", "right")  # of each object


def column_facts(objects: int, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """The facts about the columns beside samples and labels, by name; `configs/data/scenes.yaml` states the same.

    Args:
        objects: Largest number of objects, K.
        size: Height and width in pixels.
    """
    factors, points = number_names(FACTORS, objects), number_names(POINTS, objects)
    shapes = {"size": len(CLASSES), "names": CLASSES}
    layout = {"size": len(CLASSES) + 1, "names": ("background", *CLASSES)}
    words = {"size": len(WORDS), "names": WORDS, "most": 6 * objects + 1}
    return {
        "factor": {"kind": "attributes", "shape": (len(factors),), "names": factors, "value_range": (-1.0, 1.0)},
        "attributes": {"kind": "attributes", "shape": (len(ATTRIBUTES),), "names": ATTRIBUTES},
        "caption": {"kind": "tokens", "shape": (None,), **words},
        "boxes": {"kind": "boxes", "shape": (objects, 5), **shapes, "most": objects},
        "keypoints": {"kind": "keypoints", "shape": (len(points), 3), "names": points},
        "layout": {"kind": "layout", "shape": size, **layout},
        "mask": {"kind": "layout", "shape": size, "size": objects + 1},
    }


def number_names(names: Sequence[str], n: int) -> tuple[str, ...]:
    """The names for each of n things, "x 1", "y 1", "x 2", "y 2"; as they are for one thing."""
    return tuple(names) if n == 1 else tuple(f"{name} {i + 1}" for i in range(n) for name in names)


def attributes(objects: Objects) -> Tensor:
    """Which of `ATTRIBUTES` occur in each picture, uint8 [N, A]."""
    chosen = ((objects.shape, CLASSES), (objects.colour, COLOURS), (objects.large, SIZES), (objects.place, PLACES))
    true = [numbers.unsqueeze(2) == torch.arange(len(names)) for numbers, names in chosen]
    return (torch.cat(true, dim=2) & objects.there.unsqueeze(2)).any(dim=1).to(torch.uint8)


def captions(objects: Objects) -> Ragged:
    """Sentences about the pictures, int32 indices into `WORDS`.

    Size, colour and shape of each object; the place of the first, and where each is in relation to the next:
    "a large red ellipse on the left above a small blue rectangle".
    """
    places, relations = _indices(WHERE), _indices(RELATIONS)
    chosen = (
        ("a", torch.zeros_like(objects.shape)),
        ("small", objects.large),
        ("red", objects.colour),
        ("ellipse", objects.shape),
    )
    nouns = torch.stack([WORDS.index(first) + number for first, number in chosen], dim=2)
    others = relations[direction((objects.centre[:, :-1] - objects.centre[:, 1:]) * objects.span)]
    others = torch.cat([others, nouns[:, 1:]], dim=2).masked_fill(~objects.there[:, 1:, None], -1)
    words = torch.cat([nouns[:, 0], places[objects.place[:, 0]], others.flatten(1)], dim=1)
    said = words >= 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), said.sum(dim=1).cumsum(0)])
    return Ragged(words[said].int(), offsets)


def _indices(phrases: Sequence[str]) -> Tensor:
    """Indices of phrases into `WORDS`, one phrase a row, -1 after the end of short ones."""
    return pad_sequence([torch.tensor([WORDS.index(word) for word in p.split()]) for p in phrases], True, -1)


def boxes(objects: Objects) -> Tensor:
    """Class, left, top, width and height relative to the picture, float32 [N, K, 5]; (-1, 0, 0, 0, 0) for none."""
    (x, y), (w, h) = objects.centre.unbind(dim=2), objects.half.unbind(dim=2)
    found = torch.stack([objects.shape.double(), (1 + x - w) / 2, (1 - y - h) / 2, w, h], dim=2)
    none = torch.tensor([-1.0, 0, 0, 0, 0], dtype=torch.float64)
    return torch.where(objects.there.unsqueeze(2), found, none).float()


def keypoints(objects: Objects) -> Tensor:
    """x, y and 1 for each of the `POINTS` that is not behind another object, else 0, 0, 0: float32 [N, 5 K, 3]."""
    ends = torch.tensor([[[0, 0], [0, h], [0, -h], [-w, 0], [w, 0]] for w, h in HALF], dtype=torch.float64)
    ends[CLASSES.index("triangle"), 3:, 1] = -HALF[CLASSES.index("triangle")][1]  # its left and right end are below
    offsets = ends[objects.shape] * objects.radius[..., None, None] / objects.span.unsqueeze(2)
    points = objects.centre.unsqueeze(2) + offsets  # [N, K, 5, 2]
    seen = objects.there.unsqueeze(2) & ~behind(objects, points)
    x, y = points.unbind(dim=3)
    found = torch.stack([(1 + x) / 2, (1 - y) / 2, torch.ones_like(x)], dim=3)
    return (found * seen.unsqueeze(3)).flatten(1, 2).float()


class Scenes(ArrayData):
    """Pictures or videos of coloured ellipses, rectangles and triangles, and columns that describe them.

    All columns are made of one description, `Objects`; those of a video describe its first frame. The label is the
    shape of the first object; `factor` holds the centre of each object, to the right and upwards, and its scale;
    `layout` and `mask` say which shape and which object each pixel shows. The splits are the same in every run, and a
    longer training split begins with the shorter one. Each style has scenes of its own, so that two styles are two
    domains without pairs. There is no `flip`: captions would be wrong.

    Args:
        num_train: Pictures for training.
        objects: Largest number of objects in a picture, K, from 1 to 8.
        frames: Length of videos; None: pictures.
        style: filled or clean: plain colours; outline: rims alone; warm, cold: the picture in a tinted light; textured:
            striped objects.
        columns: Facts about the columns beside samples and labels, see `column_facts`; batches have only those that are
            named here. None: all.

    The other arguments are those of `ArrayData`.

    Raises:
        UserError: If an argument is out of its range, or `columns` contradicts the data.
    """

    name = "scenes"
    class_names = CLASSES

    def __init__(
        self,
        *,
        batch_size: int,
        num_train: int = 10_000,
        objects: int = 2,
        frames: int | None = None,
        style: str = "filled",
        shape: Sequence[int | None] | None = None,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        kind: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        root: str | Path | None = None,
        labels: bool = True,
        limit_train: int | None = None,
        columns: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        _check_whole("num_train", num_train, 10000)
        _check_whole("objects", objects, 2, MOST_OBJECTS)
        if frames is not None:
            _check_whole("frames", frames, 8)
        if not isinstance(style, str) or style not in STYLES:
            raise UserError(f"data.style must be one of {', '.join(STYLES)}, got {style!r}. Try data.style=outline.")
        if channels != 3:
            raise UserError(f"Scenes are in colour, got data.channels={channels}. Try data.channels=3.")
        self.num_train, self.objects, self.frames, self.style = num_train, objects, frames, style
        picture = self._image_shape(None, image_size, channels)
        own = picture if frames is None else (frames, *picture)
        if shape is not None and tuple(shape) != own:
            raise UserError(f"Scenes have the shape {list(own)}, got data.shape={list(shape)}. Set data.image_size.")
        self.kind = "image" if frames is None else "video"
        facts = column_facts(objects, (picture[1], picture[2]))
        super().__init__(
            batch_size=batch_size,
            shape=own,
            channels=channels,
            kind=kind,
            num_classes=num_classes,
            seed=seed,
            root=root,
            labels=labels,
            limit_train=limit_train,
            columns=facts if columns is None else columns,
        )
        for name, known in facts.items():
            if name in self._spec.fields:
                self._found(name, **{fact: value for fact, value in known.items() if fact != "kind"})

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        with _one_thread():
            return {split: self._store(split, n) for split, n in {"train": self.num_train, **HELD_OUT}.items()}

    def _store(self, split: str, n: int) -> ArrayStore:
        rng = np.random.RandomState(stable_seed(self.name, self.style, split) % 2**32)
        objects = random_objects(rng, n, self.objects, self.size)
        columns: dict[str, Tensor | Stored] = {
            **self._pictures(split, objects),
            "y": objects.shape[:, 0],
            "factor": torch.cat([objects.centre, objects.scale.unsqueeze(2)], dim=2).flatten(1).float(),
            "attributes": attributes(objects),
            "caption": captions(objects),
            "boxes": boxes(objects),
            "keypoints": keypoints(objects),
        }
        return ArrayStore({name: column for name, column in columns.items() if name == "y" or name in self.spec.fields})

    def _pictures(self, split: str, objects: Objects) -> dict[str, Rows]:
        """Samples and maps, kept in the cache as one array: all samples, then all maps."""
        n, frames = len(objects.there), self.frames or 1
        shapes = {"x": (n, frames, 3, *self.size), "layout": (n, *self.size), "mask": (n, *self.size)}
        sizes = [math.prod(shape) for shape in shapes.values()]

        def parts(array: np.ndarray) -> dict[str, Tensor]:
            pieces = zip(shapes.items(), torch.from_numpy(array).split(sizes), strict=True)
            return {name: piece.view(shape) for (name, shape), piece in pieces}

        def fill(array: np.ndarray) -> dict[str, Any]:
            at_a_time = max(1, PIXELS_AT_A_TIME // math.prod(self.size))
            pieces = [part.split(at_a_time) for part in parts(array).values()]
            for some, x, layout, mask in zip(objects.split(at_a_time), *pieces, strict=True):
                for t, moment in enumerate(move_objects(some, frames)):
                    x[:, t], maps = draw_objects(moment, self.size, self.style)
                    if t == 0:
                        layout[:], mask[:] = maps.unbind(dim=1)
            return {}

        facts = (_FORMAT, split, n, self.objects, self.frames, self.style, self.size)
        array, note = cached_array(digest(repr(facts).encode()), (sum(sizes),), fill)
        found = parts(array)
        found["x"] = found["x"] if self.frames else found["x"].squeeze(1)
        return {name: Rows(part, digest=digest(note["digest"].encode(), name.encode())) for name, part in found.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread within: two draw a little faster, but beside a busy process were up to 30 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_whole(key: str, value: Any, cure: int, most: int | None = None) -> None:
    """Refuses numbers that are not whole, or not from 1 to `most`.

    Raises:
        UserError: Names the key and a cure.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        upper = "1 or more" if most is None else f"from 1 to {most}"
        raise UserError(f"data.{key} must be a whole number, {upper}, got {value!r}. Try data.{key}={cure}.")
