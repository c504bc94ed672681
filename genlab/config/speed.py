"""`speed.*`: the switches of a preset for a model on a device."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.engine.settings import Speed
    from genlab.models.base import GenerativeModel

WIDE = 2**17  # least number of weights of a dense layer for which bfloat16 pays at common batch sizes
PRESETS = ("exact", "fast")
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed", "float64": "64-true"}


def check(speed: dict[str, Any]) -> None:
    """Refuses an unknown preset or precision.

    Raises:
        UserError: If one is unknown.
    """
    if speed["preset"] not in PRESETS:
        raise UserError(f"speed.preset must be one of {', '.join(PRESETS)}, got {speed['preset']!r}.")
    if speed["precision"] not in (None, *PRECISIONS):
        raise UserError(f"speed.precision must be one of {', '.join(PRECISIONS)} or null, got {speed['precision']!r}.")


def resolve(config: dict[str, Any], model: GenerativeModel) -> tuple[Speed, str]:
    """The speed switches of a config, and Lightning's name of its precision.

    `fast` turns on the switches with a measured gain: reused fakes, fused optimizers (except in float16) and TF32 for
    all models; channels_last for models with convolutions; bfloat16 for models with convolutions or wide dense layers,
    if the device multiplies it faster (small dense networks lose by it). Compiling gained nothing on any CPU that was
    tried, and is left to the user.

    Args:
        config: Resolved; its `speed` and `trainer` are read.
        model: The model, for the kinds and sizes of its layers.

    Raises:
        UserError: If a value is unknown, or the device does not support it.
    """
    import torch
    from torch import nn

    from genlab.engine.settings import Speed

    asked = {"preset": "exact", "precision": None, **(config.get("speed") or {})}
    check(asked)
    accelerator = config["trainer"]["accelerator"]
    gpu = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    mps = accelerator == "mps" or accelerator in ("gpu", "auto") and not gpu and torch.backends.mps.is_available()
    fast = asked.pop("preset") == "fast"
    precision = asked.pop("precision")
    convolves = any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in model.modules())
    heavy = convolves or any(isinstance(m, nn.Linear) and m.weight.numel() >= WIDE for m in model.modules())
    half = torch.cuda.is_bf16_supported() if gpu else cpu_multiplies_bfloat16()
    default = {"reuse_fakes": fast, "channels_last": fast and convolves, "fused": fast, "compile": False, "tf32": fast}
    chosen = default | {key: value for key, value in asked.items() if value is not None}
    precision = precision or ("bfloat16" if fast and heavy and half else "float32")
    if precision == "float64" and mps:
        raise UserError("Apple's GPUs do not support speed.precision=float64. Try trainer=cpu.")
    if precision == "float16" and not gpu:
        raise UserError("speed.precision=float16 needs a GPU. Try speed.precision=bfloat16.")
    if precision == "float16" and asked.get("fused"):
        # Lightning leaves the unscaling to a fused kernel, so clipping would see scaled gradients.
        raise UserError(
            "speed.fused=true does not go with speed.precision=float16: gradients would be clipped before they are "
            "unscaled. Try speed.precision=bfloat16, or speed.fused=false."
        )
    if precision == "float16":
        chosen["fused"] = False
    if chosen["compile"] and not gpu and not _compiler():
        raise UserError("speed.compile=true needs a C++ compiler (g++ or clang++) on a CPU, and none was found.")
    return Speed(**chosen), PRECISIONS[precision]


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 (without them it is slower than float32)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def _compiler() -> bool:
    import os
    import shutil

    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
