"""Compilation of networks by `torch.compile`."""

from __future__ import annotations

from torch import nn

from genlab.randomness import Drawing


def compile_network(network: nn.Module) -> None:
    """Compiles a network as a whole; if parts of it are `Drawing`, its largest parts without one.

    Draws from a generator cannot be compiled. A number that changes with the iteration, such as the level of instance
    noise, is a constant of the compiled code, so each iteration would compile again.
    """
    if not any(isinstance(part, Drawing) for part in network.modules()):
        network.compile(dynamic=False)
        return
    for part in network.children():
        compile_network(part)
