"""Facts about a data set (`DataSpec`) and the input of a training step (`Batch`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError

KINDS = ("image", "points", "sequence", "tokens")


@dataclass(frozen=True)
class DataSpec:
    """The facts that networks, metrics and plots need to know about the data.

    Attributes:
        kind: One of `KINDS`.
        shape: Shape of one sample: (C, H, W) of an image, (D,) of a point.
        num_classes: Number of labels, None without labels.
        condition_shape: Shape of one condition `Batch.c`, None without conditions.
        value_range: Smallest and largest value of `Batch.x`; None where there are no bounds (points).
        class_names: One name per class, None where the classes have none.
        factor_names: One name per column of `Batch.factor`, None where no factors are known.
    """

    kind: str
    shape: tuple[int, ...]
    num_classes: int | None = None
    condition_shape: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = (-1.0, 1.0)
    class_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"data.kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.kind == "image" and len(self.shape) != 3:
            raise UserError(f"An image has the shape [C, H, W], got data.shape={list(self.shape)}.")
        if not self.shape or min(self.shape) < 1:
            raise UserError(f"data.shape must hold positive numbers, got {list(self.shape)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only (lists, numbers, strings, None), for checkpoints and cards."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> DataSpec:
        """Inverse of `to_dict`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        return cls(**plain)

    def render(self, x: Tensor) -> Tensor:
        """Samples as pictures.

        Args:
            x: Samples [N, C, H, W] in [-1, 1].

        Returns:
            uint8 pictures [N, C, H, W].

        Raises:
            UserError: If samples of this kind are no images (points are drawn as a scatter plot elsewhere).
        """
        if self.kind != "image":
            raise UserError(f"Samples of kind {self.kind!r} cannot be shown as images; choose an image data set.")
        from genlab.fields.image import to_uint8  # the one place that converts; metrics know torch only

        return to_uint8(x)


@dataclass(slots=True)
class Batch:
    """One batch; what the data set does not have is None.

    Attributes:
        x: Samples [N, ...]; images are in [-1, 1].
        y: Labels [N], int64, -1 where the label is missing.
        c: Conditions or paired images [N, ...].
        mask: Which entries of `x` count, [N, ...].
        length: Lengths of sequences [N].
        factor: Known factors of variation [N, F], each in [-1, 1].
        index: Positions of the samples in their split [N].
        group: Which factor alone varies in this batch, int64 []: a column of `factor`, or F for all that no column
            holds (the class); None where the samples are independent.
    """

    x: Tensor
    y: Tensor | None = None
    c: Tensor | None = None
    mask: Tensor | None = None
    length: Tensor | None = None
    factor: Tensor | None = None
    index: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`; the batch itself where it already is there."""
        tensors = (self.x, self.y, self.c, self.mask, self.length, self.factor, self.index, self.group)
        if all(t is None or is_on(t, device) for t in tensors):
            return self
        return Batch(*(None if t is None else t.to(device, non_blocking=non_blocking) for t in tensors))  # type: ignore[arg-type]


def is_on(tensor: Tensor, device: torch.device | str) -> bool:
    """Whether `tensor` lies on `device`; a device without a number ("cuda") stands for the current one."""
    device = torch.device(device)
    here = tensor.device
    if here == device:
        return True
    if here.type != device.type or device.index is not None:
        return False
    return here.type != "cuda" or here.index == torch.cuda.current_device()
