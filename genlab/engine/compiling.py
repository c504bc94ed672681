"""Compilation of networks by `torch.compile`."""

from __future__ import annotations

from torch import nn

from genlab.randomness import Drawing


def compile_network(network: nn.Module) -> None:
    """Compiles a network whole; where a part of it draws or follows a clock, the largest parts that do not.

    Draws from a generator cannot be compiled, and a number that changes with the iteration, as the level of instance
    noise does, is a constant of what was compiled: each iteration would compile anew.
    """
    if not any(isinstance(part, Drawing) for part in network.modules()):
        network.compile(dynamic=False)
        return
    for part in network.children():
        compile_network(part)
