"""ALI and BiGAN: who moves on what, against the paper's equations, and that the encoder learns to invert."""

import pytest
import torch
from torch.testing import assert_close

from tests.models.helpers import RING, SGD, Losses, Memory, assert_moves, config, fit, log_d, log_not_d
from tests.models.pairs import LINE, PLANE

pytestmark = pytest.mark.usefixtures("one_thread")
ORDER = ["discriminator", "generator"]
SMALL = [*RING, "model.discriminator.hidden=[16]"]


@pytest.mark.parametrize(
    "overrides",
    [["model=ali", *SMALL], ["model=bigan", *SMALL], ["model=ali", "network=dcgan", "network.width=4"]],
)
def test_both_players_move_at_once_and_nobody_else(overrides, tmp_path):
    fitted = assert_moves(overrides, ORDER * 3, 3, tmp_path)
    own = {id(p) for p in fitted.model.players["generator"]}
    assert own == {id(p) for m in (fitted.model.generator, fitted.model.encoder) for p in m.parameters()}


def losses(loss, noisy):
    """Algorithm 1 of Dumoulin et al. written out, for D and for G and E: rho_q of (x, E(x)), rho_p of (G(z), z)."""

    def logits(m, x, draws):
        z, out = draws[0], m.encoder(x)
        z_hat = out[:, :16] + (out[:, 16:] / 2).exp() * draws[1] if noisy else out
        return m.discriminator(x, z_hat), m.discriminator(m.generator(z), z)

    def d_loss(*args):
        q, p = logits(*args)
        return -log_d(q) - log_not_d(p)

    def g_loss(*args):
        q, p = logits(*args)
        if loss == "minimax":
            return log_d(q) + log_not_d(p)  # Eq. 2, a zero-sum game
        return q.mean() - p.mean() if loss == "density_ratio" else -log_not_d(q) - log_d(p)

    return [d_loss, g_loss]


@pytest.mark.parametrize(
    ("model", "loss"), [("ali", "non_saturating"), ("bigan", "non_saturating"), ("ali", "minimax"),
                        ("bigan", "density_ratio")]
)  # fmt: skip
def test_gradients_are_those_of_algorithm_1(model, loss, tmp_path):
    expected = Losses(losses(loss, model == "ali"), together=True)
    fit([f"model={model}", f"loss={loss}", *SMALL], 1, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ORDER


def test_a_toy_of_two_parameters(tmp_path):
    """G(z) = a z, E(x) = b x, D = c x z + w x^2, loss=density_ratio: all gradients in closed form."""
    toy = {
        "_target_": "genlab.models.ali.ALI",
        "generator": {"_target_": "tests.models.pairs.Scale", "a": 0.7},
        "encoder": {"_target_": "tests.models.pairs.Scale", "a": -0.4},
        "discriminator": {"_target_": "tests.models.pairs.Product", "c": 0.9, "w": 0.3},
        "loss": {"_target_": "genlab.losses.density_ratio.DensityRatio"},
        "latent_dim": 1,
        "encoder_features": 1,
        "g_optimizer": SGD,
        "d_optimizer": SGD,
    }

    def values(m):
        return [p.detach() for p in (m.generator.a, m.encoder.a, m.discriminator.c, m.discriminator.w)]

    def of_d(m, x, draws):
        """d/dl of -log s(l_q) - log(1 - s(l_p)) is s - 1 and s."""
        a, b, c, w = values(m)
        z2, x2 = draws[0].square(), x.square()
        s_q, s_p = ((c * b + w) * x2).sigmoid() - 1, ((c * a + w * a * a) * z2).sigmoid()
        of_c, of_w = (s_q * b * x2 + s_p * a * z2).mean(), (s_q * x2 + s_p * a * a * z2).mean()
        return of_c * m.discriminator.c + of_w * m.discriminator.w

    def of_g(m, x, draws):
        """-D(a z, z) = -(c a + w a^2) z^2, and D(x, b x) = (c b + w) x^2."""
        a, _, c, w = values(m)
        return -(c + 2 * w * a) * draws[0].square().mean() * m.generator.a + c * x.square().mean() * m.encoder.a

    expected = Losses([of_d, of_g], together=True)
    fit(["data=ring"], 1, tmp_path, [expected], trainer={"precision": "64-true"}, model=toy, data=LINE)
    assert expected.checked == ORDER


def test_the_penalty_is_on_sample_and_latent_together(tmp_path):
    """R1: gamma / 2 E |d D(x, E(x)) / d (x, E(x))|^2, added to the discriminator's loss."""
    d_loss, g_loss = losses("non_saturating", False)

    def with_r1(m, x, draws):
        pair = [x.clone().requires_grad_(), m.encoder(x).detach().requires_grad_()]
        slopes = torch.autograd.grad(m.discriminator(*pair).sum(), pair, create_graph=True)
        return d_loss(m, x, draws) + 0.35 * sum(slope.square().sum(dim=1) for slope in slopes).mean()

    expected = Losses([with_r1, g_loss], together=True)
    overrides = ["model=bigan", *SMALL, "penalty=r1", "penalty.gamma=0.7"]
    fit(overrides, 1, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ORDER
    with pytest.raises(ValueError, match="batch normalisation"):
        fit(["model=ali", "network=dcgan", "network.width=4", "data.image_size=16", "penalty=r1"], 1, tmp_path)


def test_capabilities(tmp_path):
    """The Gaussian encoder gives its mean, and reconstructions are G of it."""
    model = fit(["model=ali", *SMALL], 1, tmp_path).model
    x = torch.randn(5, 2)
    assert_close(model.encode(x), model.encoder(x)[:, :16], rtol=1e-2, atol=1e-2)  # but for the average
    assert_close(model.reconstruct(x), model.decode(model.encode(x)))
    assert model.sample(3).shape == (3, 2) and not model.can("sample_posterior") and not model.can("score_logits")


def test_pairs_become_alike(tmp_path):
    """On a Gaussian in the plane: samples get its spread, and G(E(x)) comes near x."""
    overrides = ["model=bigan", "data=ring", "network.hidden=[32]", "model.discriminator.hidden=[32]"]
    overrides += ["model.latent_dim=2", "model.g_optimizer.lr=2e-3", "model.d_optimizer.lr=2e-3"]
    fitted = fit([*overrides, "penalty=r1", "penalty.gamma=0.1"], 500, tmp_path, data=PLANE)
    x = next(iter(fitted.data.batches("test", 1000))).x
    far = x.square().sum(dim=1).mean()
    samples = fitted.model.sample(2000, rng=torch.Generator().manual_seed(0))
    assert_close(samples.square().sum(dim=1).mean(), far, rtol=0.35, atol=0)
    assert (fitted.model.reconstruct(x) - x).square().sum(dim=1).mean() < 0.3 * far


def test_it_refuses_an_encoder_of_another_width():
    from genlab.runs.running import build

    with pytest.raises(ValueError, match="must give 32 numbers, not 5"):
        build(config(["model=ali", *SMALL, "model.encoder_features=5"]))


def test_it_refuses_losses_whose_sides_are_not_each_others_mirror():
    from genlab.config.checks import check
    from genlab.errors import UserError

    with pytest.raises(UserError, match="loss=least_squares: it needs a NonSaturating"):
        check(config(["model=ali", "loss=least_squares", *SMALL]))


def test_what_is_recorded(tmp_path):
    memory = Memory()
    fit(["model=ali", *SMALL, "trainer.log_every_n_steps=1"], 1, tmp_path, trainer={"logger": [memory]})
    assert {"train/d_loss", "train/g_loss", "train/e_loss", "train/logits_real"} <= memory.curves.keys()
