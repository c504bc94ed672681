"""BEGAN's energies and the control of k_t, EBGAN's margin and its pulling-away term."""

import math

import pytest
import torch
from torch.testing import assert_close

from genlab.losses.energy import BoundaryEquilibrium, Margin, pulling_away


def value(number):
    return torch.tensor(number, dtype=torch.float64)


def equilibrium(**kwargs):
    return BoundaryEquilibrium(**kwargs).double()


@pytest.mark.parametrize(("l_fake", "k", "m"), [(0.2, 0.0003, 1.3), (0.8, 0.0, 1.3)])
def test_one_update(l_fake, k, m):
    """k grows by lambda_k (gamma L(x) - L(G(z))), or is clipped at 0; M takes their distance, without the sign."""
    loss = equilibrium()
    assert_close(loss.update(value(1.0), value(l_fake)), value(m))
    assert_close(loss.k, value(k))


@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("l_fake", [0.1, 0.4, 0.6, 0.9])
def test_k_saturates_exactly_where_the_fakes_are_below_the_balance(gamma, l_fake):
    """10,000 updates at constant energies: k ends at 1 iff gamma L(x) > L(G(z)), else at 0, and never leaves [0, 1]."""
    loss = equilibrium(gamma=gamma, lambda_k=0.01)
    loss.k.fill_(0.5)
    seen = []
    for _ in range(2500):  # 0.01 for 2500 is 0.001 for 25,000
        loss.update(value(1.0), value(l_fake))
        seen.append(loss.k.item())
    assert loss.k.item() == (1.0 if gamma > l_fake else 0.0)
    assert 0 <= min(seen) <= max(seen) <= 1


def test_k_rests_at_the_balance():
    loss = equilibrium(gamma=0.5)
    loss.k.fill_(0.25)
    assert_close(loss.update(value(2.0), value(1.0)), value(2.0))
    assert_close(loss.k, value(0.25))


def test_k_is_part_of_the_state():
    loss = equilibrium()
    loss.update(value(1.0), value(0.2))
    other = equilibrium()
    other.load_state_dict(loss.state_dict())
    assert_close(other.k, value(0.0003))


def test_losses_of_both_players():
    """L(x) - k L(G(z_D)) and L(G(z_G)), on means over the batch."""
    loss = equilibrium()
    loss.k.fill_(0.3)
    real, fake = value([1.0, 3.0]), value([0.5, 1.0, 1.5])
    assert_close(loss.discriminator(real, fake), value(2.0 - 0.3))
    assert_close(loss.generator(fake), value(1.0))
    assert_close(loss.discriminator(real.repeat(2), fake.repeat(4)), loss.discriminator(real, fake))


@pytest.mark.parametrize("eta", [1, 2])
def test_energy_is_the_mean_over_dimensions_of_each_sample(eta):
    rng = torch.Generator().manual_seed(0)
    x, recon = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=rng)
    energy = equilibrium(eta=eta).energy(x, recon)
    assert energy.shape == (4,)
    assert_close(energy, torch.stack([(a - b).abs().pow(eta).mean() for a, b in zip(x, recon, strict=True)]))
    one_off = recon.clone()
    one_off[2] += 100
    changed = equilibrium(eta=eta).energy(x, one_off) != energy
    assert changed.tolist() == [False, False, True, False]


def test_k_moves_without_a_graph():
    loss = equilibrium()
    energy = value(1.0).requires_grad_()
    m = loss.update(energy, 0.2 * energy)
    assert not loss.k.requires_grad and not m.requires_grad


# -------------------------------------------------------------------------------------------------------------- EBGAN


def test_the_energy_is_the_squared_error_of_a_sample():
    x = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(Margin().energy(*x), (x[0] - x[1]).flatten(1).norm(dim=1).square())


@pytest.mark.parametrize("level", [0.0, 2.5, 10.0])
def test_equal_energies_within_the_margin_cost_the_margin(level):
    """D(x) = D(G(z)) = gamma in [0, m]: the value of the game is m, whatever gamma is (Theorem 2)."""
    energies = torch.full((4,), level, dtype=torch.float64)
    assert_close(Margin(10.0).discriminator(energies, energies), value(10.0))
    assert_close(Margin(10.0).generator(energies), value(level))


def test_the_best_discriminator_pays_m_times_one_minus_the_total_variation():
    """For P = N(0, 1) and Q = N(1, 1) it gives m where q > p and 0 elsewhere (Lemma 1)."""
    u = (torch.arange(500_000, dtype=torch.float64) + 0.5) / 500_000
    x = math.sqrt(2) * torch.erfinv(2 * u - 1)
    real, fake = (10 * (part > 0.5).double() for part in (x, x + 1))  # q > p right of 1/2
    assert_close(Margin(10.0).discriminator(real, fake), value(6.17075), rtol=0, atol=3e-5)


def test_the_margin_is_where_fakes_stop_to_push():
    fake = value([1.0, 9.0, 11.0]).requires_grad_()
    Margin(10.0).discriminator(value([0.0]), fake).backward()
    assert_close(fake.grad, value([-1 / 3, -1 / 3, 0.0]))
    with pytest.raises(ValueError, match=r"loss\.m must be positive, got 0"):
        Margin(0)


def test_pulling_away():
    """Cosines of (1, 0), (0, 1), (1, 1): squared 0, 1/2, 1/2. Neither sign nor length matters."""
    codes = value([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert_close(pulling_away(codes), value(1 / 3))
    assert_close(pulling_away(codes * value([[-3.0], [1.0], [0.2]])), value(1 / 3))
    assert_close(pulling_away(value([[2.0, 1.0]] * 5)), value(1.0))
    assert_close(pulling_away(torch.eye(4, dtype=torch.float64)), value(0.0))
    assert_close(pulling_away(codes[:, :, None, None]), value(1 / 3))  # feature maps


def test_pulling_away_spreads():
    codes = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(pulling_away, (codes,))
    before = pulling_away(codes)
    before.backward()
    assert pulling_away(codes.detach() - 0.1 * codes.grad) < before
    zero = torch.zeros(3, 2, requires_grad=True)  # a dead encoder
    pulling_away(zero).backward()
    assert zero.grad.isfinite().all()
    with pytest.raises(ValueError, match="compares the samples of a batch"):
        pulling_away(codes[:1])
