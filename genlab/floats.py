"""Full-precision arithmetic on any device. Imports nothing from genlab, so that every module may import it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

DEVICES_WITHOUT = ["mps"]  # float64: Apple's GPUs


def in_float64(x: Tensor) -> Tensor:
    """x in float64, any shape; on its own device, or on the CPU if that has no float64. Differentiable."""
    return (x.cpu() if x.device.type in DEVICES_WITHOUT else x).double()


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Within the block, float32 operators compute with all 24 bits of mantissa: without TF32 and bfloat16.

    By default cuDNN's convolutions use TF32, and `torch.set_float32_matmul_precision` can lower the precision of
    matrix products, on a CPU too; either changes features by about 1e-3. The settings are restored afterwards.
    """
    backends = torch.backends
    cudnn, mkldnn = cast(Any, backends.cudnn), cast(Any, backends.mkldnn)  # the type stubs lack conv, rnn and matmul
    undo: list[Callable[[], None]] = []
    # First the older switches, which compilers read: they raise if the newer ones have been set without them.
    with contextlib.suppress(RuntimeError):
        if cudnn.allow_tf32:
            cudnn.allow_tf32 = False
            undo.append(partial(setattr, cudnn, "allow_tf32", True))
    with contextlib.suppress(RuntimeError):
        before = torch.get_float32_matmul_precision()
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.append(partial(torch.set_float32_matmul_precision, before))
    # Then the settings that only the newer switches have.
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
