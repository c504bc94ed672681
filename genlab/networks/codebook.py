"""Vector quantisation with a codebook of moving averages of the encodings."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from genlab.errors import UserError


class Codebook(nn.Module):
    """K vectors; each is the moving average of the encodings nearest to it. All state is in buffers, in float32.

    van den Oord, Vinyals & Kavukcuoglu (2017), arXiv:1711.00937, Appendix A.1. A code whose share of the encodings
    falls below `restart_below` / K is reset to a random encoding of the batch (as in Dhariwal et al., 2020, "Jukebox",
    arXiv:2005.00341, section 3.1).

    Args:
        codes: K.
        dim: D, length of a code.
        decay: gamma, the decay of the moving averages.
        restart_below: Fraction of the equal share 1 / K below which a code is reset; 0: never.
    """

    averaged_buffers: ClassVar[tuple[str, ...]] = ("vectors", "counts", "sums")  # averaged together with the weights
    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int, decay: float = 0.99, restart_below: float = 0.05) -> None:
        super().__init__()
        if codes < 2 or dim < 1:
            raise UserError(f"A codebook needs at least 2 codes of at least 1 number, got {codes} and {dim}.")
        if not 0 <= decay < 1 or not 0 <= restart_below < 1:
            raise UserError(f"Codebook decay and restart_below must lie in [0, 1), got {decay} and {restart_below}.")
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("vectors", torch.zeros(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))  # N: average count of a code in a batch
        self.register_buffer("sums", torch.zeros(codes, dim))  # m: average sum of its encodings in a batch

    def start(self, encodings: Tensor, order: Tensor) -> None:
        """Initialises the codes with encodings [M, D] in a random order [M], repeated if M < K."""
        chosen = order.repeat(-(-len(self.vectors) // len(order)))[: len(self.vectors)]
        self.vectors.copy_(encodings[chosen])
        self.counts.fill_(1.0)
        self.sums.copy_(self.vectors)

    def nearest(self, encodings: Tensor) -> Tensor:
        """Index [M] of the code nearest to each encoding [M, D]."""
        with torch.autocast(encodings.device.type, enabled=False):
            e = encodings.detach().to(self.vectors.dtype)
            # |e|^2 - 2 e.c + |c|^2 without the first term, which is the same for all codes.
            return (self.vectors.square().sum(dim=1) - 2 * e @ self.vectors.T).argmin(dim=1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes [..., D] of indices [...]."""
        return self.vectors[indices]

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The codes [N, D, h, w] nearest to encodings of that shape, and their indices [N, h, w]."""
        indices = self.nearest(rows(z)).view(len(z), *z.shape[2:])
        return self.as_map(indices).to(z.dtype), indices

    def as_map(self, indices: Tensor) -> Tensor:
        """Codes [N, D, h, w] of indices [N, h, w]."""
        return self.lookup(indices).permute(0, 3, 1, 2)

    @torch.no_grad()
    def update(self, encodings: Tensor, indices: Tensor, uniform: Tensor) -> None:
        """One step of the moving averages: N <- gamma N + (1 - gamma) n, m <- gamma m + (1 - gamma) sum, e = m / N.

        Args:
            encodings: Encodings of the batch of all processes, [M, D].
            indices: Index of the code nearest to each encoding, [M].
            uniform: Random numbers [M], equal on all processes, which choose the encodings for the reset codes.
        """
        encodings = encodings.to(self.vectors.dtype)
        count = counted(indices, len(self.vectors)).to(self.counts)
        total = torch.zeros_like(self.sums).index_add_(0, indices, encodings)
        self.counts.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        share = self.counts.sum() / len(self.counts)  # the equal share
        if self.restart_below:
            dead = self.counts < self.restart_below * share
            order = uniform.argsort()
            chosen = order.repeat(-(-len(self.counts) // len(order)))[: len(self.counts)]
            anew = encodings[chosen]
            self.counts.copy_(torch.where(dead, share, self.counts))
            self.sums.copy_(torch.where(dead[:, None], share * anew, self.sums))
        # An unused code does not move: its sum and its count decay by the same factor.
        tiny = torch.finfo(self.counts.dtype).tiny
        used = self.counts > 1e-5 * share + tiny
        self.vectors.copy_(torch.where(used[:, None], self.sums / self.counts.clamp_min(tiny)[:, None], self.vectors))


def rows(z: Tensor) -> Tensor:
    """Encodings [N, D, h, w] as rows [N h w, D]."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def counted(indices: Tensor, codes: int) -> Tensor:
    """Number of occurrences of each code among indices [M]: float32 [codes], exact up to 2^24."""
    # Not `bincount`: on a GPU it synchronises to read the largest index.
    counts = torch.zeros(codes, device=indices.device)
    return counts.index_add_(0, indices, torch.ones(len(indices), device=indices.device))


def perplexity(indices: Tensor, codes: int) -> Tensor:
    """exp of the entropy of the codes' frequencies among indices [...]: effective number of codes in use, 1..K."""
    p = counted(indices.flatten(), codes) / indices.numel()
    return torch.special.entr(p).sum().exp()
