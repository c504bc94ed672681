"""The restricted Boltzmann machine, trained by contrastive divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.floats import in_float64
from genlab.losses.likelihoods import Bernoulli
from genlab.losses.numerics import exact
from genlab.models.base import GenerativeModel, inference
from genlab.networks.init import check_positive

FRAMES = 21  # of a Gibbs chain, at most


class Machine(nn.Module):
    """E(v, h) = -b'v - c'h - h'Wv of binary visible units v [N, D] and hidden ones h [N, H].

    Smolensky (1986); Hinton (2002), "Training products of experts by minimizing contrastive divergence".

    Args:
        visible: D.
        hidden: H.
        weight_std: Standard deviation of the normal initial weights.
    """

    def __init__(self, visible: int, hidden: int, weight_std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_std * torch.randn(hidden, visible))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def hidden_logits(self, v: Tensor) -> Tensor:
        """logit p(h_j = 1 | v), [N, H]."""
        return F.linear(v, self.weight, self.hidden_bias)

    def visible_logits(self, h: Tensor) -> Tensor:
        """logit p(v_i = 1 | h), [N, D]."""
        return F.linear(h, self.weight.T, self.visible_bias)

    @exact
    def forward(self, v: Tensor) -> Tensor:
        """Free energies F(v) = -log sum_h exp(-E(v, h)), [N]: -b'v - sum_j log(1 + exp(c_j + W_j v))."""
        return -v @ self.visible_bias - F.softplus(self.hidden_logits(v)).sum(dim=1)

    @exact
    def contrast(self, v: Tensor, v_model: Tensor) -> Tensor:
        """mean F(v) - mean F(v_model), of [N, D] and [M, D].

        Both gradients are sums of probabilities near 1/2, whose difference would lose digits. With softplus(a) = a/2 +
        (softplus(a) - a/2), the terms a/2 are subtracted first; c cancels in them.
        """

        def even(states: Tensor) -> Tensor:
            logits = self.hidden_logits(states)
            return (F.softplus(logits) - logits / 2).sum(dim=1).mean()

        linear = self.visible_bias + self.weight.sum(dim=0) / 2
        return (v_model.mean(dim=0) - v.mean(dim=0)) @ linear + even(v_model) - even(v)


class RBM(GenerativeModel):
    """Restricted Boltzmann machine with CD-k, or with persistent chains (PCD).

    Hinton (2002), Neural Computation 14; Tieleman (2008), "Training restricted Boltzmann machines using approximations
    to the likelihood gradient", ICML. The gradient of -log p is that of E F(v_data) - E F(v_model), with v_model from k
    steps of Gibbs sampling that start at the data (CD) or at the last states of the previous update (PCD). log Z comes
    from annealed importance sampling, Salakhutdinov & Murray (2008), "On the quantitative analysis of deep belief
    networks", ICML. Images in [-1, 1] are mapped to [0, 1]; grey values are read as probabilities.
    """

    kinds = ("image",)
    ema_modules = ("machine",)
    chains: Tensor
    base: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int,
        k: int = 1,
        persistent: int = 0,
        weight_std: float = 0.01,
        chain_steps: int = 1000,
    ) -> None:
        """Builds the machine.

        Args:
            hidden: Number of hidden units.
            persistent: Number of chains that continue from one update to the next (PCD); 0: chains start at the data
                (CD).
            chain_steps: Steps of the chains that draw samples.

        Raises:
            UserError: If a number is out of its range, or the data are not images.
        """
        super().__init__()
        if len(shape) != 3:
            raise UserError(f"model=rbm is for images, got data of shape {list(shape)}. Try data=digits.")
        for key, value, cure in (("hidden", hidden, "500"), ("k", k, "1"), ("chain_steps", chain_steps, "1000")):
            check_positive(f"model.{key}", value, cure)
        if persistent < 0 or not weight_std >= 0:
            raise UserError(
                f"model.persistent and model.weight_std must be at least 0, got {persistent} and {weight_std}."
            )
        visible = math.prod(shape)
        self.shape, self.latent_dim = tuple(int(n) for n in shape), hidden
        self.k, self.persistent, self.chain_steps = k, persistent, chain_steps
        self.machine, self.likelihood = Machine(visible, hidden, weight_std), Bernoulli()
        self.register_buffer("chains", torch.zeros(persistent, visible))  # visible states, kept by checkpoints
        self.register_buffer("base", torch.zeros(visible))  # logits of the mean image: chains and AIS start from it
        self.add_player("rbm", self.machine, "optimizer")

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Starts the visible biases at the mean sample, and persistent chains at samples.

        Hinton (2010), "A practical guide to training restricted Boltzmann machines", section 8.
        """
        x, needed = [next(batches).x for _ in range(8)], max(1, self.persistent)
        while sum(map(len, x)) < needed:
            x.append(next(batches).x)
        samples = torch.cat(x)
        self.base.copy_(self.likelihood.visible_bias(samples).flatten())
        self.machine.visible_bias.copy_(self.base)
        self.chains.copy_(_units(samples)[: self.persistent].round())

    def gibbs(self, v: Tensor, steps: int, rng: torch.Generator | None = None) -> Tensor:
        """Visible states [N, D] after `steps` steps v -> h -> v.

        Args:
            v: Start of the chains, [N, D].
            steps: Number of steps.
            rng: Source of the draws; the stream of training unless given.
        """
        for _ in range(steps):
            h = self._bernoulli(self.machine.hidden_logits(v), rng)
            v = self._bernoulli(self.machine.visible_logits(h), rng)
        return v

    def _bernoulli(self, logits: Tensor, rng: torch.Generator | None) -> Tensor:
        """Draws of 0 or 1 from logits [N, ...]."""
        return (self.rand(*logits.shape, rng=rng) < logits.sigmoid()).to(logits.dtype)

    def _start(self, n: int, rng: torch.Generator | None) -> Tensor:
        """n visible states from the base rates, [n, D]."""
        return self._bernoulli(self.base.expand(n, -1), rng)

    def _shown(self, v: Tensor) -> Tensor:
        """E[v | h] at the hidden probabilities given v [N, D]: images [N, *shape] in [-1, 1]."""
        logits = self.machine.visible_logits(self.machine.hidden_logits(v).sigmoid())
        return self.likelihood.mean(logits).unflatten(1, self.shape)

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """The mean images of the last step of n Gibbs chains of `chain_steps` steps, [n, *shape]."""
        return self._shown(self.gibbs(self._start(n, rng), self.chain_steps - 1, rng))

    @inference
    def frames(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """n chains at T evenly spaced steps, the first and the last among them, [T, n, *shape]."""
        v, at, shown = self._start(n, rng), 0, []
        count = min(FRAMES, self.chain_steps)
        for step in (i * (self.chain_steps - 1) // max(1, count - 1) for i in range(count)):
            v, at = self.gibbs(v, step - at, rng), step
            shown.append(self._shown(v))
        return torch.stack(shown)

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """p(h = 1 | x), [N, hidden]."""
        return self.machine.hidden_logits(_units(x)).sigmoid()

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[v | h] at the hidden probabilities of each sample."""
        return self._shown(_units(x))

    @inference
    def log_unnormalised(self, x: Tensor) -> Tensor:
        """log p(x) + log Z = -F(x), [N] nats."""
        return -self.machine(_units(x))

    @inference
    def log_partition(self, steps: int, chains: int, rng: torch.Generator | None = None) -> Tensor:
        """Logarithms of annealed weights whose mean is Z without bias, [chains] in float64.

        Salakhutdinov & Murray (2008), section 4.1, from the base rates (hidden units without effect) along uniform
        temperatures: p*_b(v) = exp((1 - b) b_0'v + b b'v) prod_j (1 + exp(b (c_j + W_j v))).

        Args:
            steps: Temperatures between the base rates and the machine.
            chains: Number of weights.
            rng: Source of the draws.
        """
        v, beta = self._start(chains, rng), [i / steps for i in range(steps + 1)]
        start = self.latent_dim * math.log(2) + in_float64(F.softplus(self.base)).sum()
        log_w = start.expand(chains).clone()
        for before, now in zip(beta, beta[1:], strict=False):
            logits = self.machine.hidden_logits(v)
            change = (now - before) * in_float64(v @ (self.machine.visible_bias - self.base))
            wide = in_float64(logits)
            log_w += change + (F.softplus(now * wide) - F.softplus(before * wide)).sum(dim=1)
            h = self._bernoulli(now * logits, rng)
            v = self._bernoulli((1 - now) * self.base + now * self.machine.visible_logits(h), rng)
        return log_w

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """The `contrast` of free energies: its gradient estimates that of -log p, its value is not a likelihood.

        Persistent chains are continued in training only; in evaluation chains start at the data.
        """
        v = _units(x)
        with torch.no_grad():
            if self.training and self.persistent:
                with self.common_draws():  # all processes run the same chains
                    self.chains.copy_(self.gibbs(self.chains, self.k))
                negative = self.chains.clone()
            else:
                negative = self.gibbs(self._bernoulli_of(v, rng), self.k, rng)
            recon = F.binary_cross_entropy_with_logits(
                self.machine.visible_logits(self.machine.hidden_logits(v).sigmoid()), v, reduction="none"
            )
            free_energy = self.machine(v).mean()
        contrast = self.machine.contrast(v, negative)
        return {"contrast": contrast, "recon": recon.sum(dim=1).mean(), "free_energy": free_energy}

    def _bernoulli_of(self, v: Tensor, rng: torch.Generator | None) -> Tensor:
        """Binary states drawn from probabilities [N, D]; binary data do not change."""
        return (self.rand(*v.shape, rng=rng) < v).to(v.dtype)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise E F(data) - E F(v_k), without gradient through the chains."""
        with self.turn("rbm") as rbm:
            terms = self.objective(batch.x)
            rbm.minimise(terms["contrast"])
        self.record(**terms)


def _units(x: Tensor) -> Tensor:
    """Images [N, ...] in [-1, 1] as visible units [N, D] in [0, 1]."""
    return (x.flatten(1) + 1) / 2
