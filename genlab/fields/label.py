"""Labels: one class of K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batch import Column
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.fields.readout import Readout
from genlab.fields.typed import listed


@dataclass(frozen=True)
class Label(Field):
    """A class, int64 [N] from 0; -1 where it is not known. `size` is the number of classes."""

    kind: ClassVar[str] = "label"
    mirrors: ClassVar[bool] = True  # data.flip is set only where mirroring keeps the class

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not int64 [N]."""
        if stored.dtype != torch.int64 or stored.dim() != 1:
            raise ValueError(f"Labels must be int64 of shape [N], got {stored.dtype} {list(stored.shape)}.")

    def known(self, values: Column) -> Tensor:
        """Labels that are not -1."""
        assert isinstance(values, Tensor)
        return values >= 0

    def mirror(self, values: Tensor) -> Tensor:
        """The same classes."""
        return values

    def random(self, n: int, rng: torch.Generator) -> Tensor:
        """Classes [n], all equally likely."""
        return torch.randint(self.size or 1, (n,), generator=rng)

    @property
    def vector_width(self) -> int | None:
        """One number a class."""
        return self.size

    def vector(self, values: Column) -> Tensor:
        """One-hot, float32 [N, size]; zeros where a class is not known."""
        assert isinstance(values, Tensor) and self.size is not None
        return one_hot(values, self.size)

    def readout(self, size: tuple[int, int]) -> Readout | None:
        """The class; None where there are not two."""

        def compared(out: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
            return (out.argmax(dim=1) == told)[:, None], (told >= 0)[:, None]

        loss = partial(F.cross_entropy, ignore_index=-1)
        return Readout("accuracy", (self.size,), compared, loss=loss) if self.size and self.size > 1 else None

    def text(self, values: Column) -> list[str]:
        """The names of the classes, else their numbers; "?" where one is not known."""
        assert isinstance(values, Tensor)
        return ["?" if y < 0 else self.names[y] if self.names else str(y) for y in values.tolist()]

    def each(self, n: int) -> Tensor:
        """All classes, equally often, about n values in all."""
        size = self.size or 1
        return torch.arange(size).repeat_interleave(max(1, n // size))

    def read(self, texts: Sequence[str], training: Tensor) -> tuple[Field, Column]:
        """Classes by their names, which come from all cells where the field has none; an empty cell is not known."""
        words = [text.strip() for text in texts]
        found = sorted(set(words) - {""}, key=lambda word: (int(word) if word.isdecimal() else 2**63, word))
        names = self.names or tuple(found)
        numbers = {"": -1, **{name: i for i, name in enumerate(names)}}
        for word in found:
            if word not in numbers:
                raise UserError(f"{word!r} is no class; they are {listed(names)}")
        return replace(self, size=len(names), names=names), torch.tensor([numbers[word] for word in words])

    def parse(self, text: str, n: int) -> Tensor:
        """Classes [n] of "3", "3,5", names of classes, or "each"; each typed class in as many rows as the others."""
        known = {name: i for i, name in enumerate(self.names or ())}
        words = [word.strip() for word in text.strip("[] ").split(",")]
        if words == ["each"]:
            chosen = list(range(self.size or 1))
        else:
            chosen = [known.get(word, int(word) if word.isdecimal() else -1) for word in words]
            wrong = [word for word, y in zip(words, chosen, strict=True) if not 0 <= y < (self.size or 1)]
            if wrong:
                names = f" ({', '.join(self.names)})" if self.names and len(self.names) <= 20 else ""
                raise UserError(f"{wrong[0]!r} is no class; they are 0 to {(self.size or 1) - 1}{names}, or each")
        return torch.tensor(chosen)[spread(len(chosen), n)]


def one_hot(classes: Tensor, size: int, dim: int = -1) -> Tensor:
    """Classes [...] of any number type as float32 [..., size], the new dimension at `dim`; zeros for unknown ones."""
    # By comparison: `F.one_hot` refuses -1.
    return (classes.unsqueeze(-1) == torch.arange(size, device=classes.device)).movedim(-1, dim).float()
