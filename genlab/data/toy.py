"""Toy distributions, drawn from a fixed seed without any file or download."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.data.mixture import Mixture
from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.seeding import stable_seed

SIZES = {"train": 100_000, "val": 10_000, "test": 10_000}


class Toy(ArrayData):
    """Base of the toy distributions: 100,000 training points, 10,000 each for validation and test, or `sizes`.

    The points are the same in every run; `data.seed` changes only their order.
    """

    kind = "points"
    own_shape: ClassVar[tuple[int, ...] | None] = (2,)
    std: ClassVar[float]  # of the noise around each centre or around the curve
    sizes: ClassVar[dict[str, int]] = SIZES

    @property
    def centres(self) -> Tensor | None:
        """Centres [K, D] of the modes; None without modes."""
        return None

    @property
    def modes(self) -> Mixture | None:
        """The mixture of Gaussians; None without modes."""
        centres = self.centres
        return None if centres is None else Mixture(centres, self.std)

    def describe(self) -> dict[str, Any]:
        """As `ArrayData.describe`, with the number of modes and the noise."""
        centres = self.centres
        return {**super().describe(), "modes": None if centres is None else len(centres), "std": self.std}

    def _draw(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray | None]:
        """Points [n, D] in float64 and their labels [n] or None."""
        assert self.centres is not None
        labels = rng.randint(len(self.centres), size=n)
        return self.centres.numpy()[labels] + self.std * rng.standard_normal((n, 2)), labels

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        stores = {}
        for split, n in self.sizes.items():
            points, labels = self._draw(n, np.random.RandomState(stable_seed(self.name, split) % 2**32))
            y = None if labels is None else torch.from_numpy(labels.astype(np.int64))
            store = ArrayStore({"x": torch.from_numpy(points.astype(np.float32, copy=False))})
            stores[split] = store.with_column("y", y)
        return stores


class Ring(Toy):
    """Eight Gaussians of standard deviation 0.02 on a circle of radius 2; the label is the number of the Gaussian.

    The setting of Metz et al. (2017), "Unrolled GANs", appendix.
    """

    name = "ring"
    std = 0.02
    class_names = tuple(str(k) for k in range(8))

    @property
    def centres(self) -> Tensor:
        """Centres [8, 2], counter-clockwise from (2, 0)."""
        angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
        return torch.stack((2 * angle.cos(), 2 * angle.sin()), dim=1).float()


class Grid(Toy):
    """Twenty-five Gaussians of standard deviation 0.05 at {-4, -2, 0, 2, 4}^2; the label is the Gaussian's number.

    The setting of Srivastava et al. (2017), "VEEGAN", section 5.1.
    """

    name = "grid"
    std = 0.05
    class_names = tuple(str(k) for k in range(25))

    @property
    def centres(self) -> Tensor:
        """Centres [25, 2], row by row."""
        line = torch.arange(-4.0, 4.1, 2.0)
        return torch.cartesian_prod(line, line)


class HighDim(Toy):
    """Ten Gaussians in 700 of 1,200 dimensions, each with its own offset; the label is the Gaussian's number.

    The "1200-D" of Srivastava et al. (2017), "VEEGAN", section 5.1, with the constants of PacGAN's code (Lin et al.
    2018): 700 coordinates are standard normal, the other 500 are zero, and the Gaussian's constant is added to all
    1,200. There are 20,000 training points instead of their 100,000.

    A true sample lies about sqrt(700) = 26 from its centre, so no true sample lies within the papers' "10 standard
    deviations". Here a sample is of high quality if |x - c|^2 <= 700 + 3 sqrt(1400), the mean of a true sample's
    squared distance plus three of its standard deviations; 99.7 % of true samples are.
    """

    name = "highdim"
    own_shape: ClassVar[tuple[int, ...] | None] = (1200,)
    std = 1.0
    sizes: ClassVar[dict[str, int]] = {"train": 20_000, "val": 2500, "test": 2500}
    spread: ClassVar[int] = 700  # coordinates
    constants: ClassVar[tuple[float, ...]] = (-1.0, -0.5, 0.0, 0.5, -2.0, -2.5, 10.0, 0.25, -13.0, -5.5)
    class_names = tuple(str(k) for k in range(10))

    @property
    def centres(self) -> Tensor:
        """Centres [10, 1200]."""
        return torch.tensor(self.constants).unsqueeze(1).expand(-1, 1200).contiguous()

    @property
    def modes(self) -> Mixture:
        """The mixture, with the radius above."""
        radius = math.sqrt(self.spread + 3 * math.sqrt(2 * self.spread))
        return Mixture(self.centres, self.std, radius, self.spread)

    def _draw(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray | None]:
        labels = rng.randint(len(self.constants), size=n)
        points = np.zeros((n, 1200), dtype=np.float32)
        points[:, : self.spread] = rng.standard_normal((n, self.spread))
        return points + np.asarray(self.constants, np.float32)[labels, None], labels


class SwissRoll(Toy):
    """A spiral in the plane without modes or labels, within about [-2, 2]^2.

    (t cos t, t sin t) / 7.5 for t uniform in [1.5 pi, 4.5 pi], with noise of standard deviation 0.25 added before the
    division: two coordinates of scikit-learn's roll, as in the toy code of Gulrajani et al. (2017), "Improved Training
    of Wasserstein GANs".
    """

    name = "swiss_roll"
    std = 0.25 / 7.5

    def _draw(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray | None]:
        t = 1.5 * math.pi * (1 + 2 * rng.random_sample(n))
        curve = np.stack((t * np.cos(t), t * np.sin(t)), axis=1) / 7.5
        return curve + self.std * rng.standard_normal((n, 2)), None
