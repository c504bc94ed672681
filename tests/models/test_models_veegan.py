"""VEEGAN in both readings: who moves on what, what it has in common with ALI, and the inverse of a linear map."""

import pytest
import torch
from torch.testing import assert_close

from genlab.models.veegan import noise_distance
from tests.models.helpers import RING, SGD, Losses, Memory, assert_moves, fit, log_d, log_not_d, snapshot
from tests.models.pairs import LINE, PLANE, Plane

pytestmark = pytest.mark.usefixtures("one_thread")
ORDER = ["discriminator", "generator"]
SMALL = ["model=veegan", *RING, "model.discriminator.hidden=[16]"]
BOTH = pytest.mark.parametrize("adversarial", [False, True])


def reading(adversarial):
    return f"model.reconstructor_adversarial={str(adversarial).lower()}"


@BOTH
@pytest.mark.parametrize("overrides", [SMALL, ["model=veegan", "network=dcgan", "network.width=4"]])
def test_both_players_move_at_once_and_nobody_else(overrides, adversarial, tmp_path):
    assert_moves([*overrides, reading(adversarial)], ORDER * 3, 3, tmp_path)


@BOTH
@pytest.mark.parametrize("noisy", [False, True])
def test_gradients_are_those_of_algorithm_1(adversarial, noisy, tmp_path):
    """In the paper's orientation, whose D is minus ours, each network's own loss on its own, D of each side cut off."""

    def f(m, x, eps):
        out = m.encoder(x)
        return out[:, :16] + (out[:, 16:] / 2).exp() * eps if noisy else out

    def d(m, x, z):
        return -m.discriminator(x, z)

    def omega(m, x, draws):
        z, eps, _ = draws
        return -log_d(d(m, m.generator(z), z)) - log_not_d(d(m, x, f(m, x, eps)))

    def gamma_and_theta(m, x, draws):
        z, eps, again = draws
        distance = (z - f(m, m.generator(z), again)).square().sum(dim=1).mean()
        gamma, theta = d(m, m.generator(z), z).mean(), -d(m, x, f(m, x, eps)).mean()
        return gamma + 0.6 * distance + (theta if adversarial else 0)

    expected = Losses([omega, gamma_and_theta], together=True)
    overrides = [*SMALL, reading(adversarial), "model.distance_weight=0.6"]
    overrides += ["posterior=diagonal"] if noisy else []
    fit(overrides, 1, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ORDER


@BOTH
def test_a_toy_of_two_parameters(adversarial, tmp_path):
    """G(z) = a z, F(x) = b x, D = c x z + w x^2: d = (1 - a b)^2 z^2; b sees D in the second reading alone."""
    toy = {
        "_target_": "genlab.models.veegan.VEEGAN",
        "generator": {"_target_": "tests.models.pairs.Scale", "a": 0.7},
        "encoder": {"_target_": "tests.models.pairs.Scale", "a": -0.4},
        "discriminator": {"_target_": "tests.models.pairs.Product", "c": 0.9, "w": 0.3},
        "loss": {"_target_": "genlab.losses.density_ratio.DensityRatio"},
        "latent_dim": 1,
        "encoder_features": 1,
        "distance_weight": 1.0,
        "reconstructor_adversarial": adversarial,
        "g_optimizer": SGD,
        "d_optimizer": SGD,
    }

    def of_g(m, x, draws):
        a, b, c, w = (p.detach() for p in (m.generator.a, m.encoder.a, m.discriminator.c, m.discriminator.w))
        z2, x2 = draws[0].square().mean(), x.square().mean()
        of_a = -(c + 2 * w * a) * z2 - 2 * b * (1 - a * b) * z2
        of_b = -2 * a * (1 - a * b) * z2 + (c * x2 if adversarial else 0)
        return of_a * m.generator.a + of_b * m.encoder.a

    def of_d(m, x, draws):
        fake = m.generator(draws[0])
        return -log_d(m.discriminator(x, m.encoder(x))) - log_not_d(m.discriminator(fake, draws[0]))

    expected = Losses([of_d, of_g], together=True)
    fit(["data=ring"], 1, tmp_path, [expected], trainer={"precision": "64-true"}, model=toy, data=LINE)
    assert expected.checked == ORDER


def test_without_the_distance_the_second_reading_is_ali(tmp_path):
    """Bit for bit, from the same start and noise (of one iteration: VEEGAN draws once more in each)."""
    same = [*RING, "model.discriminator.hidden=[16]", "loss=density_ratio"]
    rates = [f"model.{who}_optimizer.lr=1e-3" for who in ("g", "d")]
    ali = fit(["model=bigan", *same, *rates], 1, tmp_path / "ali").model
    overrides = ["model=veegan", *same, *rates, reading(True), "model.distance_weight=0"]
    veegan = fit(overrides, 1, tmp_path / "veegan").model
    for player, values in snapshot(ali).items():
        for name, value in values.items():
            assert torch.equal(value, snapshot(veegan)[player][name]), name


def test_the_distance_is_a_sum_over_the_latent():
    z = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(noise_distance(z[0], z[1]), (z[0] - z[1]).square().sum() / 5)


@BOTH
def test_the_reconstructor_becomes_the_inverse_of_a_linear_generator(adversarial, tmp_path):
    """x = A e, G and F linear: F G = 1, and G has the spread of the data, W W' = A A'."""
    overrides = ["model=veegan", "data=ring", "network.hidden=[]", "model.discriminator.hidden=[32]", "ema.decay=0.98"]
    overrides += ["model.latent_dim=2", "penalty=r1", "penalty.gamma=0.1", reading(adversarial)]
    overrides += [f"model.{who}_optimizer.lr=1e-2" for who in ("g", "d")]
    model = fit(overrides, 400, tmp_path, data={**PLANE, "batch_size": 128}).model
    with model.inference():
        w, v = model.generator.decoder.body[-1].weight.clone(), model.encoder.body[-1].weight.clone()
    assert_close(v @ w, torch.eye(2), rtol=0, atol=0.1)
    assert_close(w @ w.T, Plane.A @ Plane.A.T, rtol=0, atol=0.5)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) @ Plane.A.T
    assert (model.reconstruct(x) - x).square().mean() < 0.02


def test_what_is_recorded(tmp_path):
    memory = Memory()
    fit([*SMALL, "trainer.log_every_n_steps=1"], 1, tmp_path, trainer={"logger": [memory]})
    names = {"d_loss", "g_loss", "distance", "code_mean", "code_var", "logits_real", "logits_fake"}
    assert {f"train/{name}" for name in names} <= memory.curves.keys() and "train/e_loss" not in memory.curves
