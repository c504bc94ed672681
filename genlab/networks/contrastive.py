"""Inputs of contrastive objectives: a discriminator's features at several depths as unit vectors, and their queue."""

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
    """Position of the last module of each stage of a trunk.

    A stage is a layer or a residual block with the normalisation and activation that follow it.
    """
    weighted = [i for i, m in enumerate(trunk) if any(isinstance(p, nn.Linear | nn.Conv2d) for p in m.modules())]
    return [start - 1 for start in weighted[1:]] + [len(trunk) - 1]


class Staged(nn.Module):
    """A discriminator's features after chosen stages of its trunk, each projected to a unit vector.

    Feature maps are reduced to one channel by a 1 x 1 convolution and then projected as a whole, as in the DC-VAE's
    code. For the last stage, the input of the adversarial head is projected (pooled, if the discriminator pools it).

    Args:
        discriminator: Has a `trunk` (`nn.Sequential`) and `features`: [N, *shape] -> [N, F].
        shape: Shape of a sample.
        stages: Indices of the stages, from 0; -1 is the last. Duplicates count once.
        dim: Length of the vectors.

    Raises:
        UserError: If a stage does not exist, or the discriminator has no trunk.
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
        discriminator.eval()  # no update of statistics, no power iteration
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
    """The projection [N, ...] -> [N, dim] of features with the shape of an example [1, ...]."""
    if example.dim() == 2:
        return glorot(nn.Linear(example.shape[1], dim, bias=False))
    _, channels, height, width = example.shape
    # A bias of the one channel would only add the same vector to all projections.
    return glorot(
        nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.Flatten(), nn.Linear(height * width, dim, bias=False))
    )


def glorot(network: nn.Module) -> nn.Module:
    """The network, with the initial weights of `glorot_init_`."""
    glorot_init_(network)
    return network


class Momentum(nn.Module):
    """A moving average of a module, held in buffers: it gets no gradient and is part of checkpoints.

    He et al. (2020), arXiv:1911.05722, Eq. 2. Weights are averaged; buffers (the vectors of spectral normalisation,
    counters) are copied. It always runs in eval mode.

    Args:
        module: The averaged module; the average starts as a deep copy.
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
        """Updates each weight: own <- momentum * own + (1 - momentum) * weight of the module."""
        own = dict(self.module.named_buffers())
        weights = dict(module.named_parameters())
        torch._foreach_lerp_([own[name] for name in weights], list[Tensor](weights.values()), 1 - momentum)
        for name, buffer in module.named_buffers():
            own[name].copy_(buffer)

    def frozen(self) -> nn.Module:
        """The average in eval mode, also while the model that contains it is in training mode."""
        return self.module.eval()


class KeyQueue(nn.Module):
    """A ring buffer of the last K keys of each of L stages; K need not be a multiple of the batch size.

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
        """Replaces the oldest keys with keys [L, N, dim]; if N > K, with the last K of them."""
        size = self.keys.shape[1]
        keys = keys[:, -size:]
        rows = (self.pointer + torch.arange(keys.shape[1], device=self.pointer.device)) % size
        self.keys[:, rows] = keys.to(self.keys.dtype)
        self.pointer.copy_((self.pointer + keys.shape[1]) % size)
