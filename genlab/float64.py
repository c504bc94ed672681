"""Arithmetic in float64, of tensors on any device. Free of other parts of genlab, so that all of them may use it."""

from __future__ import annotations

from torch import Tensor

DEVICES_WITHOUT = ["mps"]  # Apple's GPUs


def in_float64(x: Tensor) -> Tensor:
    """x in float64, any shape; on the CPU if its device has no float64, else where it is. Keeps the gradient."""
    return (x.cpu() if x.device.type in DEVICES_WITHOUT else x).double()
