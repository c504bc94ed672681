"""Inputs of contrastive objectives: a discriminator's features at several depths, as unit vectors, and their queue."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.losses.numerics import at_least_float32
from genlab.networks.init import check_positive, glorot_init_


def stage_ends(trunk: nn.Sequential) -> list[int]:
    """Positions of a trunk's last module before each further one with weights, and of its very last.

    A stage is a layer or a residual block with what follows it (normalisation, activation).
    """
    weighted = [i for i, m in enumerate(trunk) if any(isinstance(p, nn.Linear | nn.Conv2d) for p in m.modules())]
    return [start - 1 for start in weighted[1:]] + [len(trunk) - 1]


class Staged(nn.Module):
    """A discriminator's features after chosen stages of its trunk, each projected to a unit vector.

    Maps are brought to one channel by a 1 x 1 convolution and then projected as a whole, as in the DC-VAE's code. After
    the last stage it is what the adversarial head reads (pooled, where that is) which is projected.

    Args:
        discriminator: Has a `trunk` (`nn.Sequential`) and `features`: [N, *shape] -> [N, F].
        shape: Of a sample.
        stages: Numbers of the stages, from 0; -1 is the last. What names the same stage twice counts once.
        dim: Length of the vectors.

    Raises:
        UserError: If there is no such stage, or the discriminator has no trunk.
    """

    def __init__(self, discriminator: nn.Module, shape: Sequence[int], stages: Sequence[int], dim: int) -> None:
        super().__init__()
        check_positive("model.contrast_dim", dim, cure="16")
        trunk = getattr(discriminator, "trunk", None)
        if not isinstance(trunk, nn.Sequential) or not hasattr(discriminator, "features"):
            raise UserError(f"{type(discriminator).__name__} has no trunk with features to contrast. Try network=mlp.")
        self.ends = stage_ends(trunk)
        count = len(self.ends)
        if not len(stages) or any(not -count <= stage < count for stage in stages):
            raise UserError(
                f"The discriminator has {count} stages, so model.stages must be from {-count} to {count - 1}, got "
                f"{list(stages)}. Try 'model.stages=[0,-1]'."
            )
        self.stages = sorted({stage % count for stage in stages})
        modes = [(module, module.training) for module in discriminator.modules()]
        discriminator.eval()  # no statistics, no power iteration
        with torch.no_grad():
            examples = self.features(discriminator, torch.zeros(1, *shape))
        for module, mode in modes:
            module.training = mode
        self.heads = nn.ModuleList(_head(example, dim) for example in examples)

    def features(self, discriminator: Any, x: Tensor) -> list[Tensor]:
        """The discriminator's features of samples [N, *shape] after each of the stages, [N, ...] each."""
        seen: dict[int, Tensor] = {}

        def keep(stage: int) -> Any:
            return lambda _, __, output: seen.__setitem__(stage, output)

        last = len(self.ends) - 1
        hooks = [
            discriminator.trunk[self.ends[stage]].register_forward_hook(keep(stage))
            for stage in self.stages
            if stage != last
        ]
        try:
            seen[last] = discriminator.features(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [seen[stage] for stage in self.stages]

    def forward(self, discriminator: nn.Module, x: Tensor) -> Tensor:
        """Samples [N, *shape] -> unit vectors [L, N, dim] of the L stages."""
        found = [head(part) for head, part in zip(self.heads, self.features(discriminator, x), strict=True)]
        return F.normalize(at_least_float32(torch.stack(found)), dim=2)


def _head(example: Tensor, dim: int) -> nn.Module:
    """The projection of features like an example of one, [1, ...] -> [1, dim]."""
    if example.dim() == 2:
        return glorot(nn.Linear(example.shape[1], dim, bias=False))
    _, channels, height, width = example.shape
    # A bias of the one channel would turn all vectors the same way, and nothing else.
    return glorot(
        nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.Flatten(), nn.Linear(height * width, dim, bias=False))
    )


def glorot(network: nn.Module) -> nn.Module:
    """The network, with Glorot's weights."""
    glorot_init_(network)
    return network


class Momentum(nn.Module):
    """A copy of a module that follows it slowly and has no parameters: no gradient reaches it, checkpoints hold it.

    He et al. (2020), arXiv:1911.05722, Eq. 2. Weights are averaged; what else the module keeps (the vectors of spectral
    normalisation, counters) is copied. It always runs in eval mode.

    Args:
        module: What it follows; it is deeply copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        for part in self.module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    del part._parameters[name]
                    part.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Takes over 1 - momentum of each weight of the module."""
        own = dict(self.module.named_buffers())
        weights = dict(module.named_parameters())
        torch._foreach_lerp_([own[name] for name in weights], list[Tensor](weights.values()), 1 - momentum)
        for name, buffer in module.named_buffers():
            own[name].copy_(buffer)

    def frozen(self) -> nn.Module:
        """The copy, in eval mode whatever mode the model that holds it was put in."""
        return self.module.eval()


class KeyQueue(nn.Module):
    """The last K keys of each of L stages, a ring whose length need not be a multiple of the batch.

    Args:
        stages: L.
        size: K.
        dim: Length of a key.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, stages: int, size: int, dim: int) -> None:
        super().__init__()
        check_positive("model.queue_size", size, cure="512")
        self.register_buffer("keys", torch.zeros(stages, size, dim))
        self.register_buffer("pointer", torch.tensor(0))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Puts keys [L, N, dim] in the place of the oldest ones; of more than K the last K."""
        size = self.keys.shape[1]
        keys = keys[:, -size:]
        rows = (self.pointer + torch.arange(keys.shape[1], device=self.pointer.device)) % size
        self.keys[:, rows] = keys.to(self.keys.dtype)
        self.pointer.copy_((self.pointer + keys.shape[1]) % size)
