"""Bounds on a likelihood that is known, active units, bits per dimension, reconstructions, cards and the cache."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.extractors.cache import cached_features, load_features
from genlab.judging.cards import differences, refusal
from genlab.judging.measure import chosen
from genlab.judging.measures.diversity import diversity, memorisation, noised
from genlab.judging.measures.likelihood import Likelihood
from genlab.losses.likelihoods import Bernoulli, Gaussian
from genlab.metrics.features import Features
from genlab.metrics.likelihood import (
    active_units,
    bits_per_dim,
    dequantise,
    importance_bounds,
    is_likelihood,
    likelihood_scores,
    prior_bounds,
)
from genlab.metrics.reconstruction import feature_error, reconstruction_scores
from genlab.models.vae import VAE
from genlab.seeding import fixed_choice

SIGMA, LATENT, DIM, COUNT = 0.5, 2, 3, 400


def linear_gaussian(mean_scale=1.0, extra_logvar=0.0):
    """x = W z + b + sigma eps: log p(x) is a Gaussian's, and so is p(z | x). The encoder may be made wrong."""
    generator = torch.Generator().manual_seed(0)
    w, b = torch.randn(DIM, LATENT, generator=generator), torch.randn(DIM, generator=generator)
    decoder, encoder = nn.Linear(LATENT, DIM), nn.Linear(DIM, 2 * LATENT)
    precision = torch.eye(LATENT) + w.T @ w / SIGMA**2
    gain = torch.linalg.solve(precision, w.T) / SIGMA**2
    logvar = -precision.diagonal().log()  # the best factorised posterior
    with torch.no_grad():
        decoder.weight.copy_(w), decoder.bias.copy_(b)
        encoder.weight.copy_(torch.cat([mean_scale * gain, torch.zeros(LATENT, DIM)]))
        encoder.bias.copy_(torch.cat([-mean_scale * gain @ b, logvar + extra_logvar]))
    model = VAE(encoder, decoder, Gaussian(SIGMA), LATENT, 2 * LATENT)
    marginal = torch.distributions.MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(DIM))
    x = marginal.sample((COUNT,))
    return model, x, marginal.log_prob(x).double()


def rotated(model):
    """The same model in latents whose true posterior factorises: the encoder then is exact."""
    w = model.decoder.weight.data
    _, _, v = torch.linalg.svd(w, full_matrices=False)
    model.decoder.weight.data = w @ v.T
    precision = torch.eye(LATENT) + model.decoder.weight.data.T @ model.decoder.weight.data / SIGMA**2
    gain = torch.linalg.solve(precision, model.decoder.weight.data.T) / SIGMA**2
    model.encoder.weight.data = torch.cat([gain, torch.zeros(LATENT, DIM)])
    model.encoder.bias.data = torch.cat([-gain @ model.decoder.bias.data, -precision.diagonal().log()])
    return model


# ------------------------------------------------------------------------------------------------------------- bounds
def test_bounds_rise_from_the_elbo_to_a_known_likelihood():
    torch.manual_seed(0)
    model, x, log_p = linear_gaussian(mean_scale=0.9, extra_logvar=0.3)
    ten, thousand = (importance_bounds(model, x.split(100), samples=k) for k in (10, 1000))
    elbo, iwae_10, iwae_1000, truth = (v.mean().item() for v in (thousand.elbo, ten.iwae, thousand.iwae, log_p))
    assert elbo < iwae_10 < iwae_1000 < truth + 0.01
    assert abs(truth - iwae_1000) < 0.05 < truth - elbo
    assert_close(thousand.elbo, thousand.recon - thousand.kl)
    assert (thousand.ess > 1).all() and (thousand.ess <= 1000).all()


def test_an_exact_posterior_needs_one_draw():
    """All weights are p(x): the ELBO, the bound with any k and log p(x) are one number, and every draw counts."""
    torch.manual_seed(0)
    model, x, log_p = linear_gaussian()
    rotated(model)
    for k in (1, 7):
        bounds = importance_bounds(model, [x], samples=k)
        assert_close(bounds.elbo, log_p, atol=1e-4, rtol=0)
        assert_close(bounds.iwae, log_p, atol=1e-4, rtol=0)
        assert_close(bounds.ess, torch.full((COUNT,), float(k), dtype=torch.float64), atol=1e-3, rtol=0)


def test_parts_of_the_elbo_are_the_closed_forms():
    """E_q log p(x | z) and KL(q | p) of a Gaussian q, against many draws."""
    torch.manual_seed(0)
    model, x, _ = linear_gaussian(mean_scale=0.8, extra_logvar=-0.2)
    bounds = importance_bounds(model, [x], samples=4000, at_a_time=40_000)
    with torch.no_grad():
        mu, logvar = model.posterior(x)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1)
        spread = (model.decoder.weight.square() @ logvar.exp().T).T.sum(dim=1) / SIGMA**2
        recon = model.likelihood.log_prob(x, model.decoder(mu)) - 0.5 * spread
    assert_close(bounds.kl.mean(), kl.double().mean(), atol=0.01, rtol=0)
    assert_close(bounds.recon.mean(), recon.double().mean(), atol=0.02, rtol=0)
    assert_close(bounds.means, mu.double(), atol=0.1, rtol=0)


def test_draws_from_the_prior_estimate_a_known_likelihood(rng_untouched):
    """In one dimension of latents, where some of them are near; chunks and batches change nothing but the draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, log_p = linear_gaussian()
        model.decoder.weight.data[:, 1] = 0
    covariance = model.decoder.weight.data @ model.decoder.weight.data.T + SIGMA**2 * torch.eye(DIM)
    truth = torch.distributions.MultivariateNormal(model.decoder.bias.data, covariance).log_prob(x[:50]).double()
    found = prior_bounds(model, x[:50].split(20), samples=4000)
    assert found.shape == (50,) and found.dtype == torch.float64
    assert_close(found, truth, rtol=0, atol=0.3)
    assert abs((found - truth).mean()) < 0.03
    parts = prior_bounds(
        model, x[:50].split(20), samples=64, at_a_time=320
    )  # whole sixteens of numbers, as torch draws
    assert_close(prior_bounds(model, x[:50].split(20), samples=64), parts)
    one = prior_bounds(model, [x[:50]], samples=1)  # log p(x | z) at one draw, far below
    assert one.mean() < truth.mean() - 1
    with pytest.raises(ValueError, match="needs samples"):
        prior_bounds(model, [])


def test_chunks_change_nothing(rng_untouched):
    with torch.random.fork_rng():
        model, x, _ = linear_gaussian(0.9, 0.3)
    whole = importance_bounds(model, [x], samples=64, at_a_time=10**6)
    parts = importance_bounds(model, [x], samples=64, at_a_time=COUNT * 10)
    assert_close(whole.iwae, parts.iwae)
    assert_close(whole.ess, parts.ess, rtol=1e-4, atol=1e-4)


def test_the_posteriors_draws_have_the_stated_density():
    torch.manual_seed(0)
    model, x, _ = linear_gaussian()
    z, log_q = model.sample_posterior(x[:5], k=3, rng=torch.Generator().manual_seed(1))
    mu, logvar = model.posterior(x[:5])
    want = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(dim=-1)
    assert z.shape == (3, 5, LATENT)
    assert_close(log_q, want, atol=1e-4, rtol=1e-4)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z[0]).sum(dim=-1)
    assert_close(model.log_prior(z[0]), prior)
    assert_close(model.log_joint(x[:5], z[0]) - prior, model.likelihood.log_prob(x[:5], model.decoder(z[0])))


def test_no_draws_are_a_users_mistake():
    model, x, _ = linear_gaussian()
    with pytest.raises(UserError, match="iwae_samples=500"):
        importance_bounds(model, [x], samples=0)


def test_names_of_what_is_no_likelihood():
    model, x, _ = linear_gaussian()
    bounds = importance_bounds(model, [x], samples=5)
    assert {"elbo", "elbo_recon", "elbo_kl", "iwae_5", "iwae_5_se"} <= likelihood_scores(bounds).keys()
    named = likelihood_scores(bounds, likelihood=False)
    assert "objective" in named and not any(name.startswith(("elbo", "iwae")) for name in named)
    binary, grey = torch.tensor([[-1.0, 1.0]]), torch.tensor([[-1.0, 0.3]])
    assert is_likelihood(binary, Bernoulli.support) and not is_likelihood(grey, Bernoulli.support)
    assert is_likelihood(grey, Gaussian.support)


# -------------------------------------------------------------------------------------------- units, bits, dequantising
def test_active_units():
    """A unit with a constant mean is inactive; order does not matter; the threshold is on the variance."""
    means = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 0.2, 0.05])
    scores = active_units(means)
    assert scores["active_units"] == 2 and scores.card["latent_dim"] == 4  # 0.2^2 is above 0.01, 0.05^2 below
    assert active_units(means[:, [3, 1, 0, 2]])["active_units"] == 2


@pytest.mark.parametrize("samples", [1, 2, 10, 30, 90, 500])
def test_a_collapsed_posterior_has_no_active_units(samples):
    """The mean of k draws from N(0, 1) varies by 1 / k: up to k = 100 it passed for twenty active units."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(DIM, 40), nn.Linear(20, DIM)
    nn.init.zeros_(encoder.weight), nn.init.zeros_(encoder.bias)
    model = VAE(encoder, decoder, Gaussian(SIGMA), 20, 40)
    bounds = importance_bounds(model, torch.randn(600, DIM).split(200), samples=samples)
    scores = likelihood_scores(bounds)
    assert scores.get("active_units") == (0 if samples >= 30 else None)  # None: too few draws to tell
    with torch.no_grad():
        encoder.weight[:7] = 0.2  # of x, so that seven units vary by 0.2^2 * 3
    bounds = importance_bounds(model, torch.randn(600, DIM).split(200), samples=samples)
    assert likelihood_scores(bounds).get("active_units") == (7 if samples >= 30 else None)


def test_errors_of_means_do_not_suffer_from_large_latents():
    model, x, _ = linear_gaussian()
    near = importance_bounds(model, [x], samples=50)
    with torch.no_grad():
        model.encoder.bias[:LATENT] += 1000.0
    far = importance_bounds(model, [x], samples=50)
    assert_close(far.errors, near.errors, rtol=1e-3, atol=0)
    assert_close(far.means - 1000, near.means, rtol=0, atol=1e-3)
    spread = model.posterior(x).logvar.exp().double()
    assert_close(near.errors.mean(dim=0), spread.mean(dim=0) / 50, rtol=0.05, atol=0)


def test_discrete_codes_have_no_active_units():
    class Codes:
        def sample_posterior(self, x, k=1, rng=None):
            return (torch.rand(k, len(x), 4, generator=rng) < 0.5).float(), torch.zeros(k, len(x))

        def log_joint(self, x, z):
            return torch.zeros(len(z))

        def log_prior(self, z):
            return torch.zeros(len(z))

    bounds = importance_bounds(Codes(), [torch.zeros(300, 1)], samples=100)
    assert bounds.discrete and "active_units" not in likelihood_scores(bounds)


def test_bits_per_dim_of_uniform_noise():
    dims = 12
    assert_close(bits_per_dim(dims * math.log(0.5), dims, "binary"), 1.0)
    assert_close(bits_per_dim(-dims * math.log(256), dims, "levels"), 8.0)
    assert_close(bits_per_dim(-dims * math.log(256 / 127.5), dims, "real"), 8.0)  # a density over 256 cells


def test_dequantised_bytes_stay_in_their_cells():
    byte = torch.randint(0, 256, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    x = dequantise(byte / 127.5 - 1, torch.Generator().manual_seed(1))
    assert torch.equal(((x + 1) * 127.5).round().long(), byte)
    assert_close(((x + 1) * 127.5 - byte).std().item(), 12**-0.5, atol=0.03, rtol=0)


# ----------------------------------------------------------------------------------------------------- reconstructions
def test_psnr_and_ssim():
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    off = reconstruction_scores([(x, x + 0.2)])  # 0.1 of the range
    assert_close(off["recon_mse"], 0.01, atol=1e-6, rtol=0)
    assert_close(off["recon_psnr"], 20.0, atol=1e-4, rtol=0)
    exact = reconstruction_scores([(x[:2], x[:2]), (x[2:], x[2:])])
    assert exact["recon_mse"] == 0
    assert_close(exact["recon_psnr"], -20 * math.log10(0.5 / 255))
    assert_close(exact["recon_ssim"], 1.0)
    noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert reconstruction_scores([(x, noisy)])["recon_ssim"] < 0.9


def test_features_that_reconstructions_lose():
    """0 for perfect ones, 1 for the mean feature, 2 for other images drawn at random."""
    stats = Features.of
    f = torch.randn(400, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 10.0)
    other = f[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert feature_error(stats(f), stats(f)) == 0
    assert_close(feature_error(stats(f), stats(other)), 2.0, rtol=0.05, atol=0)
    assert_close(feature_error(stats(f), stats(f.mean(dim=0).expand(400, -1))), 1.0, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="two images"):
        feature_error(stats(f[:1]), stats(f[:1]))


@pytest.mark.parametrize("side", [3, 8, 12])
def test_ssim_fits_small_images(side):
    x = torch.rand(2, 3, side, side) * 2 - 1
    assert_close(reconstruction_scores([(x, x)])["recon_ssim"], 1.0)


# --------------------------------------------------------------------------------------------------------------- cards
def test_cards_that_differ_name_the_field():
    card = {"n_fake": 100, "split": "test", "seed": 1, "kid_seed": 1, "genlab": "0.1", "checksum": "a" * 64}
    again = {**card, "seed": 2, "kid_seed": 2, "genlab": "0.2"}
    assert differences([card, again]) == [] and refusal("FID (inception)", {"A": card, "B": again}) is None
    assert differences([card, {**card, "n_fake": 200}]) == ["n_fake"]
    assert differences([card, {k: v for k, v in card.items() if k != "split"}]) == ["split"]
    sentence = refusal("FID (inception)", {"A": card, "B": {**card, "n_fake": 200, "checksum": "b" * 64}})
    assert sentence == (
        "FID (inception) is not ranked: the cards differ in checksum (aaaaaaaaaaaa in A, bbbbbbbbbbbb in B), "
        "n_fake (100 in A, 200 in B)."
    )
    assert Likelihood().title("iwae_500") == "IWAE bound, nats, k = 500"


# --------------------------------------------------------------------------------------------------------------- cache
def test_features_are_reused_and_invalidated(tmp_path):
    card = {"extractor": "net", "checksum": "1", "resize": "none", "precision": "float32"}
    calls = []

    def compute():
        calls.append(1)
        generator = torch.Generator().manual_seed(len(calls))
        return Features.of(torch.randn(30, 4, generator=generator), torch.randn(30, 3), card=card)

    def get(content="a", **changed):
        return cached_features(content, {**card, **changed}, compute, cache_dir=tmp_path)

    first, again = get(), get()
    assert len(calls) == 1 and torch.equal(first.features, again.features) and torch.equal(first.logits, again.logits)
    assert again.n == 30 and again.card == card
    for change in ({"content": "b"}, {"checksum": "2"}, {"resize": "299"}, {"precision": "bfloat16"}):
        get(**change)
    assert len(calls) == 5
    assert len(list(tmp_path.glob("*.pt"))) == 5 and not list(tmp_path.glob("*.tmp"))
    for path in tmp_path.glob("*.pt"):
        torch.load(path, weights_only=True)
        path.write_bytes(path.read_bytes()[:200])  # a full disk, or another program
        with pytest.raises(ValueError, match="no readable features"):
            load_features(path)
    get()
    assert len(calls) == 6 and get().n == 30 and len(calls) == 6


# --------------------------------------------------------------------------------------------------------------- suite
def test_memorised_images_are_found_and_fresh_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    train, test, fresh = (torch.randint(0, 256, (60, 3, 40, 40), generator=generator).byte() for _ in range(3))
    assert memorisation(train[:30], train, test)["nn_ratio"] < 0.01
    assert 0.9 < memorisation(fresh, train, test)["nn_ratio"] < 1.1


def test_diversity_stands_beside_real_and_noised_images(rng_untouched):
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (60, 1, 4, 4), generator=generator).float()
    real = nn.functional.interpolate(base, (16, 16), mode="bilinear").byte()
    collapsed = real[:3].repeat(20, 1, 1, 1)
    scores = diversity(real, collapsed)
    assert scores["ms_ssim"] < scores["ms_ssim_real"] < scores["ms_ssim_noised"]
    assert scores.card["ms_ssim_noise_std"] == 0.1
    spread = (noised(torch.full((4, 1, 32, 32), 128).byte(), 0.1, 0).float() - 128).std().item()
    assert_close(spread, 25.5, atol=1.0, rtol=0)


def test_a_fixed_choice_is_one_for_all():
    assert torch.equal(fixed_choice(5, 9), torch.arange(5))
    rows = fixed_choice(1000, 100)
    assert torch.equal(rows, fixed_choice(1000, 100)) and len(rows.unique()) == 100
    assert 400 < rows.float().mean() < 600  # of the whole set, not its head


def test_an_unknown_score_is_a_users_mistake():
    with pytest.raises(UserError, match="There is no score 'fd'; metrics.scores takes fid, is, kid"):
        chosen(["fid", "fd"])
