"""Virtual batch normalisation: each sample is normalised by the statistics of a fixed reference batch and itself.

Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from genlab.errors import UserError
from genlab.networks.init import check_positive


class VirtualBatchNorm(nn.Module):
    """Normalises each sample by the statistics of the reference batch with the sample added to it.

    The first `reference_size` rows of the input are the reference batch; they are normalised by their own statistics.
    """

    def __init__(self, num_features: int, reference_size: int, eps: float = 1e-5, affine: bool = True) -> None:
        """Creates scale and shift.

        Args:
            num_features: Channels C.
            reference_size: n, the number of samples in the reference batch.
            eps: Added to variances.
            affine: Whether there is a learned scale and shift.
        """
        super().__init__()
        self.reference_size, self.eps = reference_size, eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """[n + N, C] or [n + N, C, ...] -> the same shape, reference batch included."""
        n, places = self.reference_size, tuple(range(2, x.dim()))  # position dimensions, if any
        reference, rest = x[:n], x[n:]
        mu_r = reference.mean(dim=(0, *places), keepdim=True)
        var_r = reference.var(dim=(0, *places), unbiased=False, keepdim=True)
        mu_x, var_x = rest, torch.zeros_like(rest)
        if places:
            mu_x = rest.mean(dim=places, keepdim=True)
            var_x = rest.var(dim=places, unbiased=False, keepdim=True)
        share = 1 / (n + 1)
        mu = share * mu_x + (1 - share) * mu_r
        # E x^2 - mu^2 of the mixture, computed without the difference of large numbers.
        var = share * var_x + (1 - share) * var_r + share * (1 - share) * (mu_x - mu_r).square()
        normal = torch.cat(
            [(reference - mu_r) * (var_r + self.eps).rsqrt(), (rest - mu) * (var + self.eps).rsqrt()],
        )
        if self.weight is None or self.bias is None:
            return normal
        scale = (1, -1, *[1] * len(places))
        return normal * self.weight.view(scale) + self.bias.view(scale)


class VirtuallyNormalised(nn.Module):
    """A network with virtual batch norms in place of its batch norms. Each batch passes with the reference batch.

    The output for a sample does not depend on the rest of its batch, in training mode or eval mode.
    """

    reference: Tensor

    def __init__(self, network: nn.Module, shape: Sequence[int], reference_size: int = 64) -> None:
        """Replaces every batch norm of a network, in place.

        Args:
            network: Maps [N, *shape] to an output with N rows; only its batch norms couple the rows.
            shape: Shape of one input: a latent for a generator, a sample for a discriminator.
            reference_size: Number of inputs in the reference batch.

        Raises:
            UserError: If the network has no batch norm.
        """
        super().__init__()
        check_positive("reference_size", reference_size)
        if not any(isinstance(module, _BatchNorm) for module in network.modules()):
            raise UserError(
                "tricks.virtual_batch_norm=true replaces the generator's batch norms, but the generator has none. "
                "Try network.norm=batch, or network.generator_norm=batch if the network has this key."
            )
        self.network: Any = _replaced(network, reference_size)
        self.reference_size = reference_size
        # A placeholder: the model calls `set_reference` before its first iteration.
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("reference", torch.randn(reference_size, *shape, generator=rng))

    @torch.no_grad()
    def set_reference(self, x: Tensor) -> None:
        """Sets the reference batch. The model calls this before its first iteration; checkpoints store the batch.

        Args:
            x: At least `reference_size` inputs [n, *shape]; only the first `reference_size` are used.

        Raises:
            ValueError: If there are fewer inputs, or their shape differs.
        """
        if len(x) < self.reference_size or x.shape[1:] != self.reference.shape[1:]:
            raise ValueError(f"The reference batch is {list(self.reference.shape)}, got inputs {list(x.shape)}.")
        self.reference.copy_(x[: self.reference_size])

    def features(self, x: Tensor) -> Tensor:
        """A discriminator's features [N, F]."""
        return self.network.features(torch.cat([self.reference, x]))[self.reference_size :]

    def logits(self, features: Tensor) -> Tensor:
        """A discriminator's logits [N] from its features [N, F]."""
        return self.network.logits(features)

    def forward(self, x: Tensor) -> Tensor:
        """[N, *shape] -> the network's output, without the rows of the reference batch."""
        return self.network(torch.cat([self.reference, x]))[self.reference_size :]


def _replaced(module: nn.Module, reference_size: int) -> nn.Module:
    """The module with its batch norms replaced by virtual ones, which keep the scales and shifts."""
    if isinstance(module, _BatchNorm):
        virtual = VirtualBatchNorm(module.num_features, reference_size, module.eps, module.affine)
        virtual.load_state_dict(dict(module.named_parameters()))
        return virtual
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, reference_size))
    return module
