"""f-GAN: generators trained on any f-divergence, through the variational bound that a discriminator maximises.

Nowozin, Cseke & Tomioka (2016), arXiv:1606.00709. For a convex f with f(1) = 0,

    D_f(P || Q) = int q f(p / q)  >=  F = E_P[g_f(V(x))] - E_Q[f*(g_f(V(x)))],

where f* is the conjugate of f, V the discriminator's raw output (here the logits), and g_f an increasing map onto the
domain of f*. The discriminator maximises F; equality holds at g_f(V) = f'(p / q). The generator of Q minimises F.

For numerical safety f* and g_f are composed in closed form, so that rounding cannot leave the domain of f*. If an
exponential of V remains, `tamed` is applied to V first. Any increasing g_f gives a valid bound, so this does not change
the divergence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.losses.adversarial import AdversarialLoss

KNEE = 20.0


def tamed(v: Tensor) -> Tensor:
    """v up to 20, and 20 + log(1 + v - 20) above: increasing and smooth, with an exponential that grows linearly.

    Above 20, e^tamed(v) is e^20 (v - 19): a logit of 10^4 gives 5e12, where e^v would be infinite. Its slope there is
    constant, e^20 or about 5e8.
    """
    return torch.where(v > KNEE, KNEE + torch.log1p(F.relu(v - KNEE)), v)


class _LogLambertW(torch.autograd.Function):
    """log W(e^c), the root y of y + e^y = c, with dy/dc = 1 / (1 + e^y); differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        y = torch.where(c < 1, c, c.clamp(min=1).log())  # at or above the root, so Newton's iterates decrease to it
        for _ in range(8):
            y = y - (y + y.exp() - c) / (1 + y.exp())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad / (1 + y.exp())


def log_lambert_w_exp(c: Tensor) -> Tensor:
    """log W(e^c) for any real c, with Lambert's function W; does not overflow, as e^c would for c > 88."""
    return _LogLambertW.apply(c)


class FGAN(AdversarialLoss):
    """Base of the f-divergences in the paper's Tables 1 and 2, one subclass each.

    Attributes:
        threshold: f'(1), the value of T = g_f(V) for a sample as likely real as fake.
        ceiling: Upper end of the domain of f*; T stays below it.
    """

    threshold: float
    ceiling: float = math.inf

    def __init__(self, saddle: bool = False) -> None:
        """Chooses the generator's loss.

        Args:
            saddle: Whether the generator minimises F itself, -E f*(T), as in Eq. 6. Otherwise it minimises -E T, which
                does not saturate if the discriminator is sure of a fake (section 3.2).
        """
        super().__init__()
        self.saddle = saddle

    @abstractmethod
    def f(self, u: Tensor) -> Tensor:
        """The convex function f of the divergence, at density ratios u > 0."""

    @abstractmethod
    def conjugate(self, t: Tensor) -> Tensor:
        """f*(t) = sup_u (u t - f(u)), for t below `ceiling`."""

    @abstractmethod
    def activation(self, v: Tensor) -> Tensor:
        """T = g_f(v), an increasing map of the reals onto the domain of f*."""

    @abstractmethod
    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """f*(g_f(v)), in closed form."""

    def bound(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """F, a scalar; in expectation a lower bound of D_f(P || Q)."""
        return self.activation(logits_real).mean() - self.conjugate_of_activation(logits_fake).mean()

    def real(self, logits: Tensor) -> Tensor:
        """-E T; with `fake`, -F."""
        return -self.activation(logits).mean()

    def fake(self, logits: Tensor) -> Tensor:
        """E f*(T)."""
        return self.conjugate_of_activation(logits).mean()

    def generator(self, logits_fake: Tensor) -> Tensor:
        """-E f*(T) with `saddle`, else -E T."""
        of_fakes = self.conjugate_of_activation if self.saddle else self.activation
        return -of_fakes(logits_fake).mean()


class TotalVariation(FGAN):
    """1/2 int |p - q|, f(u) = |u - 1| / 2; f* is the identity on [-1/2, 1/2]."""

    threshold = 0.0
    ceiling = 0.5

    def f(self, u: Tensor) -> Tensor:
        """|u - 1| / 2."""
        return 0.5 * (u - 1).abs()

    def conjugate(self, t: Tensor) -> Tensor:
        """t, |t| <= 1/2."""
        return t

    def activation(self, v: Tensor) -> Tensor:
        """tanh(v) / 2."""
        return 0.5 * torch.tanh(v)

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """tanh(v) / 2."""
        return self.activation(v)


class KL(FGAN):
    """int p log(p / q), f(u) = u log u."""

    threshold = 1.0

    def f(self, u: Tensor) -> Tensor:
        """u log u."""
        return u * u.log()

    def conjugate(self, t: Tensor) -> Tensor:
        """e^(t - 1)."""
        return (t - 1).exp()

    def activation(self, v: Tensor) -> Tensor:
        """v, tamed."""
        return tamed(v)

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """e^(v - 1), v tamed."""
        return (tamed(v) - 1).exp()


class ReverseKL(FGAN):
    """int q log(q / p), f(u) = -log u."""

    threshold = -1.0
    ceiling = 0.0

    def f(self, u: Tensor) -> Tensor:
        """-log u."""
        return -u.log()

    def conjugate(self, t: Tensor) -> Tensor:
        """-1 - log(-t), t < 0."""
        return -1 - (-t).log()

    def activation(self, v: Tensor) -> Tensor:
        """-e^(-v), v tamed from below."""
        return -tamed(-v).exp()

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """-1 - log(e^(-v)) = v - 1, v tamed from below."""
        return -tamed(-v) - 1


class Pearson(FGAN):
    """Pearson's chi-square, int (p - q)^2 / q, f(u) = (u - 1)^2.

    Table 1 of the paper swaps the integrals of Pearson and Neyman; its f, f* and g_f are correct. Its f*, t^2 / 4 + t,
    is the supremum over all real u. The supremum over u >= 0 used here is smaller for t < -2: the bound is tighter.
    """

    threshold = 0.0

    def f(self, u: Tensor) -> Tensor:
        """(u - 1)^2."""
        return (u - 1).square()

    def conjugate(self, t: Tensor) -> Tensor:
        """t^2 / 4 + t for t >= -2, else -1."""
        t = t.clamp(min=-2)
        return 0.25 * t.square() + t

    def activation(self, v: Tensor) -> Tensor:
        """v."""
        return v

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """f*(v)."""
        return self.conjugate(v)


class Neyman(FGAN):
    """Neyman's chi-square, int (p - q)^2 / p, f(u) = (1 - u)^2 / u."""

    threshold = 0.0
    ceiling = 1.0

    def f(self, u: Tensor) -> Tensor:
        """(1 - u)^2 / u."""
        return (1 - u).square() / u

    def conjugate(self, t: Tensor) -> Tensor:
        """2 - 2 sqrt(1 - t), t < 1."""
        return 2 - 2 * (1 - t).sqrt()

    def activation(self, v: Tensor) -> Tensor:
        """1 - e^(-v), v tamed from below."""
        return -torch.expm1(tamed(-v))

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """2 - 2 e^(-v / 2), v tamed from below."""
        return -2 * torch.expm1(0.5 * tamed(-v))


class SquaredHellinger(FGAN):
    """int (sqrt(p) - sqrt(q))^2, f(u) = (sqrt(u) - 1)^2."""

    threshold = 0.0
    ceiling = 1.0

    def f(self, u: Tensor) -> Tensor:
        """(sqrt(u) - 1)^2."""
        return (u.sqrt() - 1).square()

    def conjugate(self, t: Tensor) -> Tensor:
        """t / (1 - t), t < 1."""
        return t / (1 - t)

    def activation(self, v: Tensor) -> Tensor:
        """1 - e^(-v), v tamed from both sides."""
        return -torch.expm1(tamed(-tamed(v)))

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """(1 - e^(-v)) / e^(-v) = e^v - 1, v tamed from both sides."""
        return torch.expm1(-tamed(-tamed(v)))


class Jeffrey(FGAN):
    """int (p - q) log(p / q), the sum of both KL divergences, f(u) = (u - 1) log u."""

    threshold = 0.0

    def f(self, u: Tensor) -> Tensor:
        """(u - 1) log u."""
        return (u - 1) * u.log()

    def conjugate(self, t: Tensor) -> Tensor:
        """W(e^(1 - t)) + 1 / W(e^(1 - t)) + t - 2, in terms of log W."""
        log_w = log_lambert_w_exp(1 - t)
        return log_w.exp() + (-log_w).exp() + t - 2

    def activation(self, v: Tensor) -> Tensor:
        """v, tamed because 1 / W grows as e^(v - 1)."""
        return tamed(v)

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """f*(v), v tamed."""
        return self.conjugate(tamed(v))


class JensenShannon(FGAN):
    """Twice the Jensen-Shannon divergence, f(u) = -(u + 1) log((1 + u) / 2) + u log u (Table 1 omits the factor 2)."""

    threshold = 0.0
    ceiling = math.log(2)

    def f(self, u: Tensor) -> Tensor:
        """-(u + 1) log((1 + u) / 2) + u log u."""
        return u * u.log() - (u + 1) * ((1 + u) / 2).log()

    def conjugate(self, t: Tensor) -> Tensor:
        """-log(2 - e^t), t < log 2."""
        return -(2 - t.exp()).log()

    def activation(self, v: Tensor) -> Tensor:
        """log 2 - log(1 + e^(-v))."""
        return math.log(2) - F.softplus(-v)

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """-log(2 - 2 sigmoid(v)) = log(1 + e^v) - log 2."""
        return F.softplus(v) - math.log(2)


class JensenShannonWeighted(FGAN):
    """pi KL(p || m) + (1 - pi) KL(q || m) with m = pi p + (1 - pi) q."""

    def __init__(self, pi: float = 0.3, saddle: bool = False) -> None:
        """Sets the weights.

        Args:
            pi: Weight of the real distribution, in (0, 1); 1/2 is the Jensen-Shannon divergence.
            saddle: See `FGAN`.

        Raises:
            ValueError: If pi is not between 0 and 1.
        """
        super().__init__(saddle)
        if not 0 < pi < 1:
            raise ValueError(f"loss.pi must lie between 0 and 1, got {pi}. Try loss.pi=0.3.")
        self.pi = pi
        self.threshold, self.ceiling = 0.0, -pi * math.log(pi)

    def f(self, u: Tensor) -> Tensor:
        """pi u log u - (1 - pi + pi u) log(1 - pi + pi u)."""
        mixture = 1 - self.pi + self.pi * u
        return self.pi * u * u.log() - mixture * mixture.log()

    def conjugate(self, t: Tensor) -> Tensor:
        """(1 - pi) log((1 - pi) / (1 - pi e^(t / pi))), t < -pi log pi."""
        return (1 - self.pi) * ((1 - self.pi) / (1 - self.pi * (t / self.pi).exp())).log()

    def activation(self, v: Tensor) -> Tensor:
        """-pi log pi - log(1 + e^(-v)), v tamed."""
        return self.ceiling - F.softplus(-tamed(v))

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """(1 - pi) log((1 - pi) / (1 - sigmoid(v)^(1 / pi))), v tamed so that the denominator is never 0."""
        rest = -torch.expm1(-F.softplus(-tamed(v)) / self.pi)  # sigmoid(v)^(1 / pi) = e^(-softplus(-v) / pi)
        return (1 - self.pi) * (math.log(1 - self.pi) - rest.log())


class GANDivergence(FGAN):
    """Twice the Jensen-Shannon divergence minus log 4, f(u) = u log u - (u + 1) log(u + 1): the GAN of 2014.

    The loss values are those of `minimax` with `saddle`, and of `non_saturating` without.
    """

    threshold = -math.log(2)
    ceiling = 0.0

    def f(self, u: Tensor) -> Tensor:
        """u log u - (u + 1) log(u + 1), which is -2 log 2 at 1."""
        return u * u.log() - (u + 1) * (u + 1).log()

    def conjugate(self, t: Tensor) -> Tensor:
        """-log(1 - e^t), t < 0."""
        return -(-torch.expm1(t)).log()

    def activation(self, v: Tensor) -> Tensor:
        """-log(1 + e^(-v))."""
        return -F.softplus(-v)

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """-log(1 - sigmoid(v)) = log(1 + e^v)."""
        return F.softplus(v)
