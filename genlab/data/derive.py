"""Derived columns: any data set becomes one of pairs, by a pure function of each batch.

A derivation is made after binarisation and mirroring. Its draws come for the global batch, of which each process takes
its slice, so that resuming and several processes give the same columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Batch, Column, Seq
from genlab.data.spec import DataSpec
from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.image import Image
from genlab.fields.masked import Masked
from genlab.seeding import stable_seed

Rand = Callable[..., Tensor]  # rand(*shape): uniform draws in [0, 1), [N, *shape]
SIDES = ("top", "bottom", "left", "right")
ADDED = ("index", "group")  # columns of batches without a field


class Derivation:
    """A column that is made of another one.

    Attributes:
        of: Name of the other column.
    """

    of: str

    @property
    def text(self) -> str:
        """What is made, with its settings, for protocol cards."""
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in vars(self).items())})"

    @abstractmethod
    def field(self, spec: DataSpec) -> Field:
        """The field of the column.

        Raises:
            UserError: If it cannot be made of these data.
        """

    @abstractmethod
    def __call__(self, batch: Batch, rand: Rand) -> Column:
        """The column of a normalised batch."""

    def picture(self, spec: DataSpec) -> Image:
        """The field of the other column, which must hold pictures.

        Raises:
            UserError: If it does not.
        """
        field = spec.fields.get(self.of)
        if not isinstance(field, Image):
            found = f"is of kind {field.kind}" if field else f"is not there; the data have {', '.join(spec.fields)}"
            raise UserError(f"{type(self).__name__} is made of pictures, and the column {self.of} {found}.")
        return field


@dataclass
class Half(Derivation):
    """One half of a picture, and which: [C + 1, H, W], see `genlab.fields.masked`.

    Sohn, Lee & Yan (2015), "Learning Structured Output Representation using Deep Conditional Generative Models",
    section 5.1, show one quadrant or more; see `Quadrants`.

    Attributes:
        of: The picture.
        seen: "top", "bottom", "left" or "right".
    """

    of: str = "x"
    seen: str = "top"

    def __post_init__(self) -> None:
        if self.seen not in SIDES:
            raise UserError(f"derive=half shows one of {', '.join(SIDES)}, got seen={self.seen!r}.")

    def field(self, spec: DataSpec) -> Field:
        """See `Derivation`."""
        channels, height, width = self.picture(spec).fixed_shape
        return Masked((channels + 1, height, width))

    def __call__(self, batch: Batch, rand: Rand) -> Tensor:
        """See `Derivation`; draws nothing."""
        x = batch.tensor(self.of)
        place, size = (x.shape[-2], -2) if self.seen in ("top", "bottom") else (x.shape[-1], -1)
        seen = torch.arange(place, device=x.device) < (place + 1) // 2
        seen = seen if self.seen in ("top", "left") else seen.flip(0)
        return masked(x, seen[:, None].expand(x.shape[-2:]) if size == -2 else seen.expand(x.shape[-2:]))


@dataclass
class Quadrants(Derivation):
    """One, two or three quadrants of a picture, and which: [C + 1, H, W], see `genlab.fields.masked`.

    Sohn, Lee & Yan (2015), section 5.1: the lower left one; then the upper left; then one on the right.

    Attributes:
        of: The picture.
        seen: How many quadrants are seen, 1 to 3.
        third: The third one: "lower" or "upper", of those on the right. Pyro's tutorial has "upper".
    """

    of: str = "x"
    seen: int = 1
    third: str = "lower"

    def __post_init__(self) -> None:
        if self.seen not in (1, 2, 3):
            raise UserError(f"derive=quadrants shows 1, 2 or 3 of them, got seen={self.seen!r}.")
        if self.third not in ("lower", "upper"):
            raise UserError(f"The third quadrant of derive=quadrants is lower or upper, got third={self.third!r}.")

    def field(self, spec: DataSpec) -> Field:
        """See `Derivation`."""
        channels, height, width = self.picture(spec).fixed_shape
        return Masked((channels + 1, height, width))

    def __call__(self, batch: Batch, rand: Rand) -> Tensor:
        """See `Derivation`; draws nothing."""
        x = batch.tensor(self.of)
        height, width = x.shape[-2:]
        lower = (torch.arange(height, device=x.device) >= height // 2)[:, None]
        left = (torch.arange(width, device=x.device) < (width + 1) // 2)[None]
        third = lower if self.third == "lower" else ~lower
        seen = [lower & left, left.expand(height, width), left | third][self.seen - 1]
        return masked(x, seen)


@dataclass
class LowResolution(Derivation):
    """A picture averaged over squares of pixels, at its own size again (each square filled) or at the small one.

    Attributes:
        of: The picture.
        factor: Side of a square in pixels; divides height and width.
        enlarged: Whether each average fills its square.
    """

    of: str = "x"
    factor: int = 4
    enlarged: bool = True

    def field(self, spec: DataSpec) -> Field:
        """See `Derivation`."""
        picture = self.picture(spec)
        channels, height, width = picture.fixed_shape
        if self.factor < 1 or height % self.factor or width % self.factor:
            raise UserError(f"derive=low_resolution: factor={self.factor} must divide the sides {height} and {width}.")
        return (
            picture
            if self.enlarged
            else replace(picture, shape=(channels, height // self.factor, width // self.factor))
        )

    def __call__(self, batch: Batch, rand: Rand) -> Tensor:
        """See `Derivation`; draws nothing."""
        small = F.avg_pool2d(batch.tensor(self.of), self.factor)
        if not self.enlarged:
            return small
        return small.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)


@dataclass
class Noisy(Derivation):
    """A picture with Gaussian noise, cut to [-1, 1].

    Attributes:
        of: The picture.
        sigma: Standard deviation of the noise, in units of the pixels' range [-1, 1].
    """

    of: str = "x"
    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"derive=noisy needs sigma > 0, got {self.sigma}.")

    def field(self, spec: DataSpec) -> Field:
        """See `Derivation`."""
        return self.picture(spec)

    def __call__(self, batch: Batch, rand: Rand) -> Tensor:
        """See `Derivation`; one normal draw a pixel, by Box and Muller."""
        x = batch.tensor(self.of)
        u, v = rand(2, *x.shape[1:]).to(x).unbind(1)
        return (x + self.sigma * (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * torch.pi * v)).clamp(-1, 1)


@dataclass
class Grey(Derivation):
    """The luminance of a colour picture, [1, H, W]; weights of ITU-R BT.601.

    Attributes:
        of: The picture, of three channels.
    """

    of: str = "x"

    def field(self, spec: DataSpec) -> Field:
        """See `Derivation`."""
        picture = self.picture(spec)
        if picture.fixed_shape[0] != 3:
            raise UserError(f"derive=grey needs colour pictures, and {self.of} has {picture.fixed_shape[0]} channel.")
        return replace(picture, shape=(1, *picture.fixed_shape[1:]))

    def __call__(self, batch: Batch, rand: Rand) -> Tensor:
        """See `Derivation`; draws nothing."""
        red, green, blue = batch.tensor(self.of).unbind(1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


@dataclass
class Edges(Derivation):
    """How steep a picture is at each pixel, [1, H, W] in [-1, 1]: the length of Sobel's gradient, in the mean channel.

    Attributes:
        of: The picture.
    """

    of: str = "x"

    def field(self, spec: DataSpec) -> Field:
        """See `Derivation`."""
        picture = self.picture(spec)
        return replace(picture, shape=(1, *picture.fixed_shape[1:]))

    def __call__(self, batch: Batch, rand: Rand) -> Tensor:
        """See `Derivation`; draws nothing. A step from -1 to 1 is 1 on both of its sides; flat places are -1."""
        x = F.pad(batch.tensor(self.of).mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        smooth, slope = x.new_tensor([1.0, 2.0, 1.0]) / 4, x.new_tensor([-1.0, 0.0, 1.0])
        kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
        steep = F.conv2d(x, kernels).square().sum(dim=1, keepdim=True).sqrt() / 2  # of a full step: 1
        return 2 * steep.clamp(max=1) - 1


def masked(x: Tensor, seen: Tensor) -> Tensor:
    """Pictures [N, C, H, W] with hidden pixels at 0 and the map of the seen ones [H, W] as a last channel."""
    seen = seen.to(x.dtype).expand(len(x), 1, *x.shape[-2:])
    return torch.cat([x * seen, seen], dim=1)


def derived(batch: Batch, derive: Mapping[str, Derivation], keys: Iterable[int | str]) -> Batch:
    """A batch with derived columns whose draws depend on each row's key alone: for validation, metrics and samples.

    Args:
        batch: Normalised, N rows.
        derive: The columns by name.
        keys: One for each row, such as its position in the split; equal ones give equal draws.
    """
    first = next(iter(batch.columns.values()))
    device = first.length.device if isinstance(first, Seq) else first.device
    rows = list(keys)

    def rand(name: str) -> Rand:
        calls, rng = count(), torch.Generator()

        def draw(*shape: int) -> Tensor:
            call, drawn = next(calls), torch.empty(len(rows), *shape)
            for row, key in zip(drawn, rows, strict=True):
                torch.rand(shape, generator=rng.manual_seed(stable_seed("derive", name, call, key)), out=row)
            return drawn.to(device)

        return draw

    return with_columns(batch, derive, rand)


def with_columns(batch: Batch, derive: Mapping[str, Derivation], rand: Callable[[str], Rand]) -> Batch:
    """A normalised batch with derived columns; `rand(name)` gives the stream of a column."""
    for name, derivation in derive.items():
        batch = batch.with_column(name, derivation(batch, rand(name)))
    return batch


def with_derived(spec: DataSpec, derive: Mapping[str, Derivation]) -> DataSpec:
    """The facts with the fields of derived columns.

    Raises:
        UserError: If a column of that name is there already, or one cannot be made of these data.
    """
    for name, derivation in derive.items():
        if name in spec.fields or name in ADDED:
            raise UserError(f"derive.{name}: the data have a column {name} already. Give the derived one another name.")
        spec = spec.with_field(name, derivation.field(spec))
    return spec
