"""What keeps objectives exact when networks run in half precision or compiled."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x itself, or in float32 if it comes in half precision: sums and differences of logits need the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def eager() -> AbstractContextManager[None]:
    """Inside, compiled networks run as they are written: compiled ones have no second derivatives.

    Nothing is imported where nothing was compiled.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
