"""AVB: who moves on what, the KL's gradient through T, what it calls a bound, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.judging.judge import Judge
from genlab.losses.likelihoods import Gaussian
from genlab.models.avb import AVB
from genlab.networks.posteriors import Diagonal
from genlab.runs.running import build
from tests.models.helpers import RING, Losses, Memory, assert_moves, config, fit, log_d, log_not_d

pytestmark = pytest.mark.usefixtures("one_thread")
ORDER = ["discriminator", "vae"]
SMALL = ["model=avb", "likelihood=gaussian", *RING, "model.discriminator.hidden=[16]", "posterior.hidden=[16]"]


@pytest.mark.parametrize("overrides", [SMALL, ["model=avb", "network=dcgan", "network.width=4"]])
def test_both_players_move_at_once_and_nobody_else(overrides, tmp_path):
    assert_moves(overrides, ORDER * 3, 3, tmp_path)


def test_gradients_are_those_of_algorithm_1(tmp_path):
    def z_q(m, x, eps):
        return m.family.body(torch.cat([m.encoder(x), eps], dim=1))

    def of_t(m, x, draws):
        eps, z_p = draws
        return -log_d(m.discriminator(x, z_q(m, x, eps))) - log_not_d(m.discriminator(x, z_p))

    def of_phi_and_theta(m, x, draws):
        z = z_q(m, x, draws[0])
        log_p = torch.distributions.Normal(m.decoder(z), m.likelihood.log_sigma.exp()).log_prob(x).sum(dim=1)
        return (m.discriminator(x, z) - log_p).mean()

    expected = Losses([of_t, of_phi_and_theta], together=True)
    fit(SMALL, 1, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ORDER


class Linear(nn.Module):
    """x -> mean b x and log-variance 2 log s, of two parameters."""

    def __init__(self, b, s):
        super().__init__()
        self.b, self.s = nn.Parameter(torch.tensor(b)), nn.Parameter(torch.tensor(s))

    def forward(self, x):
        return torch.cat([self.b * x, 2 * self.s.log().expand_as(x)], dim=1)


class Exact(nn.Module):
    """T at its optimum, for the posterior of the moment: log q(z | x) - log p(z)."""

    def __init__(self, encoder):
        super().__init__()
        self.read = lambda: (encoder.b.detach(), encoder.s.detach())

    def forward(self, x, z):
        b, s = self.read()
        return (-0.5 * ((z - b * x) / s).square() - s.log() + 0.5 * z.square()).sum(dim=1)


def test_through_the_best_t_flows_the_gradient_of_the_kl():
    """Proposition 2 on a toy: d KL / db = b E x^2, d KL / ds = s - 1 / s; and the likelihood's own."""
    b, s, a = 0.6, 0.5, 1.3  # decoder a z, of standard deviation 1
    encoder, decoder = Linear(b, s).double(), nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        decoder.weight.fill_(a)

    model = AVB(encoder, decoder, Exact(encoder), Gaussian(sigma=1.0).double(), 1, 2, Diagonal(1, 2))
    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64).repeat_interleave(2, dim=0)
    eps = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(3, 1)  # mean 0 and variance 1, beside each x
    model.randn = lambda n, *shape, rng=None: eps
    terms = model.objective(x)
    of_b, of_s = torch.autograd.grad(terms["loss"], [encoder.b, encoder.s], retain_graph=True)
    x2 = x.square().mean()
    # recon = 1/2 E (x - a (b x + s eps))^2 = 1/2 (1 - a b)^2 x^2 + 1/2 a^2 s^2
    assert_close(of_b, b * x2 - a * (1 - a * b) * x2)
    assert_close(of_s, torch.tensor(s - 1 / s + a * a * s, dtype=torch.float64))
    kl = 0.5 * (b * b * x2 + s * s - 1) - torch.tensor(s).double().log()
    assert_close(terms["kl_estimate"], kl)
    assert_close(terms["elbo_estimate"], -terms["loss"])


def test_it_refuses_codes_without_noise_and_other_widths():
    with pytest.raises(UserError, match="infinite KL to any prior"):
        build(config(["model=avb", "posterior=deterministic"]))
    with pytest.raises(ValueError, match="must give 64 numbers, not 5"):
        build(config(["model=avb", "model.encoder_features=5"]))


def test_estimates_are_not_called_bounds(tmp_path):
    """On binary digits, where the VAE reports bounds, AVB has estimates, and AIS where it is asked."""
    memory = Memory()
    overrides = ["model=avb", "data.binarize=static", "metrics=likelihood", "metrics.ais_steps=3", "callbacks=default"]
    overrides += ["metrics.ais_samples=2", "metrics.num_samples=20", "trainer.log_every_n_steps=1", "callbacks=none"]
    fitted = fit(overrides, 1, tmp_path, trainer={"logger": [memory]})
    judge = Judge(["objective", "likelihood"], num_samples=20, ais_steps=3, ais_samples=2)
    judge.final(fitted.model, fitted.data)
    found = judge.found.scores
    assert {"loss", "recon", "kl_estimate", "elbo_estimate"} <= found.keys()
    assert not {"elbo", "bound"} & found.keys() and not any(name.startswith("iwae") for name in found)
    assert "ais_3" in found and judge.found.about["ais_3"]["title"] == "annealed estimate, nats, 3 temperatures"
    assert {"train/elbo_estimate", "train/kl_estimate"} <= memory.curves.keys() and "train/elbo" not in memory.curves
    assert all(fitted.model.can(what) for what in ("log_joint", "log_prior", "sample_prior"))
    assert not fitted.model.can("sample_posterior")


def test_the_joint_density_is_that_of_decoder_and_prior(tmp_path):
    model = fit([*SMALL, "model.latent_dim=3", "ema.decay=0"], 1, tmp_path).model
    x, z = torch.randn(4, 2), torch.randn(4, 3)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    log_p = torch.distributions.Normal(model.decoder(z), 0.1).log_prob(x).sum(dim=1)
    assert_close(model.log_prior(z), prior)
    assert_close(model.log_joint(x, z), log_p + prior, rtol=1e-4, atol=1e-4)


def test_t_learns_the_kl_of_a_posterior_that_stands_still(tmp_path):
    """Encoder frozen: after a short training the mean of T on fresh draws is the KL of what q draws, by its moments."""
    overrides = ["model=avb", "likelihood=gaussian", "data=ring", "posterior.hidden=[]", "model.latent_dim=1"]
    overrides += ["network.hidden=[32]", "model.discriminator.hidden=[32,32]", "data.batch_size=256", "ema.decay=0.98"]
    overrides += ["model.optimizer.lr=0", "model.d_optimizer.lr=3e-3"]

    def noisy(model):  # a linear family: the posterior is a Gaussian of known width
        with torch.no_grad():
            model.family.body[-1].weight[0, -1] = 0.5

    fitted = fit(overrides, 600, tmp_path, before=noisy)
    x = next(iter(fitted.data.batches("test", 5000))).x
    mean = fitted.model.encode(x)
    with fitted.model.inference():
        estimate = fitted.model.objective(x, torch.Generator().manual_seed(0))["kl_estimate"]
    exact = 0.5 * (mean.square().mean() + 0.25 - 1) - torch.tensor(0.5).log()
    assert_close(estimate, exact, rtol=0.1, atol=0)


def test_it_learns_to_reconstruct(tmp_path):
    overrides = [*SMALL, "network.hidden=[64]", "data.batch_size=64", "model.latent_dim=2", "likelihood.sigma=0.3"]
    fitted = fit([*overrides, "model.optimizer.lr=2e-3", "ema.decay=0.98"], 300, tmp_path)
    x = next(iter(fitted.data.batches("test", 400))).x
    error = (fitted.model.reconstruct(x) - x).square().mean()
    assert error < 0.2 * x.square().mean(), error
    assert F.mse_loss(fitted.model.decode(fitted.model.encode(x)), fitted.model.reconstruct(x)) == 0
