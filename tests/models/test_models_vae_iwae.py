"""The importance weighted autoencoder: its bound against a likelihood that is known, its gradients, two layers."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.losses.likelihoods import Gaussian
from genlab.metrics.likelihood import importance_bounds
from genlab.models.iwae import IWAE
from tests.models.helpers import Memory, fit

pytestmark = pytest.mark.usefixtures("one_thread")
N, K, Z, D, SIGMA = 7, 3, 2, 5, 0.5  # all unequal: an axis taken for another shows
DIGITS = ["data=digits", "network=mlp", "network.hidden=[16]", "model.latent_dim=4"]


class Flat(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))


def linear(widen=0.0, k=K, estimator="iwae"):
    """x = W z + b + sigma eps in float64 with the exact posterior (log-variances too large by `widen`)."""
    rng = torch.Generator().manual_seed(0)
    w, b = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((D, Z), (D,)))
    w = w @ torch.linalg.svd(w, full_matrices=False)[2].T  # latents in which the true posterior factorises
    precision = torch.eye(Z, dtype=torch.float64) + w.T @ w / SIGMA**2
    gain = torch.linalg.solve(precision, w.T) / SIGMA**2
    encoder, decoder = Flat(D, 2 * Z).double(), nn.Linear(Z, D).double()
    with torch.no_grad():
        decoder.weight.copy_(w), decoder.bias.copy_(b)
        encoder.weight.copy_(torch.cat([gain, torch.zeros(Z, D)]))
        encoder.bias.copy_(torch.cat([-gain @ b, -precision.diagonal().log() + widen]))
        likelihood = Gaussian(SIGMA).double()
        likelihood.log_sigma.fill_(math.log(SIGMA))
    model = IWAE(encoder, decoder, likelihood, Z, k=k, estimator=estimator).double()
    marginal = torch.distributions.MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(D, dtype=torch.float64))
    x = b + torch.randn(N, Z, generator=rng, dtype=torch.float64) @ w.T
    x = x + SIGMA * torch.randn(N, D, generator=rng, dtype=torch.float64)
    return model, x, marginal.log_prob(x)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize("k", [1, 2, 50])
def test_the_exact_posterior_gives_the_likelihood_for_every_k(k):
    model, x, log_p = linear(k=k)
    terms = model.objective(x, rng())
    for name in ("bound", "elbo"):
        assert_close(terms[name], log_p.mean(), rtol=0, atol=1e-10)
    assert_close(terms["ess"], torch.tensor(float(k), dtype=torch.float64), rtol=1e-9, atol=0)


def test_one_draw_gives_the_elbo():
    """k = 1: L_1 is the ELBO, draw by draw, and in the mean the one with the KL in closed form."""
    model, x, _ = linear(widen=0.8, k=1)
    terms = model.objective(x, rng(3))
    assert_close(terms["bound"], terms["elbo"], rtol=1e-12, atol=0)
    assert_close(terms["loss"], -terms["bound"], rtol=0, atol=0)
    model.k = 4000
    mu, logvar = model.posterior(0, x)
    w = model.decoders[0].weight
    recon = model.likelihood.log_prob(x, model.decoders[0](mu))
    recon = recon - 0.5 * (w.square().sum(dim=0) * logvar.exp()).sum(dim=1) / SIGMA**2
    exact = (recon - kl_standard_normal(mu, logvar)).mean()
    assert_close(model.objective(x, rng())["elbo"], exact, rtol=0, atol=0.03)


def test_the_bound_rises_with_k_to_the_likelihood():
    model, x, log_p = linear(widen=2 * math.log(1.5))  # q 1.5 times as wide as it should be
    bounds = []
    for k in (1, 2, 5, 20, 300):
        model.k = k
        bounds.append(torch.stack([model.objective(x, rng(s))["bound"] for s in range(100)]).mean().item())
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1] - 0.2
    assert bounds[-2] < log_p.mean()
    assert_close(torch.tensor(bounds[-1], dtype=torch.float64), log_p.mean(), rtol=0, atol=0.01)


def test_axes_of_draws_and_samples():
    """Each sample's own k weights are averaged: a batch's bound is the mean of those of its samples alone."""
    model, x, _ = linear(widen=1.0)
    eps = model.randn(N, K, Z, rng=rng()).transpose(0, 1)
    latents, families = model.draw(x, eps)
    log_w = model.log_weights(x, latents, families)
    assert log_w.shape == (K, N)
    for i in range(N):
        alone, q = model.draw(x[i : i + 1], eps[:, i : i + 1])
        assert_close(model.log_weights(x[i : i + 1], alone, q).squeeze(1), log_w[:, i], rtol=1e-9, atol=1e-9)
    by_hand = (log_w.exp().mean(dim=0)).log().mean()
    assert_close(model.objective(x, rng())["bound"], by_hand, rtol=1e-9, atol=0)


# -------------------------------------------------------------------------------------------------------- the gradients


def gradients(model, x, seed=0):
    terms = model.objective(x, rng(seed))
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    return terms, dict(zip(names, torch.autograd.grad(terms["loss"], parameters), strict=True))


def test_the_gradient_weighs_each_draw_by_its_share():
    """Eq. 14 by hand: sum_i share_i grad log w_i."""
    model, x, _ = linear(widen=1.0)
    _, found = gradients(model, x)
    eps = model.randn(N, K, Z, rng=rng()).transpose(0, 1)
    log_w = model.log_weights(x, *model.draw(x, eps))
    share = log_w.detach().softmax(dim=0)
    by_hand = torch.autograd.grad(-(share * log_w).sum(dim=0).mean(), list(model.parameters()))
    for (name, mine), theirs in zip(found.items(), by_hand, strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_doubly_reparametrised_gradients_agree_in_the_mean():
    """Tucker et al. (2019): the same expectation with less noise; the model's part is the same draw by draw."""
    found = {}
    for name in ("iwae", "dreg"):
        model, x, _ = linear(widen=0.6, estimator=name)
        with torch.no_grad():
            model.encoders[0].bias[:Z] += 0.3  # so that there is a gradient to be found
        runs = [gradients(model, x.repeat(100, 1), seed) for seed in range(60)]
        found[name] = {key: torch.stack([g[key] for _, g in runs]) for key in runs[0][1]}
        found[name]["bound"] = torch.stack([terms["bound"].detach() for terms, _ in runs])
    for key in found["iwae"]:
        a, b = found["iwae"][key], found["dreg"][key]
        if not key.startswith("encoders"):
            assert_close(a, b, rtol=1e-9, atol=1e-9, msg=key)
            continue
        error = ((a.var(dim=0) + b.var(dim=0)) / len(a)).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() < 4 * error).all(), key
        assert b.mean(dim=0).abs().max() > 10 * (b.std(dim=0) / len(b) ** 0.5).max(), key
        assert (b.std(dim=0) < 0.8 * a.std(dim=0)).all(), key


def test_dreg_has_no_noise_at_the_exact_posterior():
    """Its point: the encoder's gradient vanishes with the weights' spread, that of IWAE does not."""
    noisy, x, _ = linear()
    quiet, *_ = linear(estimator="dreg")
    assert gradients(noisy, x)[1]["encoders.0.weight"].abs().max() > 0.05
    assert gradients(quiet, x)[1]["encoders.0.weight"].abs().max() < 1e-10


def test_the_vae_with_k_samples_is_the_mean_of_elbos():
    model, x, _ = linear(widen=1.0, estimator="vae")
    terms = model.objective(x, rng())
    assert_close(terms["loss"], -terms["elbo"], rtol=0, atol=0)
    assert terms["bound"] > terms["elbo"]


# ----------------------------------------------------------------------------------------------------------- two layers


def test_two_layers_by_hand(tmp_path):
    """log w = log p(x | z_1) + log p(z_1 | z_2) + log p(z_2) - log q(z_1 | x) - log q(z_2 | z_1)."""
    model = fit(["model=iwae_two_layers", *DIGITS, "model.upper_dim=3", "model.k=5"], 1, tmp_path).model.double().eval()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64) * 2 - 1
    z, log_q = model.sample_posterior(x, 5, rng(1))
    assert z.shape == (5, 6, 7) and log_q.shape == (5, 6)
    for draw, own in zip(z, log_q, strict=True):
        z1, z2 = draw.split([4, 3], dim=1)

        def normal(features):
            mu, logvar = features.chunk(2, dim=1)
            return torch.distributions.Normal(mu, (0.5 * logvar).exp())

        with torch.no_grad(), model.ema():
            q = normal(model.encoders[0](x)).log_prob(z1).sum(1) + normal(model.encoders[1](z1)).log_prob(z2).sum(1)
            p = normal(model.decoders[1](z2)).log_prob(z1).sum(1) + torch.distributions.Normal(0, 1).log_prob(z2).sum(1)
            assert_close(own, q)
            assert_close(model.log_prior(draw), p)
            assert_close(model.log_joint(x, draw), p + model.likelihood.log_prob(x, model.decoders[0](z1)))
    bounds = importance_bounds(model.float(), [x.float()], samples=20)
    assert (bounds.iwae > bounds.elbo).all() and bounds.means.shape == (6, 7)


@pytest.mark.parametrize("name", ["iwae", "iwae_two_layers"])
def test_it_draws_encodes_and_decodes(name, tmp_path):
    model = fit([f"model={name}", *DIGITS, "model.k=2"], 2, tmp_path).model
    x = model.sample(3, rng=rng())
    assert x.shape == (3, 1, 8, 8)
    codes = model.encode(x)
    assert codes.shape == model.noise(3, rng()).shape and model.decode(codes).shape == x.shape
    assert model.reconstruct(x).shape == x.shape


# --------------------------------------------------------------------------------------------------- training, mistakes


@pytest.mark.parametrize("overrides", [[], ["model.estimator=dreg"], ["model=iwae_two_layers", "model.latent_dim=8"]])
def test_it_learns(overrides, tmp_path):
    memory = Memory()
    chosen = ["model=iwae", *DIGITS, "network.hidden=[64]", "model.k=5", "data.binarize=dynamic", *overrides]
    fit([*chosen, "trainer.log_every_n_steps=20", "data.batch_size=32"], 300, tmp_path, trainer={"logger": [memory]})
    bound = memory.curves["train/bound"]
    assert sum(list(bound.values())[-5:]) / 5 > -26 > sum(list(bound.values())[:2]) / 2  # independent pixels: -27.4
    assert all(memory.curves["train/elbo"][step] <= bound[step] for step in bound)
    assert memory.curves["train/loss"][300] != memory.curves["train/bound"][300]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.k=0"], "model.k must be at least 1"),
        (["model.estimator=sleep"], "one of iwae, dreg, vae"),
        (["model.estimator=dreg", "model=iwae_two_layers"], "one stochastic layer"),
        (["model.encoder_features=9"], "must give 8 numbers, not 9"),
    ],
)
def test_mistakes(overrides, words, tmp_path):
    with pytest.raises(UserError, match=words):
        fit(["model=iwae", *DIGITS, *overrides], 1, tmp_path)
