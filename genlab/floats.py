"""Arithmetic with all its digits on any device. Free of other parts of genlab, so that all of them may use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

DEVICES_WITHOUT = ["mps"]  # float64: Apple's GPUs


def in_float64(x: Tensor) -> Tensor:
    """x in float64, any shape; on the CPU if its device has no float64, else where it is. Keeps the gradient."""
    return (x.cpu() if x.device.type in DEVICES_WITHOUT else x).double()


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, operators on float32 keep all 24 bits: no TF32, no bfloat16 behind them.

    cuDNN's convolutions use TF32 unless told otherwise, and `torch.set_float32_matmul_precision` reaches products of
    matrices, on a CPU too; either moves features by about 1e-3. All is put back afterwards.
    """
    backends = torch.backends
    cudnn, mkldnn = cast(Any, backends.cudnn), cast(Any, backends.mkldnn)  # their stubs lack the operators
    undo: list[Callable[[], None]] = []
    # The older switches first, which compilers read: they raise once the newer ones have been turned without them.
    with contextlib.suppress(RuntimeError):
        if cudnn.allow_tf32:
            cudnn.allow_tf32 = False
            undo.append(partial(setattr, cudnn, "allow_tf32", True))
    with contextlib.suppress(RuntimeError):
        before = torch.get_float32_matmul_precision()
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.append(partial(torch.set_float32_matmul_precision, before))
    # Then what only the newer ones know.
    for each in (cast(Any, backends.cuda.matmul), cudnn.conv, cudnn.rnn, mkldnn.conv, mkldnn.matmul, mkldnn.rnn):
        precision = each.fp32_precision
        if precision not in ("ieee", "none"):
            each.fp32_precision = "ieee"
            undo.append(partial(setattr, each, "fp32_precision", precision))
    try:
        yield
    finally:
        for step in reversed(undo):
            step()
