"""Penalties on a critic's gradient against closed forms."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.losses.adversarial import Wasserstein
from genlab.losses.penalties import (
    DRAGAN,
    R1,
    R2,
    GradientPenalty,
    check_one_of_each_sample,
    gradient_norms,
    gradient_penalty,
    pack_size,
)
from genlab.networks import mlp
from genlab.networks.minibatch import MinibatchDiscriminator
from genlab.networks.packing import Packed, pack
from genlab.networks.views import Viewed


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gradient_penalty_of_a_linear_critic():
    """D(x) = <w, x> has gradient w everywhere, so the penalty is (|w| - 1)^2 for any data."""
    w = draw(3 * 8 * 8, seed=1)
    x_real, x_fake = draw(2, 4, 3, 8, 8)
    assert_close(gradient_penalty(lambda x: x.flatten(1) @ w, x_real, x_fake), (w.norm() - 1) ** 2)


@pytest.mark.parametrize(("alpha", "place"), [(1.0, "real"), (0.0, "fake"), (0.25, "between")])
def test_where_the_penalty_looks(alpha, place):
    """D(x) = |x|^2 / 2 has gradient x: alpha = 1 is the real sample, 0 the fake one."""
    x_real, x_fake = draw(2, 5, 3)
    at = {"real": x_real, "fake": x_fake, "between": 0.25 * x_real + 0.75 * x_fake}[place]
    found = gradient_penalty(lambda x: 0.5 * x.square().sum(dim=1), x_real, x_fake, torch.full((5,), alpha))
    assert_close(found, (at.norm(dim=1) - 1).square().mean())


def test_each_sample_has_its_own_position():
    """On the way from 0 to 1 the critic x^2 / 2 has the slope alpha."""
    alpha = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    ones = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    found = gradient_penalty(lambda x: 0.5 * x.square().flatten(1).sum(dim=1), ones, 0 * ones, alpha)
    assert_close(found, (alpha - 1).square().mean())


def test_positions_drawn_here_are_uniform_and_one_per_sample():
    """E (alpha - 1)^2 = 1/3; one alpha for all samples would have a variance of 4/45 whatever their number."""
    torch.manual_seed(0)
    ones = torch.ones(20_000, 1, dtype=torch.float64)
    found = [gradient_penalty(lambda x: 0.5 * x.square().sum(dim=1), ones, 0 * ones) for _ in range(3)]
    assert_close(torch.stack(found), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize(("gp_weight", "w", "loss"), [(10.0, -1.05, -1.025), (0.1, -6.0, -3.5)])
def test_the_best_linear_critic_between_two_points(gp_weight, w, loss):
    """Between 0 and 1, w (fake - real) + lambda (|w| - 1)^2 is least at |w| = 1 + 1 / (2 lambda)."""
    x_real, x_fake = torch.zeros(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    critic = nn.Linear(1, 1).double()
    nn.init.constant_(critic.weight, -0.5)
    optimizer = torch.optim.LBFGS(critic.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = Wasserstein().discriminator(critic(x_real)[:, 0], critic(x_fake)[:, 0])
        total = total + gp_weight * gradient_penalty(lambda x: critic(x)[:, 0], x_real, x_fake)
        total.backward()
        return total

    optimizer.step(closure)
    assert_close(critic.weight.item(), w, rtol=0, atol=1e-6)
    assert_close(closure().item(), loss, rtol=0, atol=1e-9)


def test_it_is_differentiable_twice():
    critic = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x_real, x_fake = draw(2, 4, 3)

    def penalty(weight):
        parameters = {**dict(critic.named_parameters()), "0.weight": weight}
        return gradient_penalty(
            lambda x: torch.func.functional_call(critic, parameters, x)[:, 0], x_real, x_fake, draw(4).sigmoid()
        )

    assert torch.autograd.gradcheck(penalty, (critic[0].weight.detach().clone().requires_grad_(),))


def test_it_leaves_the_samples_and_their_makers_alone():
    """No gradient flows into the generator, and no data tensor starts to ask for one."""
    x_real, x_fake = draw(2, 4, 3)
    x_fake.requires_grad_()
    w = draw(3).requires_grad_()
    gradient_penalty(lambda x: x.square() @ w, x_real, x_fake).backward()
    assert x_fake.grad is None and not x_real.requires_grad and w.grad.abs().sum() > 0


def test_norms_are_per_sample_and_kept_in_float32():
    x = draw(3, 2, 2)
    critic = lambda x: x.flatten(1).square().sum(dim=1) / 2  # noqa: E731
    assert_close(gradient_norms(critic, x), x.flatten(1).norm(dim=1))
    assert gradient_norms(critic, x.bfloat16()).dtype == torch.float32


def test_a_vanishing_gradient_is_no_nan():
    """The norm has no slope at 0; a critic that is constant must still learn."""
    critic = nn.Linear(2, 1).double()
    nn.init.zeros_(critic.weight)
    gradient_penalty(lambda x: critic(x)[:, 0], draw(3, 2), draw(3, 2, seed=1)).backward()
    assert critic.weight.grad.isfinite().all()


def test_copies_of_a_batch_do_not_matter():
    x_real, x_fake = draw(2, 4, 3)
    alpha = draw(4).sigmoid()
    critic = lambda x: x.pow(3).sum(dim=1)  # noqa: E731
    twice = gradient_penalty(critic, x_real.repeat(2, 1), x_fake.repeat(2, 1), alpha.repeat(2))
    assert_close(twice, gradient_penalty(critic, x_real, x_fake, alpha))


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(2, 3\)"):
        gradient_penalty(lambda x: x.sum(dim=1), draw(4, 3), draw(2, 3))


# ---------------------------------------------------------------------------------------------- penalties of any loss

PENALTIES = {"wgan_gp": GradientPenalty, "r1": R1, "r2": R2, "dragan": DRAGAN}


def stream(seed=0):
    """A `rand` that notes what it is asked for."""
    rng, asked = torch.Generator().manual_seed(seed), []

    def rand(n, *shape):
        asked.append((n, *shape))
        return torch.rand(n, *shape, dtype=torch.float64, generator=rng)

    return rand, asked


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (GradientPenalty(weight=3.0), lambda n: 3 * (n - 1) ** 2),
        (R1(gamma=4.0), lambda n: 2 * n**2),
        (R2(gamma=4.0), lambda n: 2 * n**2),
        (DRAGAN(weight=3.0, k=0.5), lambda n: 3 * (n - 0.5) ** 2),
    ],
)
def test_penalties_of_a_linear_critic(penalty, expected):
    """D(x) = <w, x> + b has gradient w everywhere."""
    w = draw(3 * 4 * 4, seed=1)
    x_real, x_fake = draw(2, 5, 3, 4, 4)
    assert_close(penalty(lambda x: x.flatten(1) @ w + 2, x_real, x_fake, stream()[0]), expected(w.norm()))


def half_square(x):
    """D(x) = |x|^2 / 2 has gradient x."""
    return 0.5 * x.flatten(1).square().sum(dim=1)


@pytest.mark.parametrize(("penalty", "where"), [(R1(gamma=6.0), 0), (R2(gamma=6.0), 1)])
def test_where_the_zero_centred_penalties_look(penalty, where):
    samples = draw(2, 5, 3)
    rand, asked = stream()
    expected = 3 * samples[where].square().sum(dim=1).mean()
    assert_close(penalty(half_square, *samples, rand), expected)
    assert asked == []


def test_dragan_looks_near_real_samples():
    """alpha c u away from them, alpha for each sample, u for each of its dimensions; the fakes do not matter."""
    x_real, x_fake = draw(2, 6, 2, 3)
    rand, asked = stream()
    found = DRAGAN(weight=2.0, k=0.7, noise=0.5)(half_square, x_real, x_fake, rand)
    assert asked == [(6,), (6, 2, 3)]
    again = stream()[0]
    x_hat = x_real + again(6).view(6, 1, 1) * 0.5 * again(6, 2, 3)
    assert_close(found, 2 * (x_hat.flatten(1).norm(dim=1) - 0.7).square().mean())
    assert_close(DRAGAN(2.0, 0.7, 0.5)(half_square, x_real, 10 * x_fake, stream()[0]), found)
    without = DRAGAN(2.0, 0.7, 0.0)(half_square, x_real, x_fake, stream()[0])
    assert_close(without, 2 * (x_real.flatten(1).norm(dim=1) - 0.7).square().mean())


def test_the_gradient_penalty_draws_one_position_per_sample():
    x_real, x_fake = draw(2, 6, 2, 3)
    rand, asked = stream()
    found = GradientPenalty(5.0)(half_square, x_real, x_fake, rand)
    assert asked == [(6,)]
    assert_close(found, 5 * gradient_penalty(half_square, x_real, x_fake, stream()[0](6)))


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_differentiable_twice(name):
    critic = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x_real, x_fake = draw(2, 4, 3)

    def value(weight):
        parameters = {**dict(critic.named_parameters()), "0.weight": weight}
        called = lambda x: torch.func.functional_call(critic, parameters, x)[:, 0]  # noqa: E731
        return PENALTIES[name]()(called, x_real, x_fake, stream()[0])

    assert torch.autograd.gradcheck(value, (critic[0].weight.detach().clone().requires_grad_(),))


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_leave_the_samples_and_their_makers_alone(name):
    x_real, x_fake = draw(2, 4, 3)
    x_fake.requires_grad_()
    w = draw(3).requires_grad_()
    PENALTIES[name]()(lambda x: x.square() @ w, x_real, x_fake, stream()[0]).backward()
    assert x_fake.grad is None and not x_real.requires_grad and w.grad.abs().sum() > 0


def test_r1_makes_a_circling_game_converge():
    """The Dirac-GAN of the paper: f(-theta psi) + f(0), real data at 0; without R1 the two circle for ever."""
    radii = {}
    for gamma in (0.0, 1.0):
        theta, psi = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for _ in range(500):
            theta.requires_grad_(), psi.requires_grad_()
            critic = lambda x, psi=psi: x[:, 0] * psi  # noqa: E731
            d_loss = nn.functional.softplus(critic(theta.detach())) + R1(gamma)(
                critic, 0 * theta.detach(), theta.detach(), stream()[0]
            )
            g_loss = -nn.functional.softplus(critic(theta))
            (d_psi,) = torch.autograd.grad(d_loss.sum(), psi)
            (d_theta,) = torch.autograd.grad(g_loss.sum(), theta)
            theta, psi = (theta - 0.1 * d_theta).detach(), (psi - 0.1 * d_psi).detach()
        radii[gamma] = torch.hypot(theta.squeeze(), psi.squeeze()).item()
    assert radii[0.0] > 1.4 and radii[1.0] < 1e-3, radii


# --- Packs ----------------------------------------------------------------------------------------------------------


class Slope(nn.Module):
    """D of a pack of m samples, its channels: <w, x_1, ..., x_m>, or half its squared length."""

    def __init__(self, w=None):
        super().__init__()
        self.w = w

    def forward(self, x):
        return half_square(x) if self.w is None else x.flatten(1) @ self.w


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (GradientPenalty(weight=3.0), lambda n: 3 * (n - 1) ** 2),
        (R1(gamma=4.0), lambda n: 2 * n**2),
        (R2(gamma=4.0), lambda n: 2 * n**2),
        (DRAGAN(weight=3.0, k=0.5), lambda n: 3 * (n - 0.5) ** 2),
    ],
)
def test_the_penalty_of_a_critic_of_packs_is_one_of_each_pack(penalty, expected, m):
    """A packed critic of slope 1 is not penalised; taken sample by sample it was, by 0.18 with m = 2."""
    w = draw(m * 2 * 3, seed=1)
    x_real, x_fake = draw(2, 6, 2, 3)
    for slope in (w, w / w.norm()):
        found = penalty(Packed(Slope(slope), m), x_real, x_fake, stream()[0])
        assert_close(found, expected(slope.norm()))


@pytest.mark.parametrize("penalty", [GradientPenalty(2.0), R1(2.0), R2(2.0), DRAGAN(2.0)])
def test_a_pack_is_one_sample_to_the_penalty(penalty):
    """The same draws, the same places, the same value as for a critic that is given whole packs."""
    x_real, x_fake = draw(2, 6, 2, 3)
    critic = Packed(Slope(), 2)
    (packed, asked), (whole, _) = stream(), stream()
    found = penalty(critic, x_real, x_fake, packed)
    if isinstance(penalty, DRAGAN):  # its direction is drawn for samples, which are then packed
        assert asked == [(3,), (6, 2, 3)]
        x_hat = x_real + whole(3).repeat_interleave(2).view(6, 1, 1) * 0.3 * whole(6, 2, 3)
        assert_close(found, 2 * (pack(x_hat, 2).flatten(1).norm(dim=1) - 1).square().mean())
    else:
        assert_close(found, penalty(Slope(), pack(x_real, 2), pack(x_fake, 2), whole))
    assert_close(gradient_norms(critic, x_real), pack(x_real, 2).flatten(1).norm(dim=1))
    own = gradient_penalty(critic, x_real, x_fake)  # positions drawn there
    assert own.isfinite()


def test_packs_behind_views_are_seen():
    assert pack_size(Viewed(Packed(Slope(), 3), [])) == 3
    assert pack_size(Slope()) == pack_size(half_square) == 1


@pytest.mark.parametrize(("wrapped", "words"), [(False, "minibatch discrimination couples"), (True, "minibatch")])
def test_what_couples_samples_is_refused(wrapped, words):
    critic = MinibatchDiscriminator(mlp.Discriminator([2], [8]), [2], kernels=3)
    with pytest.raises(ValueError, match=words):
        check_one_of_each_sample(Packed(critic, 2) if wrapped else critic)
    check_one_of_each_sample(Packed(mlp.Discriminator([4], [8]), 2))
