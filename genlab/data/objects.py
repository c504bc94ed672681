"""Coloured shapes in a picture: where they are, how they move, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from genlab.data.shapes import ASPECT, CLASSES, ellipse, rectangle, triangle

# Lengths are in halves of the picture's shorter side.
RADIUS = {"small": 0.3, "large": 0.45}  # of the circle around an object
JITTER = 0.1  # largest relative deviation from it
RADII = (RADIUS["small"] * (1 - JITTER), RADIUS["large"] * (1 + JITTER))  # the smallest and the largest
MARGIN = 1 / 16  # between objects and the edge of the picture
OVERLAP = 0.1  # largest common part of two boxes, as a share of the smaller one
TRIES = 50  # places that are tried for an object
PLACED_AT_A_TIME = 1000  # pictures; the draws depend on it
SPEED = (1 / 16, 3 / 16)  # of an object per frame, smallest and largest, to a side as up or down
MIDDLE = 0.25  # largest distance of "in the middle" from the middle, to a side as up or down; 1: the edge
RIM = 0.1  # thickness of outlines, which have at least one pixel
STRIPE = 0.375  # period of stripes

COLOURS = {
    "red": (214, 40, 40),
    "green": (56, 158, 70),
    "blue": (40, 90, 205),
    "yellow": (248, 214, 50),
    "purple": (140, 62, 170),
    "orange": (246, 134, 30),
}
BACKGROUND = (222, 222, 222)
SIZES = tuple(RADIUS)
PLACES = ("left", "right", "top", "bottom", "middle")

# Half the width and the height of the shapes of radius 1.
TALL = 1.15  # triangles are enlarged, to look as large as the others
LONG = 1 / math.sqrt(1 + ASPECT**2)
HALF = ((1.0, ASPECT), (LONG, ASPECT * LONG), (0.6 * TALL, 0.9 * TALL))


def _upright(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to the triangle with its tip at the top, or to its box, whichever is larger.

    At sharp corners `triangle` is too small: without the box half-covered pixels would lie beyond its tip.
    """
    width, height = HALF[2]
    sides = TALL * triangle(v / TALL + 0.1, u / TALL)  # the middle of its box is 0.1 above that of its circle
    return torch.maximum(sides, torch.maximum(u.abs() - width, v.abs() - height))


DISTANCES = (ellipse, rectangle, _upright)


@dataclass(frozen=True)
class Objects:
    """What N pictures show: in K places each the large objects, then the small ones, then places without an object.

    Objects of one size are ordered from left to right. An object stands in front of those before it.

    Attributes:
        centre: Middle of each object's box, to the right and upwards, -1 and 1 at the edges of the picture:
            [N, K, 2] float64, exact in float32.
        scale: Radius, from -1 (the smallest) to 1 (the largest), above 0 for large objects: [N, K] float64, exact in
            float32.
        shape: Indices into `CLASSES`, [N, K].
        colour: Indices into `COLOURS`, [N, K].
        velocity: Way per frame, to the right and upwards, relative as `centre`: [N, K, 2] float64.
        there: Whether there is such an object, bool [N, K]. Where not, all of the above is 0.
        span: Half the width and the height of the picture, [N, 1, 2] float64; the smaller one is 1.
    """

    centre: Tensor
    scale: Tensor
    shape: Tensor
    colour: Tensor
    velocity: Tensor
    there: Tensor
    span: Tensor

    @property
    def radius(self) -> Tensor:
        """Radius of the circle around each object, [N, K]."""
        return RADII[0] + (RADII[1] - RADII[0]) * (self.scale + 1) / 2

    @property
    def large(self) -> Tensor:
        """1 for large objects, 0 for small ones: indices into `SIZES`, [N, K]."""
        return (self.scale > 0).long()

    @property
    def half(self) -> Tensor:
        """Half the width and the height of each object, relative to those of the picture: [N, K, 2]."""
        return torch.tensor(HALF, dtype=torch.float64)[self.shape] * self.radius.unsqueeze(2) / self.span

    @property
    def room(self) -> Tensor:
        """Largest centre of an object that lies in the picture, to the right and upwards: [N, K, 2]."""
        return 1 - MARGIN / self.span - self.half

    @property
    def place(self) -> Tensor:
        """Indices into `PLACES`, [N, K]."""
        return torch.where(self.centre.abs().amax(dim=2) <= MIDDLE, PLACES.index("middle"), direction(self.centre))

    def split(self, n: int) -> list[Objects]:
        """The objects of n pictures after the other."""
        return [Objects(*part) for part in zip(*(getattr(self, f.name).split(n) for f in fields(self)), strict=True)]

    @classmethod
    def join(cls, parts: Sequence[Objects]) -> Objects:
        """Inverse of `split`."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def direction(offset: Tensor) -> Tensor:
    """Indices into the first four `PLACES` of offsets [..., 2] to the right and upwards: the larger one decides."""
    x, y = offset.unbind(dim=-1)
    return torch.where(x.abs() > y.abs(), (x > 0).long(), 2 + (y < 0).long())


def random_objects(rng: np.random.RandomState, n: int, most: int, size: tuple[int, int]) -> Objects:
    """Objects for n pictures: 1 to `most` in each, equally likely; those that find no place are left out.

    Shapes, colours and sizes are equally likely, too, and independent.

    Args:
        rng: Stream of the draws. The first objects of many pictures are those of few.
        n: Number of pictures.
        most: Largest number of objects, K.
        size: Height and width of the pictures; their ratio counts.
    """
    starts = range(0, n, PLACED_AT_A_TIME)
    return Objects.join([_random_part(rng, PLACED_AT_A_TIME, most, size) for _ in starts]).split(n)[0]


def _random_part(rng: np.random.RandomState, n: int, most: int, size: tuple[int, int]) -> Objects:
    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.from_numpy(rng.randint(low, high, (n, *shape), dtype=np.int64))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, *shape)))

    there = integers(1, most + 1, 1) > torch.arange(most)
    shape, colour, large = (integers(0, kinds, most) for kinds in (len(CLASSES), len(COLOURS), len(SIZES)))
    large = torch.where(there, large, -1).sort(dim=1, descending=True).values.clamp_min(0)  # they are placed first
    radius = torch.tensor(list(RADIUS.values()), dtype=torch.float64)[large] * uniform(1 - JITTER, 1 + JITTER, most)
    scale = (2 * (radius - RADII[0]) / (RADII[1] - RADII[0]) - 1).float().double()
    tried = uniform(-1, 1, most, TRIES, 2)
    span = torch.tensor([size[1] / min(size), size[0] / min(size)], dtype=torch.float64).expand(n, 1, 2)
    velocity = uniform(*SPEED, most, 2) * (2 * integers(0, 2, most, 2) - 1) / span
    objects = Objects(torch.zeros_like(velocity), scale, shape, colour, velocity, there, span)

    centre, half, tried = objects.centre, objects.half, (tried * objects.room.unsqueeze(2)).float().double()
    for k in range(most):
        offset = (tried[:, k, :, None] - centre[:, None, :k]).abs()  # from the objects before, [n, TRIES, k, 2]
        common = (half[:, None, k, None] + half[:, None, :k] - offset).clamp_min(0).prod(dim=3)
        smaller = 4 * torch.minimum(half[:, k, None].prod(dim=2), half[:, :k].prod(dim=2))
        free = ((common <= OVERLAP * smaller.unsqueeze(1)) | ~there[:, None, :k]).all(dim=2)
        first = (free * torch.arange(TRIES, 0, -1)).argmax(dim=1)
        centre[:, k] = tried[torch.arange(n), k, first]
        there[:, k] &= free.any(dim=1)

    order = (8 * ~there + 4 * (scale < 0) + centre[..., 0]).argsort(dim=1)

    def in_order(values: Tensor) -> Tensor:
        rows = values[torch.arange(n)[:, None], order]
        return rows * there.take_along_dim(order, dim=1).view(n, most, *[1] * (values.dim() - 2))

    centre, scale, shape, colour, velocity = map(in_order, (centre, scale, shape, colour, velocity))
    return Objects(centre, scale, shape, colour, velocity, in_order(there), span)


def move_objects(objects: Objects, frames: int) -> Iterator[Objects]:
    """The objects in each frame: they move straight on and bounce off the edges, through each other."""
    room = objects.room
    for _ in range(frames):
        yield objects
        centre = objects.centre + objects.velocity
        beyond = (centre.abs() - room).clamp_min(0) * centre.sign()
        velocity = torch.where(beyond == 0, objects.velocity, -objects.velocity)
        objects = replace(objects, centre=centre - 2 * beyond, velocity=velocity)


# --- Drawing ----------------------------------------------------------------------------------------------------------


def draw_objects(objects: Objects, size: tuple[int, int], style: str = "filled") -> tuple[Tensor, Tensor]:
    """Pictures of the objects, each in front of those before it; in float64, to be equal on all machines.

    A pixel belongs to the foremost object that covers at least half of it.

    Args:
        objects: Those of N pictures.
        size: Height and width in pixels.
        style: One of `STYLES`.

    Returns:
        The pictures, uint8 [N, 3, H, W]; and uint8 [N, 2, H, W]: shape and number of the object to which each pixel
        belongs, both from 1, 0 for the background.
    """
    height, width = size
    pixels = min(size) / 2  # in a unit
    across = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / pixels
    up = (height / 2 - 0.5 - torch.arange(height, dtype=torch.float64)[:, None]) / pixels
    paint, tint = STYLES[style]
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float64)[:, :, None, None]
    n = len(objects.there)
    pictures = torch.tensor(BACKGROUND, dtype=torch.float64)[:, None, None].repeat(n, 1, height, width)
    maps = torch.zeros(n, 2, height, width, dtype=torch.uint8)
    for k in range(objects.there.shape[1]):
        rows = objects.there[:, k].nonzero().squeeze(1)
        dx, dy = _offsets(objects, k, rows, across, up)
        distance = _distances(objects, k, rows, dx, dy) * pixels
        colour = paint(colours[objects.colour[rows, k]], distance, dx, dy, pixels)
        share = (0.5 - distance).clamp(0, 1).unsqueeze(1)
        pictures[rows] += share * (colour - pictures[rows])
        numbers = torch.stack([objects.shape[rows, k] + 1, torch.full_like(rows, k + 1)], dim=1)[..., None, None]
        maps[rows] = torch.where(distance.unsqueeze(1) <= 0, numbers.to(torch.uint8), maps[rows])
    return (pictures * torch.tensor(tint, dtype=torch.float64)[:, None, None]).round().to(torch.uint8), maps


def behind(objects: Objects, points: Tensor) -> Tensor:
    """Which points [N, K, P, 2] of each object, relative as its centre, lie behind another object: bool [N, K, P]."""
    hidden = torch.zeros(points.shape[:3], dtype=torch.bool)
    x, y = (points * objects.span.unsqueeze(2)).unbind(dim=3)
    for k in range(1, points.shape[1]):
        rows = objects.there[:, k].nonzero().squeeze(1)
        dx, dy = _offsets(objects, k, rows, x[rows, :k], y[rows, :k])
        hidden[rows, :k] |= _distances(objects, k, rows, dx, dy) <= 0
    return hidden


def _offsets(objects: Objects, k: int, rows: Tensor, across: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets of places from object k of these pictures [n], to the right and upwards; places are [..., a, b]."""
    x, y = (objects.centre[rows, k] * objects.span[rows, 0])[..., None, None].unbind(dim=1)
    return across - x, up - y


def _distances(objects: Objects, k: int, rows: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Signed distances to object k of these pictures [n], from offsets [n, a, b] or of shapes that broadcast to it."""
    radius = objects.radius[rows, k, None, None]
    u, v = dx / radius, dy / radius
    found = u.new_empty(torch.broadcast_shapes(u.shape, v.shape))
    for number, distance in enumerate(DISTANCES):
        mine = (objects.shape[rows, k] == number).nonzero().squeeze(1)
        found[mine] = distance(u[mine], v[mine])
    return found * radius


Paint = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]  # its arguments are those of `_outline`
PLAIN = (1.0, 1.0, 1.0)


def _plain(colour: Tensor, distance: Tensor, dx: Tensor, dy: Tensor, pixels: float) -> Tensor:
    return colour


def _outline(colour: Tensor, distance: Tensor, dx: Tensor, dy: Tensor, pixels: float) -> Tensor:
    """The colour along the edge alone.

    Args:
        colour: [n, 3, 1, 1].
        distance: Signed distance of each pixel to the edge in pixels, [n, H, W].
        dx: Offsets from the centre to the right, [n, 1, W].
        dy: Offsets from the centre upwards, [n, H, 1].
        pixels: Pixels in a unit.

    Returns:
        Colour of each pixel [n, 3, H, W], whether the object covers it or not.
    """
    inside = (0.5 - distance - max(1.0, RIM * pixels)).clamp(0, 1).unsqueeze(1)
    return colour + inside * (torch.tensor(BACKGROUND, dtype=torch.float64)[:, None, None] - colour)


def _stripes(colour: Tensor, distance: Tensor, dx: Tensor, dy: Tensor, pixels: float) -> Tensor:
    """The colour with dark diagonal stripes, which move with the object; arguments as `_outline`."""
    phase = (dx + dy) / STRIPE
    wave = 2 * (phase - phase.floor() - 0.5).abs() - 0.5  # from -1/2 to 1/2, and 0 at the edges of stripes
    stripe = (0.5 + wave * STRIPE * pixels / (2 * math.sqrt(2))).clamp(0, 1).unsqueeze(1)
    return colour * (1 - 0.45 * stripe)


STYLES: dict[str, tuple[Paint, tuple[float, float, float]]] = {  # how objects are painted; factors of red, green, blue
    "filled": (_plain, PLAIN),
    "outline": (_outline, PLAIN),
    "warm": (_plain, (1.0, 0.88, 0.68)),
    "cold": (_plain, (0.7, 0.87, 1.0)),
    "clean": (_plain, PLAIN),
    "textured": (_stripes, PLAIN),
}
