"""Likelihoods and divergences against torch.distributions, and the linear VAE against probabilistic PCA."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from genlab.losses.divergences import kl_standard_normal
from genlab.losses.likelihoods import Bernoulli, Gaussian, PixelGaussian
from genlab.models.vae import VAE


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(number):
    return torch.tensor(number, dtype=torch.float64)


def standard(like):
    return Normal(torch.zeros_like(like), torch.ones_like(like))


# ------------------------------------------------------------------------------------------------------------- the KL


def test_kl_equals_torch_distributions():
    mu, logvar = draw(2, 6, 5)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), standard(mu)).sum(dim=1)
    assert_close(kl_standard_normal(mu, logvar), expected)


def test_kl_known_values():
    zero = torch.zeros(1, 3, dtype=torch.float64)
    assert_close(kl_standard_normal(zero, zero), value([0.0]))
    assert_close(kl_standard_normal(zero + 2, zero), value([6.0]))  # half the squared length
    assert_close(kl_standard_normal(zero, zero + math.log(4)), value([1.5 * (4 - 1 - math.log(4))]))


def test_kl_gradient_is_mu_and_half_the_excess_variance():
    mu, logvar = (part.clone().requires_grad_() for part in draw(2, 4, 3))
    kl_standard_normal(mu, logvar).sum().backward()
    assert_close(mu.grad, mu.detach())
    assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))


def test_kl_is_per_sample_and_refuses_to_broadcast():
    mu, logvar = draw(2, 4, 3)
    assert_close(kl_standard_normal(mu.repeat(2, 1), logvar.repeat(2, 1)), kl_standard_normal(mu, logvar).repeat(2))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 1\)"):
        kl_standard_normal(mu, logvar[:, :1])


# -------------------------------------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("grey", [False, True])
def test_bernoulli_equals_torch_distributions(grey):
    """Images in [-1, 1] stand for pixels in [0, 1]; grey ones are cross-entropies."""
    x, raw = draw(2, 4, 1, 3, 5)
    x = x.tanh() if grey else x.sign()
    expected = torch.distributions.Bernoulli(logits=raw, validate_args=False).log_prob((x + 1) / 2)
    found = Bernoulli().log_prob(x, raw)
    assert found.shape == (4,)
    assert_close(found, expected.flatten(1).sum(dim=1))
    assert_close(Bernoulli().mean(raw), 2 * torch.sigmoid(raw) - 1)


def test_bernoulli_of_all_images_sums_to_one():
    pixels = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    raw = draw(1, 4).expand(16, 4)
    assert_close(Bernoulli().log_prob(pixels, raw).exp().sum(), value(1.0))


def test_bernoulli_survives_sure_pixels():
    """Where log(sigmoid(raw)) would be -inf."""
    raw = torch.tensor([[200.0, -200.0]], dtype=torch.float64, requires_grad=True)
    wrong = Bernoulli().log_prob(torch.tensor([[-1.0, 1.0]], dtype=torch.float64), raw)
    assert_close(wrong, value([-400.0]))
    wrong.sum().backward()
    assert_close(raw.grad, value([[-1.0, 1.0]]))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("learned", [False, True])
def test_gaussian_equals_torch_distributions(sigma, learned):
    likelihood = Gaussian(sigma, learned).double()
    x, raw = draw(2, 4, 3, 2, 2)
    scale = likelihood.log_sigma.detach().exp()
    assert_close(scale, value(sigma), rtol=1e-6, atol=0)
    found = likelihood.log_prob(x, raw)
    assert_close(found, Normal(raw, scale).log_prob(x).flatten(1).sum(dim=1))
    assert found.requires_grad == learned == bool(list(likelihood.parameters()))
    assert likelihood.mean(raw) is raw


def test_the_best_learned_variance_is_the_mean_squared_error():
    """Rybkin et al. (2021), Eq. 5."""
    x, raw = draw(2, 50, 3)
    likelihood = Gaussian(1.0, learned=True).double()
    with torch.no_grad():
        likelihood.log_sigma.copy_(0.5 * (x - raw).square().mean().log())
    likelihood.log_prob(x, raw).mean().backward()
    assert_close(likelihood.log_sigma.grad, value(0.0), rtol=0, atol=1e-12)


def test_gaussian_refuses_no_noise():
    with pytest.raises(ValueError, match=r"likelihood\.sigma must be positive, got 0"):
        Gaussian(0)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.3)])
def test_the_visible_bias_fits_the_batch_best(likelihood):
    """The likelihood of a batch has no slope at a constant output of `visible_bias`."""
    x = draw(40, 1, 2, 3).tanh()
    bias = likelihood.visible_bias(x).requires_grad_()
    assert bias.shape == x.shape[1:]
    likelihood.log_prob(x, bias.expand_as(x)).sum().backward()
    assert_close(bias.grad, torch.zeros_like(bias), rtol=0, atol=1e-10)
    assert_close(likelihood.mean(bias.detach()), x.mean(dim=0))


def test_the_visible_bias_of_constant_pixels_is_finite():
    assert_close(Bernoulli().visible_bias(-torch.ones(3, 2, dtype=torch.float64)), torch.logit(value([1e-3, 1e-3])))


# ---------------------------------------------------------------------- the linear VAE and probabilistic PCA, exactly


Z, D = 8, 64


class Linear(nn.Module):
    """An affine map of flattened samples."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture(scope="module")
def digits():
    return torch.tensor(load_digits().data / 16, dtype=torch.float64)


def best_linear_vae(x):
    """Tipping & Bishop (1999): the maximum likelihood in closed form, and the posterior, which is diagonal there."""
    mean = x.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(x.T, correction=0))
    variances, axes = variances.flip(0), axes.flip(1)
    sigma2 = variances[Z:].mean()
    w = axes[:, :Z] * (variances[:Z] - sigma2).sqrt()  # [D, Z]
    precision = (w.square().sum(dim=0) + sigma2) / sigma2
    to_mean = (w / (sigma2 * precision)).T  # [Z, D]
    encoder = Linear(torch.cat([to_mean, torch.zeros_like(to_mean)]), torch.cat([-to_mean @ mean, -precision.log()]))
    likelihood = Gaussian(learned=True).double()
    with torch.no_grad():
        likelihood.log_sigma.copy_(0.5 * sigma2.log())
    model = VAE(encoder, Linear(w, mean), likelihood, Z, 2 * Z).double()
    log_likelihood = -0.5 * (D * math.log(2 * math.pi) + variances[:Z].log().sum() + (D - Z) * sigma2.log() + D)
    return model, log_likelihood


def analytic_elbo(model, x):
    """Mean ELBO, with E_q |x - x_hat(z)|^2 = |x - x_hat(mu)|^2 + sum_j |W_j|^2 v_j."""
    mu, logvar = model.posterior(x)
    spread = (model.decoder.weight.square().sum(dim=0) * logvar.exp()).sum(dim=1)
    log_prob = model.likelihood.log_prob(x, model.decoder(mu)) - 0.5 * spread / (2 * model.likelihood.log_sigma).exp()
    return (log_prob - kl_standard_normal(mu, logvar)).mean()


@torch.no_grad()
def test_the_elbo_at_the_optimum_is_the_likelihood(digits):
    """METHODS-VAE 3.1, check A: 14.2098 nats, sigma^2 = 0.0273294."""
    model, log_likelihood = best_linear_vae(digits)
    assert_close(log_likelihood, value(14.2098), rtol=0, atol=1e-4)
    assert_close((2 * model.likelihood.log_sigma).exp(), value(0.0273294), rtol=1e-5, atol=0)
    assert_close(analytic_elbo(model, digits), log_likelihood, rtol=0, atol=1e-8)


def test_the_elbo_is_greatest_there_and_never_above(digits):
    model, log_likelihood = best_linear_vae(digits)
    analytic_elbo(model, digits).backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-8, msg=name)
    best = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for seed in range(20):
            rng = torch.Generator().manual_seed(seed)
            for name, p in model.named_parameters():
                noise = torch.randn(p.shape, dtype=p.dtype, generator=rng)
                p.copy_(best[name] + 10 ** (-1 - seed % 5) * noise)
            assert analytic_elbo(model, digits) < log_likelihood


def test_the_exact_posterior_gives_the_evidence_for_every_latent(digits):
    """log p(x, z) - log q(z | x) = log p(x), whatever z, where q is the posterior: ties log_joint to posterior."""
    model, log_likelihood = best_linear_vae(digits)
    mu, logvar = model.posterior(digits)
    for seed in range(3):
        z = draw(len(digits), Z, seed=seed)
        log_q = Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(dim=1)
        evidence = model.log_joint(digits, z) - log_q.detach()
        assert_close(evidence.mean(), log_likelihood.detach(), rtol=0, atol=1e-8)


def test_the_models_own_draws_weigh_alike_there(digits):
    """Importance weights p(x, z) / q(z | x) of draws from the exact posterior are all p(x)."""
    model, log_likelihood = best_linear_vae(digits)
    z, log_q = model.sample_posterior(digits, 3, rng=torch.Generator().manual_seed(0))
    mu, logvar = (part.detach() for part in model.posterior(digits))
    assert_close(log_q, Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(dim=-1))
    assert_close(model.log_prior(z), standard(z).log_prob(z).sum(dim=-1))
    weights = torch.stack([model.log_joint(digits, part) for part in z]) - log_q
    assert_close(weights, weights[:1].expand_as(weights), rtol=0, atol=1e-8)
    assert_close(weights.mean(), log_likelihood.detach(), rtol=0, atol=1e-8)


@torch.no_grad()
def test_copies_of_a_batch_do_not_change_the_elbo(digits):
    model, _ = best_linear_vae(digits)
    assert_close(analytic_elbo(model, digits[:50].repeat(3, 1)), analytic_elbo(model, digits[:50]))


# ------------------------------------------------------------------------------------------- a variance for each pixel


def test_pixel_gaussian_equals_torch_distributions():
    likelihood = PixelGaussian((3, 2, 5), min_sigma=0.1)
    x, raw = draw(4, 3, 2, 5).tanh(), 3 * draw(4, 6, 2, 5, seed=1)
    mean = raw[:, :3].tanh()
    variance = torch.exp(math.log(0.01) + (1 + torch.exp(raw[:, 3:] - math.log(0.01))).log())
    terms = Normal(mean, variance.sqrt()).log_prob(x)
    assert_close(likelihood.terms(x, raw), terms)
    assert_close(likelihood.log_prob(x, raw), terms.flatten(1).sum(dim=1))
    assert torch.equal(likelihood.mean(raw), mean)


def test_pixel_gaussian_has_a_floor_and_no_ceiling():
    """On a flat background the density stays bounded: at most that of min_sigma at its mean."""
    likelihood = PixelGaussian((1, 1, 1), min_sigma=0.05)
    raw = torch.tensor([0.0, -1e4], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    best = likelihood.log_prob(torch.zeros(1, 1, 1, 1, dtype=torch.float64), raw)
    assert_close(best.detach(), Normal(0.0, value(0.05)).log_prob(value(0.0))[None])
    best.backward()
    assert raw.grad.isfinite().all()
    _, logvar = likelihood.parts(torch.tensor([0.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1))
    assert_close(logvar.squeeze(), value(2.0), rtol=0, atol=1e-3)


def test_draws_of_a_pixel_gaussian_have_its_moments():
    likelihood = PixelGaussian((1, 2, 2))
    raw = draw(1, 2, 2, 2)
    x = likelihood.sample(raw.expand(20_000, -1, -1, -1), torch.Generator().manual_seed(0))
    mean, logvar = likelihood.parts(raw)
    assert_close(x.mean(dim=0, keepdim=True), mean, rtol=0, atol=0.03)
    assert_close(x.var(dim=0, keepdim=True), logvar.exp(), rtol=0.05, atol=0)


def test_the_bias_of_a_pixel_gaussian_is_the_mean_and_variance_of_the_batch():
    likelihood = PixelGaussian((1, 2, 3), min_sigma=0.05)
    x = draw(40, 1, 2, 3).tanh()
    mean, logvar = likelihood.parts(likelihood.visible_bias(x)[None])
    assert_close(mean[0], x.mean(dim=0))
    assert_close(logvar[0].exp(), x.var(dim=0, correction=0))
    flat = likelihood.visible_bias(torch.ones(3, 1, 2, 3))  # white everywhere
    assert flat.isfinite().all()


def test_pixel_gaussian_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"likelihood\.min_sigma must be positive, got 0"):
        PixelGaussian((1, 2, 2), min_sigma=0)
    with pytest.raises(ValueError, match=r"likelihood\.raw_shape must be \[2, 8, 8\]"):
        PixelGaussian((1, 8, 8), raw_shape=[1, 8, 8])
