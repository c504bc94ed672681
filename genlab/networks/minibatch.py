"""Minibatch discrimination: a discriminator that sees how close the samples of its batch are to each other.

Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from genlab.losses.numerics import exact
from genlab.networks.init import check_positive, feature_count


class MinibatchDiscrimination(nn.Module):
    """Appends similarities to the other samples of the batch to each sample's features: [N, A] -> [N, A + B].

    o(x_i)_b = sum over j != i of exp(-|M_ib - M_jb|_1), M_i = f(x_i) T in B x C. The sum excludes the sample
    itself, as in the authors' code (the paper's sum includes it, a constant 1). In training on several processes, the
    batch is that of all processes. The cost grows with N^2 B C.
    """

    def __init__(self, in_features: int, kernels: int = 100, kernel_dim: int = 5) -> None:
        """Creates T.

        Args:
            in_features: A.
            kernels: B, similarities per sample.
            kernel_dim: C, length of the vectors compared by each similarity.
        """
        super().__init__()
        check_positive("kernels", kernels, cure="100")
        check_positive("kernel_dim", kernel_dim, cure="5")
        self.kernels = kernels
        # Features of about 1 give distances of about 1, so that similarities are neither all 0 nor all 1.
        self.weight = nn.Parameter(torch.randn(in_features, kernels, kernel_dim) / math.sqrt(in_features * kernel_dim))

    @exact
    def similarities(self, features: Tensor) -> Tensor:
        """o(x), [N, B], each between 0 and the number of other samples in the batch."""
        m = torch.einsum("na,abc->nbc", features, self.weight)
        mates = _of_all_processes(m) if self.training else m
        near = (-(m[:, None] - mates[None]).abs().sum(dim=-1)).exp()  # [N, mates, B]
        return near.sum(dim=1) - 1  # a sample's distance to itself is exactly 0

    def forward(self, features: Tensor) -> Tensor:
        """[N, A] -> [N, A + B]."""
        return torch.cat([features, self.similarities(features)], dim=1)


class MinibatchDiscriminator(nn.Module):
    """A discriminator with minibatch discrimination before its head. Real and fake batches must come separately."""

    def __init__(self, discriminator: nn.Module, shape: Sequence[int], kernels: int = 100, kernel_dim: int = 5) -> None:
        """Wraps a discriminator that has `features` and, linear in them, `logits`.

        Args:
            discriminator: Maps samples [N, *shape] to logits [N].
            shape: Shape of a sample.
            kernels: Similarities per sample.
            kernel_dim: Length of the vectors compared by each similarity.
        """
        super().__init__()
        self.discriminator: Any = discriminator
        self.couples_samples, self.whole_batch = True, "tricks.minibatch_discrimination"
        self.in_features = feature_count(discriminator, shape)
        self.minibatch = MinibatchDiscrimination(self.in_features, kernels, kernel_dim)
        self.head = nn.Linear(kernels, 1, bias=False)  # added to the wrapped head: linear in [f, o]

    def features(self, x: Tensor) -> Tensor:
        """[N, *shape] -> [N, A + B]."""
        return self.minibatch(self.discriminator.features(x))

    def logits(self, features: Tensor) -> Tensor:
        """[N, A + B] -> logits [N]."""
        own, near = features[:, : self.in_features], features[:, self.in_features :]
        return self.discriminator.logits(own) + self.head(near).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, *shape] -> logits [N]."""
        return self.logits(self.features(x))


class _Gather(torch.autograd.Function):
    """Concatenates x [N, ...] of all processes: [world * N, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast(Tensor, _SumOfShares.apply(grad))


class _SumOfShares(torch.autograd.Function):
    """The adjoint of `_Gather`: sums tensors [world * N, ...] over the processes, returns this process's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast(Tensor, _Gather.apply(grad))


def _of_all_processes(x: Tensor) -> Tensor:
    """Concatenates x [N, ...] of all processes, with gradients; x itself without a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return cast(Tensor, _Gather.apply(x))
    return x
