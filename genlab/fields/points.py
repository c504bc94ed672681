"""Points in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.fields.drawing import new_figure, to_array


@dataclass(frozen=True)
class Points(Field):
    """A point, float32 [D], as it is."""

    kind: ClassVar[str] = "points"
    pictorial: ClassVar[bool] = False

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not float32 [N, D]."""
        if stored.dtype != torch.float32 or stored.dim() != 2:
            raise ValueError(f"Points must be float32 [N, D], got {stored.dtype} {list(stored.shape)}.")

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Uniform in [-1, 1]."""
        return 2 * torch.rand(n, *self.fixed_shape, generator=rng) - 1

    def text(self, values: Column) -> list[str]:
        """Their coordinates."""
        assert isinstance(values, Tensor)
        return [", ".join(f"{v:.3g}" for v in point) for point in values.tolist()]

    def sheet(self, values: Column, reference: Column | None = None) -> np.ndarray:
        """A scatter plot over the density of the reference; see `scatter`."""
        assert isinstance(values, Tensor) and (reference is None or isinstance(reference, Tensor))
        return scatter(values, reference)

    def parse(self, text: str, n: int) -> Tensor:
        """Points [n, D] of "0.5,-1", or of several with ";" between them."""
        dims = self.fixed_shape[0]
        try:
            typed = torch.tensor([[float(v) for v in point.split(",")] for point in text.strip("[] ").split(";")])
        except ValueError as error:  # no numbers, or not equally many
            raise UserError(f"{text!r} is no list of {dims} numbers, such as {','.join(['0.5'] * dims)}") from error
        if typed.shape[1] != dims:
            raise UserError(f"a point has {dims} numbers, got {typed.shape[1]}")
        return typed[spread(len(typed), n)]


def scatter(x: Tensor, x_real: Tensor | None = None, title: str | None = None) -> np.ndarray:
    """Generated points over the density of real ones, uint8 [H, W, 3].

    More than two dimensions are projected onto the first two principal components of the real points.
    """
    figure, axes = new_figure(6, 6)
    points = x.detach().float().cpu().numpy()
    if x_real is not None:
        real = x_real.detach().float().cpu().numpy()
        if real.shape[1] > 2:
            centre = real.mean(0)
            axes_of_real = np.linalg.eigh(np.cov(real, rowvar=False))[1][:, :-3:-1]
            points, real = (points - centre) @ axes_of_real, (real - centre) @ axes_of_real
        low, high = real.min(0), real.max(0)
        margin = 0.25 * (high - low).max()
        bounds = [(float(a - margin), float(b + margin)) for a, b in zip(low, high, strict=True)]
        density, *_ = np.histogram2d(real[:, 0], real[:, 1], bins=160, range=bounds)
        # The log scale shows both a mode of a few hundredths in width and the space around it.
        axes.imshow(
            np.log1p(_blurred(density)).T,
            origin="lower",
            extent=(*bounds[0], *bounds[1]),
            cmap="Blues",
            aspect="equal",
            interpolation="bilinear",
        )
        axes.set_xlim(*bounds[0])
        axes.set_ylim(*bounds[1])
    axes.scatter(points[:, 0], points[:, 1], s=3, color="#d1495b", alpha=0.6, linewidths=0, label="generated")
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title)
    return to_array(figure)


def _blurred(density: np.ndarray) -> np.ndarray:
    kernel = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    for axis in (0, 1):
        density = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), axis, density)
    return density
