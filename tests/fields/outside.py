"""A kind of column, data, networks and a way of telling them that genlab knows nothing of, as a user would write them.

Configs name them as `tests.fields.outside.Sky`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.files import write_text
from genlab.networks import mlp
from genlab.networks.conditions import Vector
from genlab.networks.told import Told

NAMES = ("new", "half", "full")  # of the phases 0, 1/2 and 1


@dataclass(frozen=True)
class Phase(Field):
    """The lit share of a moon: uint8 [1] in the store, float32 in [0, 1] for a model."""

    kind: ClassVar[str] = "phase"
    pictured: ClassVar[bool] = True

    def check_stored(self, stored):
        if stored.dtype != torch.uint8 or stored.shape[1:] != (1,):
            raise ValueError(f"Phases must be uint8 [N, 1], got {stored.dtype} {list(stored.shape)}.")

    def normalise(self, stored):
        return stored.float() / 255

    def random(self, n, rng):
        return torch.rand(n, 1, generator=rng)

    @property
    def vector_width(self):
        return 2

    def vector(self, values):
        return torch.cat([values, 1 - values], dim=1)

    def text(self, values):
        return [NAMES[round(2 * min(1.0, max(0.0, v)))] for v in values.flatten().tolist()]

    def cells(self, values):
        """Squares of 8 x 8, dark where the moon is new."""
        grey = (255 * values.detach().cpu().clamp(0, 1)).to(torch.uint8)
        return grey.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()

    def parse(self, text, n):
        if text not in NAMES:
            raise UserError(f"{text!r} is no phase; they are {', '.join(NAMES)}")
        return torch.tensor([[NAMES.index(text) / 2]])[spread(1, n)]

    def write(self, values, path):
        """A text file, one line a moon."""
        return write_text(path.with_name(f"{path.name}.moons"), "".join(f"{t}\n" for t in self.text(values)))


class Sky(ArrayData):
    """Moons, and how each looked the night before."""

    name = "sky"
    kind = "phase"
    own_shape = (1,)

    def _load(self, download):
        before = torch.randint(0, 200, (300, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return {"all": ArrayStore({"x": before + 20, "before": before})}


class Generator(mlp.Generator):
    """Noise to phases."""

    kinds = ("phase",)


class Discriminator(mlp.Discriminator):
    """Phases to logits."""

    kinds = ("phase",)


class Whisper(Told):
    """Hands the conditions over at the end: what the network gives, plus a linear map of their vector."""

    @classmethod
    def around(cls, node, network, given):
        return {"network": dict(node), "out": node["shape"][0]}

    def __init__(self, network, given, out):
        super().__init__(network)
        self.vector = Vector(given)
        self.voice = torch.nn.Linear(self.vector.width, out)

    def forward(self, x, given):
        """[N, Z] and the conditions -> [N, out]."""
        return self.network(x) + self.voice(self.vector(given))
