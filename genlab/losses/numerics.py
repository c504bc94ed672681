"""Objectives in float32, for networks that run in half precision or compiled."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

F = TypeVar("F", bound=Callable[..., Any])


def at_least_float32(x: Tensor) -> Tensor:
    """x itself, or as float32 if it is float16 or bfloat16, which are too coarse for sums and differences of logits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def exact(function: F) -> F:
    """Decorator: runs an objective, or another function of tensors, in float32 and without autocast.

    Half-precision arguments are cast first. The device is that of the first tensor among the arguments.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args = tuple(at_least_float32(a) if isinstance(a, Tensor) else a for a in args)
        kwargs = {name: at_least_float32(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
        device = next(a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    return cast(F, wrapper)


class _InFloat32:
    """A bound method of a network that returns float32 tensors. A deep copy of the network has its own."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _cast(getattr(type(self.module), self.name)(self.module, *args, **kwargs))


def leave_in_float32(module: nn.Module) -> None:
    """Casts the half-precision outputs of a network to float32: those of a call and of every public method.

    Objectives are sums and differences, for which half precision is too coarse. Nothing changes within the network. In
    modules that are not called themselves (a list of networks, an adversary, a first stage) the children are treated.
    """
    if module.__dict__.get("_leaves_in_float32"):
        return
    module.__dict__["_leaves_in_float32"] = True
    whole = hasattr(type(module), "automatic_optimization")  # a Lightning module: its methods do not run in a step
    if not whole:
        for name in _public_methods(type(module)):
            module.__dict__[name] = _InFloat32(module, name)
    if whole or type(module).forward is nn.Module.forward:
        for part in module.children():
            leave_in_float32(part)
    else:
        module.register_forward_hook(_cast_output)


def _public_methods(kind: type) -> list[str]:
    """Names of the public methods of a network's classes that `nn.Module` does not have."""
    own = {name for c in kind.__mro__ if not c.__module__.startswith("torch.") for name in vars(c)}
    found = (name for name in sorted(own) if not name.startswith("_") and not hasattr(nn.Module, name))
    return [name for name in found if inspect.isfunction(inspect.getattr_static(kind, name))]


def _cast(output: Any) -> Any:
    return at_least_float32(output) if isinstance(output, Tensor) else tree_map_only(Tensor, at_least_float32, output)


def _cast_output(_: nn.Module, __: Any, output: Any) -> Any:
    return _cast(output)


class _Eager:
    """Sets `torch.compile` to eager. That setting is global: the first thread in sets it, the last out restores it."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.stance: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if self.stance is None and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")
                self.stance.__enter__()
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


_EAGER = _Eager()


def eager() -> AbstractContextManager[None]:
    """Within the block, compiled networks run eagerly: compiled ones have no second derivatives.

    If nothing was compiled, torch._dynamo is not imported. Threads may enter and leave in any order.
    """
    return _EAGER
