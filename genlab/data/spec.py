"""The facts about a data set: the fields of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genlab.errors import UserError
from genlab.fields.base import Field
from genlab.fields.image import Image
from genlab.fields.kinds import make_field


@dataclass(frozen=True)
class DataSpec:
    """The facts that networks, metrics and looks need to know about the data.

    Attributes:
        fields: The field of each column, by name. `x` are the samples, `y` their labels, `factor` their known factors.

    Raises:
        UserError: If the samples have no shape.
    """

    fields: Mapping[str, Field]

    def __post_init__(self) -> None:
        shape = self.x.fixed_shape
        if (not shape and not self.x.ragged) or min(shape, default=1) < 1:
            raise UserError(f"data.shape must hold positive numbers, got {list(self.x.shape)}.")

    @classmethod
    def of(
        cls,
        kind: str,
        shape: Sequence[int | None],
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        factor_names: Sequence[str] | None = None,
    ) -> DataSpec:
        """Samples of one kind and shape, with labels and known factors where the data have them.

        Args:
            kind: Kind of the samples.
            shape: Shape of one.
            num_classes: Number of classes; None without labels.
            class_names: One name per class.
            factor_names: One name per known factor, each in [-1, 1].
        """
        facts: dict[str, dict[str, Any]] = {"x": {"kind": kind, "shape": tuple(shape)}}
        if num_classes:
            facts["y"] = {"kind": "label", "size": num_classes, "names": class_names and tuple(class_names)}
        if factor_names:
            names = tuple(factor_names)
            facts["factor"] = {"kind": "attributes", "shape": (len(names),), "names": names, "value_range": (-1.0, 1.0)}
        return cls({name: make_field(fact) for name, fact in facts.items()})

    def with_stated(self, columns: Mapping[str, Mapping[str, Any]] | None) -> DataSpec:
        """The facts with the columns of a data set's yaml, `columns`; a column that is there gets further facts."""
        known = self.to_dict()
        stated = {name: {**known.get(name, {}), **facts} for name, facts in (columns or {}).items()}
        return DataSpec({**self.fields, **{name: make_field(facts) for name, facts in stated.items()}})

    @property
    def x(self) -> Field:
        """The field of the samples."""
        return self.fields["x"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of an image, (D,) of a point."""
        return self.x.fixed_shape

    @property
    def images(self) -> bool:
        """Whether the samples are images."""
        return isinstance(self.x, Image)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest value of a sample; None if unbounded (points)."""
        return self.x.value_range

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return self.fields["y"].size if "y" in self.fields else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per class; None if the classes have no names."""
        return self.fields["y"].names if "y" in self.fields else None

    @property
    def factor_names(self) -> tuple[str, ...] | None:
        """One name per known factor; None without factors."""
        return self.fields["factor"].names if "factor" in self.fields else None

    def with_field(self, name: str, field: Field | None) -> DataSpec:
        """The facts with a column added or replaced, or without it (None)."""
        rest = {n: f for n, f in self.fields.items() if n != name}
        return DataSpec(rest if field is None else {**rest, name: field})

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only (lists, numbers, strings, None), for checkpoints and cards."""
        return {name: field.to_dict() for name, field in self.fields.items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> DataSpec:
        """Inverse of `to_dict`.

        Raises:
            UserError: If a column is of a kind that is not known here, or there are no samples.
        """
        if "x" not in facts:
            raise UserError(f"The facts about the data name no samples x, only {', '.join(facts) or 'nothing'}.")
        return cls({name: make_field(fact) for name, fact in facts.items()})

    def render(self, x: Tensor) -> Tensor:
        """Samples as pictures with the channels that they have; see `Field.render`."""
        return self.x.render(x)
