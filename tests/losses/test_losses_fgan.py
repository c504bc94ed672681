"""The ten divergences of f-GAN: conjugates, values at the best discriminator, bounds that training reaches."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.losses.adversarial import Minimax, NonSaturating
from genlab.losses.fgan import (
    FGAN,
    KL,
    GANDivergence,
    Jeffrey,
    JensenShannon,
    JensenShannonWeighted,
    Neyman,
    Pearson,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
    log_lambert_w_exp,
    tamed,
)

# D_f of P = N(0, 1) from Q = N(1, 1), and from Q = N(0.5, 1.2^2), by quadrature.
VALUES = {
    TotalVariation: (0.382925, 0.192988),
    KL: (0.500000, 0.116349),
    ReverseKL: (0.500000, 0.162678),
    Pearson: (1.718282, 0.199597),
    Neyman: (1.718282, 0.740228),
    SquaredHellinger: (0.235006, 0.066624),
    Jeffrey: (1.000000, 0.279028),
    JensenShannon: (0.222843, 0.064194),
    JensenShannonWeighted: (0.094910, 0.025725),
    GANDivergence: (-1.163451, -1.322101),
}
PAIRS = [(1.0, 1.0), (0.5, 1.2)]  # mean and standard deviation of Q
ALL = [make() for make in VALUES]
every = pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
SMOOTH = [loss for loss in ALL if not isinstance(loss, TotalVariation)]
smooth = pytest.mark.parametrize("loss", SMOOTH, ids=lambda loss: type(loss).__name__)


def value(number):
    return torch.tensor(number, dtype=torch.float64)


def derivative(function, at):
    at = at.detach().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def normal(x, mean, std):
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


# --------------------------------------------------------------------------------------------------------- conjugates


@smooth
def test_the_conjugates_slope_inverts_that_of_f(loss):
    """f*'(f'(u)) = u, and f(u) + f*(f'(u)) = u f'(u), where Fenchel and Young's inequality is an equality."""
    u = value([0.1, 0.5, 1.0, 2.0, 10.0])
    t = derivative(loss.f, u)
    assert_close(derivative(loss.conjugate, t), u, rtol=1e-9, atol=1e-12)
    assert_close(loss.f(u) + loss.conjugate(t), u * t, rtol=1e-9, atol=1e-12)


@every
def test_the_conjugate_is_the_supremum(loss):
    """sup_u (u t - f(u)) over a fine grid of u, for t inside the domain: what the definition says."""
    u = torch.cat([torch.linspace(1e-9, 2, 40_001), torch.logspace(math.log10(2), 6, 40_001)]).double()
    for v in value([-3.0, -1.0, -0.1, 0.4, 2.0]):
        t = loss.activation(v)
        assert_close(loss.conjugate(t), (u * t - loss.f(u)).max(), rtol=1e-6, atol=1e-6)


@every
def test_the_activation_climbs_to_the_end_of_the_domain(loss):
    v = torch.linspace(-60, 60, 2001, dtype=torch.float64)
    t = loss.activation(v)
    steps = t.diff()
    assert (steps[(v[1:] > -15) & (v[1:] < 15)] > 0).all() and (steps >= 0).all()
    assert (t <= loss.ceiling).all()
    if math.isfinite(loss.ceiling):
        assert_close(t[-1], value(loss.ceiling), rtol=0, atol=1e-8)
    else:
        assert t[-1] > 20


@every
def test_the_composition_is_what_it_says(loss):
    v = torch.linspace(-12, 12, 241, dtype=torch.float64)
    assert_close(loss.conjugate_of_activation(v), loss.conjugate(loss.activation(v)), rtol=1e-8, atol=1e-8)


@every
def test_the_threshold_is_the_slope_at_one(loss):
    if isinstance(loss, TotalVariation):  # a kink: any slope between -1/2 and 1/2
        assert derivative(loss.f, value([1 - 1e-9])) == -0.5 and derivative(loss.f, value([1 + 1e-9])) == 0.5
        assert abs(loss.threshold) < 0.5
    else:
        assert_close(derivative(loss.f, value([1.0])), value([loss.threshold]))
    assert_close(loss.f(value(1.0)), value(-2 * math.log(2) if isinstance(loss, GANDivergence) else 0.0))


def test_lamberts_function():
    """w e^w = e^c, from where W is e^c to where it is nearly c, and its slopes of two orders."""
    c = value([-700.0, -30.0, -1.0, 0.0, 0.5, 0.999, 1.0, 1.5, 3.0, 50.0, 700.0, 1e6])
    y = log_lambert_w_exp(c)
    assert_close(y + y.exp(), c, rtol=1e-14, atol=1e-14)
    c = value([-2.0, 0.3, 1.0, 4.0]).requires_grad_()
    assert torch.autograd.gradcheck(log_lambert_w_exp, (c,))
    assert torch.autograd.gradgradcheck(log_lambert_w_exp, (c,))


# ------------------------------------------------------------------------------------------------------------- values


def logit_of(loss, t):
    """The v at which g_f(v) = t, by bisection: g_f climbs."""
    low, high = torch.full_like(t, -1e15), torch.full_like(t, 1e15)
    for _ in range(200):
        middle = (low + high) / 2
        below = loss.activation(middle) < t
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("pair", [0, 1])
@every
def test_the_bound_is_the_divergence_at_the_best_discriminator(loss, pair):
    """T = f'(p / q) in F, and int q f(p / q) itself, both by quadrature: the table."""
    mean, std = PAIRS[pair]
    x = torch.linspace(-12, 13, 20_001, dtype=torch.float64)
    p, q = normal(x, 0, 1), normal(x, mean, std)
    assert_close(torch.trapezoid(q * loss.f(p / q), x), value(VALUES[type(loss)][pair]), rtol=0, atol=1e-6)
    logits = 40 * (p / q - 1).sign() if isinstance(loss, TotalVariation) else logit_of(loss, derivative(loss.f, p / q))
    bound = torch.trapezoid(p * loss.activation(logits) - q * loss.conjugate_of_activation(logits), x)
    assert_close(bound, value(VALUES[type(loss)][pair]), rtol=0, atol=1e-4 if std == 1 else 5e-4)


def trained_bound(loss, pair):
    """F after training a small V, with both expectations by quadrature: no tail is a matter of luck."""
    torch.manual_seed(0)
    x = torch.linspace(-7, 8, 301, dtype=torch.float64)[:, None]
    p, q = (0.05 * normal(x[:, 0], *of) for of in ((0.0, 1.0), PAIRS[pair]))
    v = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.LBFGS(v.parameters(), max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logits = v(x)[:, 0]
        minus_f = -(p * loss.activation(logits) - q * loss.conjugate_of_activation(logits)).sum()
        minus_f.backward()
        return minus_f

    optimizer.step(closure)
    return -closure().item()


@pytest.mark.parametrize("pair", [0, 1])
@every
def test_training_reaches_the_bound(loss, pair):
    """From below, to 1 %."""
    wanted = VALUES[type(loss)][pair]
    assert wanted - 0.01 * abs(wanted) < trained_bound(loss, pair) < wanted + 1e-5


def test_the_pairs_tell_neighbours_apart():
    """Pearson from Neyman, KL from its reverse: only the second pair does."""
    for one, other in ((Pearson, Neyman), (KL, ReverseKL)):
        assert VALUES[one][0] == VALUES[other][0]
        assert trained_bound(one(), 1) < 0.8 * trained_bound(other(), 1)


# ----------------------------------------------------------------------------------------------------- floating point


@pytest.mark.parametrize("saddle", [False, True])
@pytest.mark.parametrize("make", VALUES)
def test_no_logit_overflows(make, saddle):
    """Values and gradients stay finite in float32 up to logits of 10^4, where e^v would be infinite from 89 on."""
    loss = make(saddle=saddle)
    logits = torch.tensor([-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4], requires_grad=True)
    total = loss.discriminator(logits, logits) + loss.generator(logits)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()


@every
def test_the_discriminators_fear_of_a_sure_fake_lives_on(loss):
    """Far too high a logit of a fake still has a slope, but for the two whose f*(g_f(v)) levels off by nature."""
    fake = torch.full((1,), 500.0, requires_grad=True)
    loss.discriminator(torch.zeros(1), fake).backward()
    assert (fake.grad > 0).item() == (not isinstance(loss, TotalVariation | Neyman))


def test_taming_is_the_identity_up_to_twenty_and_smooth():
    v = value([-1e3, 0.0, 19.9, 20.0]).requires_grad_()
    assert torch.equal(tamed(v), v)
    assert_close(derivative(tamed, value([20.0 - 1e-9, 20.0 + 1e-9])), value([1.0, 1.0]), rtol=0, atol=1e-8)
    assert_close(tamed(value(30.0)).exp(), value(11 * math.exp(20)))


@pytest.mark.parametrize("saddle", [False, True])
@pytest.mark.parametrize("make", VALUES)
def test_gradients_by_finite_differences(make, saddle):
    loss = make(saddle=saddle)
    real, fake = (value([-2.5, -0.7, 0.3, 1.9, 3.1]).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(loss.generator, (fake,))
    assert torch.autograd.gradgradcheck(loss.discriminator, (real, fake))  # unrolling goes through it twice


# --------------------------------------------------------------------------------------------------------- both sides


def test_the_gan_row_is_the_gan():
    logits = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for saddle, other in ((True, Minimax()), (False, NonSaturating())):
        assert_close(GANDivergence(saddle).discriminator(*logits), other.discriminator(*logits))
        assert_close(GANDivergence(saddle).generator(logits[1]), other.generator(logits[1]))


@every
def test_the_discriminator_maximises_the_bound(loss):
    logits = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bound = loss.activation(logits[0]).mean() - loss.conjugate_of_activation(logits[1]).mean()
    assert_close(loss.discriminator(*logits), -bound)


@every
def test_the_saddle_is_zero_sum(loss):
    """What F loses on the fakes, the generator of the saddle gains; the other one raises T itself."""
    logits = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    saddle = type(loss)(saddle=True)
    assert_close(saddle.generator(logits[1]), loss.bound(*logits) - loss.activation(logits[0]).mean())
    assert_close(type(loss)(saddle=False).generator(logits[1]), -loss.activation(logits[1]).mean())


def test_the_saddle_saturates_and_the_other_side_does_not():
    """At a logit of -10 of the KL game: e^(v - 1) against v."""
    slopes = {}
    for saddle in (True, False):
        fake = value([-10.0]).requires_grad_()
        KL(saddle=saddle).generator(fake).backward()
        slopes[saddle] = fake.grad.item()
    assert slopes[True] == pytest.approx(-math.exp(-11)) and slopes[False] == -1


def test_the_weight_must_be_a_weight():
    assert_close(JensenShannonWeighted(0.5).f(value(3.0)), 0.5 * JensenShannon().f(value(3.0)))
    with pytest.raises(ValueError, match=r"loss\.pi must lie between 0 and 1, got 1\.5"):
        JensenShannonWeighted(1.5)


def test_they_are_losses_without_parameters():
    for loss in ALL:
        assert isinstance(loss, FGAN) and not list(loss.parameters())
