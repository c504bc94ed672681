"""Conditions as numbers: the columns of a batch as one vector, or as maps, each by the kind of its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch, Between, Column, Seq
from genlab.errors import UserError
from genlab.fields.attributes import Attributes
from genlab.fields.base import Field
from genlab.fields.boxes import Boxes
from genlab.fields.image import Image
from genlab.fields.keypoints import Keypoints
from genlab.fields.kinds import make_field
from genlab.fields.label import one_hot
from genlab.fields.layout import Layout
from genlab.fields.masked import Masked
from genlab.fields.points import Points
from genlab.fields.tokens import Tokens
from genlab.fields.video import Video
from genlab.losses.numerics import exact

Facts = Mapping[str, Mapping[str, Any]]  # of each column, the plain facts of its field, see `Field.to_dict`
Planes = tuple[tuple[int, ...], Callable[[Any], Tensor], str]

WORD_WIDTH = 32  # of a word's embedding
SLOPE = 0.2  # of the leaky ReLUs
PICTURE_WIDTH = 64  # of a picture's vector
BUMP = 1 / 16  # standard deviation of a keypoint's bump, as a share of the longer side; at least one pixel


class Vector(nn.Module):
    """Conditions as one vector of `width` numbers each. A label that is not known (-1) is all zeros.

    Args:
        given: The plain facts of each column's field, in the order of the numbers.
        words: How sentences are read: "mean" of their words' embeddings, or the last state of a "gru".

    Raises:
        UserError: If there are no columns, or one that makes no vector, or `words` is unknown.
    """

    def __init__(self, given: Facts, words: str = "mean") -> None:
        super().__init__()
        self.names = _checked(given, words)
        parts: list[Any] = [vector_of(make_field(facts), words) for facts in given.values()]
        self.parts, self.width = nn.ModuleList(parts), sum(part.width for part in parts)

    def forward(self, given: Batch | Between, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch with the columns -> [N, width], in the type of the network that reads it."""

        def made(rows: Batch) -> Tensor:
            vectors = [part(rows[name], dtype) for name, part in zip(self.names, self.parts, strict=True)]
            return torch.cat(vectors, dim=1)

        return given.read(made)


class Maps(nn.Module):
    """Conditions as `channels` maps each, of the size of the pictures beside them.

    Pictures and class maps stay what they are, boxes are filled, keypoints are bumps, and everything else is constant
    maps of its vector.

    Args:
        given: The plain facts of each column's field, in the order of the maps.
        words: See `Vector`.

    Raises:
        UserError: As `Vector` does.
    """

    def __init__(self, given: Facts, words: str = "mean") -> None:
        super().__init__()
        self.names = _checked(given, words)
        parts: list[Any] = [maps_of(make_field(facts), words) for facts in given.values()]
        self.parts, self.channels = nn.ModuleList(parts), sum(part.width for part in parts)

    def forward(self, given: Batch | Between, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch with the columns -> [N, channels, height, width]."""

        def made(rows: Batch) -> Tensor:
            size = height, width
            maps = [part(rows[name], dtype, size) for name, part in zip(self.names, self.parts, strict=True)]
            return torch.cat(maps, dim=1)

        return given.read(made)


def _checked(given: Facts, words: str) -> tuple[str, ...]:
    if words not in ("mean", "gru"):
        raise UserError(f"conditioning.words must be mean or gru, got {words!r}. Try conditioning.words=mean.")
    if not given:
        raise UserError("A network cannot be told nothing: model.given is empty. Try 'model.given=[y]'.")
    return tuple(given)


# --- By kind of column ------------------------------------------------------------------------------------------------


def vector_of(field: Field, words: str) -> nn.Module:
    """The module that makes vectors [N, its `width`] of a column's values: by the field's own `vector` if it has one.

    It is called with the values and the type of the result.
    """
    width = field.vector_width
    return _learned_vector(field, words) if width is None else _Calculated(width, field.vector)


@singledispatch
def maps_of(field: Field, words: str) -> nn.Module:
    """The module that makes maps [N, its `width`, H, W] of a column's values.

    It is called with the values, the type of the result and (H, W).
    """
    return _Constant(vector_of(field, words))


@singledispatch
def _learned_vector(field: Field, words: str) -> nn.Module:
    raise UserError(
        f"A column of kind {field.kind}, {field.to_dict()}, makes no vector that a network could be told. Take it out "
        "of model.given."
    )


@singledispatch
def _planes(field: Field) -> Planes:
    """Of a picture-like column: the shape (C, H, W) of its planes, what makes them, and how they are resized."""
    return field.fixed_shape, nn.Identity(), "bilinear"


@_planes.register
def _(field: Video) -> Planes:
    frames, channels, *sides = field.fixed_shape
    return (frames * channels, *sides), partial(torch.flatten, start_dim=1, end_dim=2), "bilinear"


@_planes.register
def _(field: Layout) -> Planes:
    size = _size(field)
    if not size:
        raise UserError("A class map is told one-hot, and its number of classes is not known.")
    return (size, *field.fixed_shape), partial(one_hot, size=size, dim=1), "nearest"


@_learned_vector.register(Image)
@_learned_vector.register(Masked)
@_learned_vector.register(Video)
@_learned_vector.register(Layout)
def _(field: Field, words: str) -> nn.Module:
    shape, planes, _ = _planes(field)
    return _Pictures(shape, planes)


@maps_of.register(Image)
@maps_of.register(Masked)
@maps_of.register(Video)
@maps_of.register(Layout)
def _(field: Field, words: str) -> nn.Module:
    shape, planes, mode = _planes(field)
    return _Calculated(shape[0], partial(_resized, planes=planes, mode=mode))


@_learned_vector.register(Attributes)
@_learned_vector.register(Keypoints)
@_learned_vector.register(Points)
def _(field: Field, words: str) -> nn.Module:
    return _Calculated(math.prod(field.fixed_shape), partial(torch.flatten, start_dim=1))


@maps_of.register
def _(field: Keypoints, words: str) -> nn.Module:
    return _Calculated(field.fixed_shape[0], bumps)


@_learned_vector.register
def _(field: Boxes, words: str) -> nn.Module:
    size = _size(field)
    return _Calculated(field.fixed_shape[0] * (size + 5), partial(_box_numbers, size=size))


@maps_of.register
def _(field: Boxes, words: str) -> nn.Module:
    return _Calculated(_size(field) or 1, partial(_filled, size=_size(field)))


@_learned_vector.register
def _(field: Tokens, words: str) -> nn.Module:
    if not _size(field):
        raise UserError("Words are told by their embeddings, and the size of the vocabulary is not known.")
    return _Words(_size(field), words)


def _size(field: Field) -> int:
    """Number of classes or words; 0 where the field does not say."""
    return field.size or len(field.names or ())


class _Calculated(nn.Module):
    """A function of the values without weights; of values, height and width where it makes maps."""

    def __init__(self, width: int, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.width, self.function = width, function

    def forward(self, values: Column, dtype: torch.dtype, size: Sequence[int] = ()) -> Tensor:
        return self.function(values, *size).to(dtype)


class _Constant(nn.Module):
    """A vector at every place."""

    def __init__(self, vector: Any) -> None:
        super().__init__()
        self.vector, self.width = vector, vector.width

    def forward(self, values: Column, dtype: torch.dtype, size: Sequence[int]) -> Tensor:
        return tiled(self.vector(values, dtype), size)


class _Words(nn.Module):
    """Word numbers [N, T] -> [N, 32]. What follows the end of a sentence changes nothing."""

    def __init__(self, vocabulary: int, words: str) -> None:
        super().__init__()
        self.width = WORD_WIDTH
        self.embedding = nn.Embedding(vocabulary, WORD_WIDTH)
        self.gru = nn.GRU(WORD_WIDTH, WORD_WIDTH, batch_first=True) if words == "gru" else None

    def forward(self, values: Column, dtype: torch.dtype) -> Tensor:
        tokens = values.values if isinstance(values, Seq) else values
        mask = values.mask if isinstance(values, Seq) else torch.ones_like(tokens, dtype=torch.bool)
        h = self.embedding(tokens)
        if self.gru is not None:
            h, _ = self.gru(h)
            mask = mask & ~F.pad(mask[:, 1:], (0, 1))  # the last word alone, whose state has read them all
        weight = mask.unsqueeze(2).to(h.dtype)
        return ((h * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)).to(dtype)


class _Pictures(nn.Module):
    """Planes [N, C, H, W] -> [N, 64]: convolutions that halve until no side is longer than 4, then a linear layer."""

    def __init__(self, shape: Sequence[int], planes: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.width, self.planes = PICTURE_WIDTH, planes
        (channels, *sides), wider = shape, 16
        layers: list[nn.Module] = []
        while max(sides) > 4:
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            channels, wider, sides = wider, min(2 * wider, 64), [(side + 1) // 2 for side in sides]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(sides), PICTURE_WIDTH))

    def forward(self, values: Column, dtype: torch.dtype) -> Tensor:
        return self.body(self.planes(values).to(dtype)).to(dtype)


def _resized(values: Tensor, height: int, width: int, planes: Callable[[Any], Tensor], mode: str) -> Tensor:
    return F.interpolate(planes(values), (height, width), mode=mode)


def _box_numbers(values: Tensor, size: int) -> Tensor:
    """Boxes [N, K, 5] -> [N, K (size + 5)]: of each the class one-hot, four numbers, and whether it is there."""
    there = (values[..., :1] >= 0).to(values.dtype)
    return torch.cat([one_hot(values[..., 0], size), values[..., 1:] * there, there], dim=2).flatten(1)


@exact
def _filled(values: Tensor, height: int, width: int, size: int) -> Tensor:
    """The share of each pixel that boxes [N, K, 5] of a class cover, [N, size, H, W]; of all in one map if size is 0.

    Shares, so that a box between the middles of pixels is not lost. Those of overlapping boxes add up to 1 at most.
    """
    kind, left, top, across, down = values.unbind(dim=2)
    classes = one_hot(kind, size) if size else (kind >= 0).unsqueeze(2)
    rows, columns = _covered(top, down, height), _covered(left, across, width)
    return torch.einsum("nkc,nkh,nkw->nchw", classes.to(rows.dtype), rows, columns).clamp_max(1)


def _covered(start: Tensor, length: Tensor, pixels: int) -> Tensor:
    """The share of each pixel between start and start + length, both [N, K] relative to the side: [N, K, pixels]."""
    edge = torch.arange(pixels, device=start.device, dtype=start.dtype)
    first, last = (start * pixels).unsqueeze(2), ((start + length) * pixels).unsqueeze(2)
    return (torch.minimum(last, edge + 1) - torch.maximum(first, edge)).clamp(0, 1)


@exact
def bumps(values: Tensor, height: int, width: int) -> Tensor:
    """A Gaussian of height 1 at each keypoint of [N, P, 3] that is seen, zeros for the others: [N, P, H, W]."""
    x, y, seen = (part.unsqueeze(2) for part in values.unbind(dim=2))
    scale = 2 * max(1.0, BUMP * max(height, width)) ** 2
    places = torch.arange(max(height, width), device=x.device, dtype=x.dtype) + 0.5  # the middles of the pixels
    rows, columns = (y * height - places[:height]).square(), (x * width - places[:width]).square()
    return seen.unsqueeze(3) * torch.exp(-(rows.unsqueeze(3) + columns.unsqueeze(2)) / scale)


def tiled(vector: Tensor, places: Sequence[int]) -> Tensor:
    """[N, F] at every place: [N, F, *places]."""
    return vector.reshape(*vector.shape, *[1] * len(places)).expand(-1, -1, *places)


# --- By place in the network ------------------------------------------------------------------------------------------
