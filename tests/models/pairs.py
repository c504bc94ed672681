"""What the tests of joint discriminators share: Gaussian data, and networks of one or two parameters."""

from __future__ import annotations

import torch
from torch import nn

from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore

LINE = {"_target_": "tests.models.pairs.Line", "batch_size": 64, "seed": 0}
PLANE = {"_target_": "tests.models.pairs.Plane", "batch_size": 64, "seed": 0}


class Line(ArrayData):
    """x = 2 e on the line, e standard normal."""

    name, kind, own_shape = "line", "points", (1,)

    def _load(self, download):
        return {"all": ArrayStore({"x": 2 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))})}


class Plane(ArrayData):
    """x = A e in the plane, e standard normal."""

    name, kind, own_shape = "plane", "points", (2,)
    A = torch.tensor([[1.5, 0.0], [0.7, 0.6]])

    def _load(self, download):
        e = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
        return {"all": ArrayStore({"x": e @ self.A.T})}


class Scale(nn.Module):
    """x -> a x, of one parameter."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x


class Product(nn.Module):
    """(x, z) -> c x z + w x^2, of two parameters."""

    def __init__(self, c: float, w: float) -> None:
        super().__init__()
        self.c, self.w = nn.Parameter(torch.tensor(c)), nn.Parameter(torch.tensor(w))

    def forward(self, x, z):
        return (self.c * x * z + self.w * x.square()).sum(dim=1)
