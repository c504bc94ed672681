"""Objectives of games against closed forms, for P = N(0, 1) and Q = N(1, 1) where expectations are needed."""

import math

import pytest
import torch
from torch.testing import assert_close

from genlab.losses.adversarial import AdversarialLoss, Hinge, LeastSquares, Minimax, NonSaturating, Wasserstein

LOSSES = {
    "non_saturating": NonSaturating(),
    "minimax": Minimax(),
    "least_squares": LeastSquares(),
    "least_squares_pearson": LeastSquares(-1, 1, 0),
    "hinge": Hinge(),
    "wasserstein": Wasserstein(),
}
CLOSE = {"rtol": 0, "atol": 2e-6}  # of values given to six decimals


def quantiles(mean, n=500_000):
    """Midpoints of n equally likely intervals of N(mean, 1): their mean of f is E f up to about 1 / n."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return mean + math.sqrt(2) * torch.erfinv(2 * u - 1)


def value(number):
    return torch.tensor(number, dtype=torch.float64)


@pytest.fixture(scope="module")
def x():
    """Real and fake samples."""
    return quantiles(0.0), quantiles(1.0)


def log_ratio(x):
    """log p / q, the logit of the best discriminator."""
    return 0.5 - x


@pytest.fixture
def logits():
    rng = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(2, 7, dtype=torch.float64, generator=rng))


# --------------------------------------------------------------------------------------- values at the best response


def test_gan_at_the_best_discriminator(x):
    """log 4 - 2 JSD with JSD = .111421, and what either generator then pays."""
    real, fake = (log_ratio(part) for part in x)
    assert_close(NonSaturating().discriminator(real, fake), value(1.163451), **CLOSE)
    assert_close(Minimax().discriminator(real, fake), value(math.log(4) - 2 * 0.111421), **CLOSE)
    assert_close(NonSaturating().generator(fake), value(1.081726), **CLOSE)
    assert_close(Minimax().generator(fake), value(-0.581726), **CLOSE)


def test_gan_at_equal_distributions():
    s = torch.zeros(5, dtype=torch.float64)
    assert_close(NonSaturating().discriminator(s, s), value(2 * math.log(2)))
    assert_close(NonSaturating().generator(s), value(math.log(2)))
    assert_close(Minimax().generator(s), value(-math.log(2)))


@pytest.mark.parametrize(
    ("targets", "d_loss", "g_loss"), [((0, 1, 1), 0.198986, 0.201520), ((-1, 1, 0), 0.795946, None)]
)
def test_least_squares_at_the_best_discriminator(targets, d_loss, g_loss, x):
    """D = (b p + a q) / (p + q), section 3.2 of the paper."""
    a, b, _ = targets
    share = [torch.sigmoid(log_ratio(part)) for part in x]  # p / (p + q)
    real, fake = (b * s + a * (1 - s) for s in share)
    loss = LeastSquares(*targets)
    assert_close(loss.discriminator(real, fake), value(d_loss), **CLOSE)
    if g_loss is not None:
        assert_close(loss.generator(fake), value(g_loss), **CLOSE)
    else:
        # 2 C(G), Eq. 6: half the Pearson chi-square of p + q from 2 q; what G pays and what real samples would.
        chi_square = loss.generator(fake) + loss.generator(real)
        assert_close(chi_square, value(0.204054), **CLOSE)
        grid = torch.linspace(-12, 13, 100_001, dtype=torch.float64)
        p, q = (torch.exp(-0.5 * (grid - m) ** 2) / math.sqrt(2 * math.pi) for m in (0, 1))
        assert_close(chi_square, torch.trapezoid((p - q) ** 2 / (p + q), grid) / 2, **CLOSE)


@pytest.mark.parametrize(("targets", "d_loss", "g_loss"), [((0, 1, 1), 0.25, 0.125), ((-1, 1, 0), 1.0, 0.0)])
def test_least_squares_at_equal_distributions(targets, d_loss, g_loss):
    a, b, _ = targets
    s = torch.full((3,), (a + b) / 2, dtype=torch.float64)
    assert_close(LeastSquares(*targets).discriminator(s, s), value(d_loss))
    assert_close(LeastSquares(*targets).generator(s), value(g_loss))


def test_hinge_at_the_best_discriminator(x):
    """D = sign(p - q) pays 2 int min(p, q) = 4 Phi(-1/2)."""
    real, fake = (log_ratio(part).sign() for part in x)
    loss = Hinge().discriminator(real, fake)
    assert_close(loss, value(1.234150), rtol=0, atol=5e-6)  # the integrand jumps, once in each sample
    assert_close(loss, value(2 * math.erfc(0.5 / math.sqrt(2))), rtol=0, atol=5e-6)


def test_hinge_is_flat_beyond_the_margin_and_linear_before_it():
    real = torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([2.0, -0.5, -1.5], dtype=torch.float64, requires_grad=True)
    loss = Hinge().discriminator(real, fake)
    assert_close(loss, value((3 + 0.5 + 0) / 3 * 2))
    loss.backward()
    assert_close(real.grad, value([-1 / 3, -1 / 3, 0.0]))
    assert_close(fake.grad, value([1 / 3, 1 / 3, 0.0]))


def test_wasserstein_of_a_known_potential(x):
    """f(x) = -x is the optimal potential between N(0, 1) and N(1, 1), at distance 1."""
    assert_close(-Wasserstein().discriminator(-x[0], -x[1]), value(1.0), **CLOSE)
    assert_close(Wasserstein().generator(-x[1]), value(1.0), **CLOSE)


def test_a_logistic_discriminator_finds_the_log_ratio():
    """s = w x + b holds log p / q, so that training must find w = -1, b = 1/2."""
    real, fake = quantiles(0.0, 10_000), quantiles(1.0, 10_000)
    w, b = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([w, b], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = NonSaturating().discriminator(w * real + b, w * fake + b)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(torch.stack([w, b]).detach(), value([-1.0, 0.5]), rtol=0, atol=1e-3)
    assert_close(closure().detach(), value(1.163451), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("loss", "slope"), [(NonSaturating(), -0.982014), (Minimax(), -0.017986)])
def test_gradient_in_a_fake_logit_at_minus_four(loss, slope):
    s = torch.full((1,), -4.0, dtype=torch.float64, requires_grad=True)
    loss.generator(s).backward()
    assert_close(s.grad, value([slope]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_live_where_the_discriminator_is_sure(dtype):
    """At logit -30 the sigmoid is 1e-13, and log(1e-13 + eps) has lost its slope; softplus has not."""
    s = torch.full((4,), -30.0, dtype=dtype, requires_grad=True)
    NonSaturating().generator(s).backward()
    assert_close(s.grad, torch.full((4,), -0.25, dtype=dtype))
    real = torch.full((4,), -30.0, dtype=dtype, requires_grad=True)
    fake = torch.full((4,), 30.0, dtype=dtype, requires_grad=True)
    NonSaturating().discriminator(real, fake).backward()
    assert_close(real.grad, torch.full((4,), -0.25, dtype=dtype))
    assert_close(fake.grad, torch.full((4,), 0.25, dtype=dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite(name):
    s = torch.tensor([-1e4, 1e4], requires_grad=True)
    (LOSSES[name].discriminator(s, s) + LOSSES[name].generator(s)).backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name, logits):
    real, fake = (part.clone().requires_grad_() for part in logits)
    assert torch.autograd.gradcheck(LOSSES[name].discriminator, (real, fake))
    assert torch.autograd.gradcheck(LOSSES[name].generator, (fake,))


# --------------------------------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("name", ["non_saturating", "minimax", "hinge", "least_squares_pearson", "wasserstein"])
def test_real_and_fake_change_places_with_the_sign(name, logits):
    real, fake = logits
    loss = LOSSES[name]
    assert_close(loss.discriminator(real, fake), loss.discriminator(-fake, -real))
    with pytest.raises(AssertionError):  # without the sign it is another game
        assert_close(loss.discriminator(real, fake), loss.discriminator(fake, real))


def test_least_squares_changes_places_about_a_half(logits):
    real, fake = logits
    assert_close(LeastSquares().discriminator(real, fake), LeastSquares().discriminator(1 - fake, 1 - real))


def test_wasserstein_ignores_a_shift_of_all_logits(logits):
    real, fake = logits
    loss = Wasserstein()
    assert_close(loss.discriminator(real + 5, fake + 5), loss.discriminator(real, fake))
    assert_close(loss.generator(fake + 5), loss.generator(fake) - 5)
    assert_close(loss.discriminator(real + 5, fake), loss.discriminator(real, fake) - 5)


def test_minimax_is_zero_sum(logits):
    """What the fakes cost the discriminator, the generator gains."""
    real, fake = logits
    cost_of_fakes = Minimax().discriminator(real, fake) - Minimax().discriminator(real, fake - 1e6)
    assert_close(Minimax().generator(fake), -cost_of_fakes)


@pytest.mark.parametrize("name", LOSSES)
def test_copies_and_order_of_a_batch_do_not_matter(name, logits):
    real, fake = logits
    loss = LOSSES[name]
    expected = loss.discriminator(real, fake), loss.generator(fake)
    assert_close((loss.discriminator(real.repeat(2), fake.repeat(2)), loss.generator(fake.repeat(2))), expected)
    assert_close((loss.discriminator(real.flip(0), fake), loss.generator(fake.flip(0))), expected)
    assert_close(loss.discriminator(real.repeat(3), fake), expected[0])  # each side has its own mean


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_scalars_without_parameters(name, logits):
    loss = LOSSES[name]
    assert isinstance(loss, AdversarialLoss) and not list(loss.parameters())
    assert loss.discriminator(*logits).shape == loss.generator(logits[1]).shape == ()
