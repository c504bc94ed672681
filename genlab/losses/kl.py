"""Weights and bounds of the KL divergence in an objective: warm-up, cycles, free bits, a capacity.

Each class maps KL(q || p) of a batch to a scalar. The model multiplies it by its `kl_weight` and adds it to the
reconstruction term. The KL comes split into terms: one per latent if it has a closed form, else one in all. A schedule
is a function of the iteration alone, so that a resumed run continues it exactly.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class KLTerm(nn.Module):
    """The KL term of an objective, in nats per sample, before `kl_weight`.

    Attributes:
        whole_batch: Its name, if it is no mean over samples and so needs the whole batch; else "".
    """

    whole_batch = ""

    @abstractmethod
    def forward(self, kl: Tensor, iteration: int) -> Tensor:
        """A scalar.

        Args:
            kl: The G terms of each sample's KL, [N, G], in nats; of the batch over all processes if it needs it.
            iteration: Number of iterations done.
        """


class Constant(KLTerm):
    """The KL itself: the ELBO with kl_weight = 1, else the beta-VAE, Higgins et al. (2017)."""

    def forward(self, kl: Tensor, iteration: int) -> Tensor:
        """E KL, the mean over the batch."""
        return kl.sum(dim=1).mean()


class WarmUp(KLTerm):
    """The KL times a factor that rises linearly from 0 to 1.

    Bowman et al. (2016), arXiv:1511.06349, section 3.1; linear as in Sonderby et al. (2016), arXiv:1602.02282.
    """

    def __init__(self, steps: int) -> None:
        """Sets the length of the warm-up.

        Args:
            steps: Iterations until the full weight.
        """
        super().__init__()
        _check_steps("steps", steps)
        self.steps = steps

    def forward(self, kl: Tensor, iteration: int) -> Tensor:
        """min(1, t / steps) E KL."""
        return min(1.0, iteration / self.steps) * kl.sum(dim=1).mean()


class Cyclical(KLTerm):
    """The KL times a periodic factor: in each cycle it rises from 0 to 1, then stays at 1.

    Fu et al. (2019), "Cyclical Annealing Schedule", arXiv:1903.10145, Eq. 6 and 7.
    """

    def __init__(self, period: int, rising: float = 0.5) -> None:
        """Sets the cycle.

        Args:
            period: Iterations of a cycle.
            rising: Share of the cycle in which the factor rises (R of the paper), in (0, 1].

        Raises:
            ValueError: If a value is out of its range.
        """
        super().__init__()
        _check_steps("period", period)
        if not 0 < rising <= 1:
            raise ValueError(f"kl.rising must lie in (0, 1], got {rising}.")
        self.period, self.rising = period, rising

    def forward(self, kl: Tensor, iteration: int) -> Tensor:
        """min(1, (t mod period) / (rising period)) E KL."""
        factor = min(1.0, iteration % self.period / (self.rising * self.period))
        return factor * kl.sum(dim=1).mean()


class FreeBits(KLTerm):
    """Free bits: lowering a KL term below a number of nats does not lower the objective. Against unused latents.

    Kingma et al. (2016), "Inverse Autoregressive Flow", arXiv:1606.04934, Eq. 15: the mean over the batch is taken
    before the maximum.
    """

    whole_batch = "kl=free_bits"

    def __init__(self, nats: float) -> None:
        """Sets the floor.

        Args:
            nats: lambda of each term: per latent if the KL has a closed form, else for all latents together.

        Raises:
            ValueError: If `nats` is negative.
        """
        super().__init__()
        if nats < 0:
            raise ValueError(f"kl.nats must be at least 0, got {nats}.")
        self.nats = nats

    def forward(self, kl: Tensor, iteration: int) -> Tensor:
        """sum_g max(lambda, mean_n KL_ng)."""
        return kl.mean(dim=0).clamp_min(self.nats).sum()


class Capacity(KLTerm):
    """The distance of the KL from a capacity that grows linearly; kl_weight is the paper's gamma.

    Burgess et al. (2018), "Understanding disentangling in beta-VAE", arXiv:1804.03599, Eq. 8.
    """

    whole_batch = "kl=capacity"

    def __init__(self, nats: float, steps: int) -> None:
        """Sets the capacity.

        Args:
            nats: Final capacity C.
            steps: Iterations in which C grows from 0 to `nats`.

        Raises:
            ValueError: If the capacity is negative or `steps` below 1.
        """
        super().__init__()
        _check_steps("steps", steps)
        if nats < 0:
            raise ValueError(f"kl.nats must be at least 0, got {nats}.")
        self.nats, self.steps = nats, steps

    def forward(self, kl: Tensor, iteration: int) -> Tensor:
        """|E KL - C(t)|."""
        return (kl.sum(dim=1).mean() - min(1.0, iteration / self.steps) * self.nats).abs()


def _check_steps(key: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"kl.{key} must be at least 1, got {steps}.")
