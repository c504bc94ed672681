"""PCA in closed form, the deep, denoising and contractive autoencoders."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.losses.contraction import squared_jacobian, squared_jacobian_of_sigmoid_layer
from genlab.metrics.likelihood import importance_bounds
from genlab.models.pca import PCA
from genlab.networks.tied import TiedAutoencoder
from tests.models.helpers import Memory, assert_moves, fit

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = ["data=digits", "network=mlp", "network.hidden=[64]"]
RING = ["data=ring", "network.hidden=[64]"]

# --------------------------------------------------------------------------------------------------------------- PCA


def fitted_pca(latent_dim):
    """On all 1,797 digits in [0, 1], in float64."""
    x = torch.tensor(load_digits().data / 16, dtype=torch.float64)
    model = PCA((64,), latent_dim).double()
    model.fit(x.mean(dim=0), torch.cov(x.T, correction=0))
    return model, x


@pytest.mark.parametrize(("latent_dim", "residual"), [(2, 3.35525), (8, 1.53045), (16, 0.70680)])
def test_the_residual_is_the_sum_of_the_eigenvalues_left_over(latent_dim, residual):
    model, x = fitted_pca(latent_dim)
    error = (model.reconstruct(x) - x).square().sum(dim=1).mean()
    assert_close(error, torch.tensor(residual, dtype=torch.float64), rtol=0, atol=1e-5)
    again = model.reconstruct(model.reconstruct(x))
    assert_close(again, model.reconstruct(x), rtol=0, atol=1e-12)  # a projection
    assert_close(model.axes.T @ model.axes, torch.eye(latent_dim, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("latent_dim", "nats"), [(2, 0.0057), (8, 14.2098), (16, 23.9294)])
def test_every_bound_is_the_likelihood_of_probabilistic_pca(latent_dim, nats):
    """The posterior is exact, so that one draw is enough; Tipping & Bishop's maximum on these data."""
    model, x = fitted_pca(latent_dim)
    w, sigma2 = model.axes * model.scales, (2 * model.likelihood.log_sigma).exp()
    marginal = torch.distributions.MultivariateNormal(model.mean, w @ w.T + sigma2 * torch.eye(64).double())
    assert_close(marginal.log_prob(x).mean(), torch.tensor(nats, dtype=torch.float64), rtol=0, atol=1e-4)
    z, log_q = model.sample_posterior(x, 2, torch.Generator().manual_seed(0))
    for draw, own in zip(z, log_q, strict=True):
        assert_close(model.log_joint(x, draw) - own, marginal.log_prob(x), rtol=1e-9, atol=1e-8)


def test_it_is_fitted_on_every_training_sample_once(tmp_path):
    """Before the first iteration, from batches that do not divide the data; against the data themselves."""
    fitted = fit(["model=pca", "data=digits", "data.batch_size=100", "model.latent_dim=5"], 2, tmp_path)
    x = torch.cat([b.x for b in fitted.data.batches("train", 500)]).flatten(1).double()
    assert len(x) == 1258
    direct = PCA((1, 8, 8), 5)
    direct.fit(x.mean(dim=0), torch.cov(x.T, correction=0))
    assert_close(fitted.model.mean, direct.mean, rtol=0, atol=1e-5)
    assert_close(fitted.model.scales, direct.scales, rtol=1e-4, atol=1e-5)
    projector, wanted = (m.axes @ m.axes.T for m in (fitted.model, direct))
    assert_close(projector, wanted, rtol=0, atol=1e-4)
    assert fitted.model.sample(3).shape == (3, 1, 8, 8)
    bounds = importance_bounds(fitted.model, [x[:50].float().view(-1, 1, 8, 8)], samples=3)
    assert_close(bounds.elbo, bounds.iwae, rtol=1e-3, atol=1e-2)


def test_draws_have_the_data_s_covariance_in_the_subspace():
    model, x = fitted_pca(2)
    z = model.encode(model.sample(50_000, rng=torch.Generator().manual_seed(0)))
    assert_close(torch.cov(z.T), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.03)


def test_constant_data_are_no_trouble(tmp_path):
    fitted = fit(["model=pca", "data=digits", "data.limit_train=1", "model.latent_dim=3"], 1, tmp_path)
    x = next(iter(fitted.data.batches("train"))).x
    assert_close(fitted.model.reconstruct(x), x, rtol=0, atol=1e-5)
    assert fitted.model.sample(3).isfinite().all()


def test_pca_mistakes(tmp_path):
    with pytest.raises(UserError, match="model.latent_dim must be from 1 to 1 for data of 2 numbers"):
        fit(["model=pca", "data=ring"], 1, tmp_path)
    with pytest.raises(UserError, match="at most 12288 numbers, got 49152"):
        PCA((3, 128, 128), 10)


# ----------------------------------------------------------------------------------------------------- the autoencoders


def test_a_linear_autoencoder_finds_the_principal_subspace(tmp_path):
    """Baldi & Hornik (1989): its error comes down to PCA's, and never below it on the training data."""
    overrides = ["model=autoencoder", "data=digits", "network=mlp", "network.hidden=[]", "likelihood.sigma=1"]
    overrides += ["model.latent_dim=2", "model.optimizer.lr=0.03", "data.batch_size=1258", "ema.decay=0"]
    fitted = fit(overrides, 300, tmp_path)
    x = torch.cat([b.x for b in fitted.data.batches("train", 2000)])
    best = PCA((1, 8, 8), 2).double()
    flat = x.flatten(1).double()
    best.fit(flat.mean(dim=0), torch.cov(flat.T, correction=0))
    errors = [(model.reconstruct(y) - y).square().flatten(1).sum(dim=1).mean() for model, y in
              ((best, x.double()), (fitted.model.double(), x.double()))]  # fmt: skip
    assert errors[0] <= errors[1] + 1e-9 < 1.02 * errors[0] + 1e-9


CHOICES = {
    "autoencoder": ["model=autoencoder", *DIGITS],
    "denoising": ["model=denoising", *DIGITS],
    "contractive": ["model=contractive", "model.code_dim=30", "data=digits"],
    "deep contractive": ["model=contractive", "model.autoencoder=${network.autoencoder}", "model.code_dim=5",
                         "network.activation=tanh", *DIGITS],
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_one_player_moves_everything(name, tmp_path):
    assert_moves([*CHOICES[name], "likelihood=gaussian", "likelihood.learned=true"], ["autoencoder"] * 2, 2, tmp_path)


@pytest.mark.parametrize("name", CHOICES)
def test_it_learns(name, tmp_path):
    """The squared error falls well below that of the mean image."""
    memory = Memory()
    overrides = [*CHOICES[name], "trainer.log_every_n_steps=10", "data.batch_size=64", "model.optimizer.lr=0.003"]
    fitted = fit(overrides, 200, tmp_path, trainer={"logger": [memory]})
    errors = list(memory.curves["train/squared_error"].values())
    assert errors[-1] < 0.6 * errors[0]
    x = next(iter(fitted.data.batches("val", 30))).x
    codes = fitted.model.encode(x)
    assert_close(fitted.model.decode(codes), fitted.model.reconstruct(x))
    assert codes.shape == (30, fitted.model.latent_dim)


# ------------------------------------------------------------------------------------------------------------ denoising


@pytest.mark.parametrize(
    ("corruption", "level"), [("gaussian", 0.4), ("masking", 0.25), ("salt_and_pepper", 0.3), ("masking", 0.0)]
)
def test_corruptions(corruption, level, tmp_path):
    model = fit(["model=denoising", *DIGITS, f"model.corruption={corruption}", f"model.level={level}"], 1, tmp_path)
    x = torch.full((400, 1, 8, 8), 0.5)
    noisy = model.model.corrupt(x, torch.Generator().manual_seed(0))
    changed = (noisy != x).float().mean().item()
    if corruption == "gaussian":
        assert abs((noisy - x).std() - level) < 0.01 and abs((noisy - x).mean()) < 0.01
    else:
        assert abs(changed - level) < 0.01
        low, high = ((noisy == end).float().mean() for end in (-1, 1))
        assert_close(high, low if corruption == "salt_and_pepper" else 0 * low, rtol=0, atol=0.02)


def test_what_it_moves_a_point_by_is_the_score(tmp_path):
    """Alain & Bengio (2014): r(x) - x = sigma^2 grad log p_sigma(x), of the ring's smoothed mixture, known here."""
    sigma = 0.5
    overrides = ["model=denoising", *RING, "likelihood=gaussian", "likelihood.sigma=1", "model.corruption=gaussian"]
    overrides += [f"model.level={sigma}", "model.optimizer.lr=0.005", "data.batch_size=256", "model.latent_dim=64"]
    fitted = fit([*overrides, "model.chain_steps=20"], 600, tmp_path)
    centres, std, *_ = fitted.data.modes
    x = next(iter(fitted.data.batches("val", 500))).x
    x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    variance = sigma**2 + std**2
    log_p = (-0.5 * (x[:, None] - centres).square().sum(dim=2) / variance).logsumexp(dim=1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    moved = fitted.model.reconstruct(x.detach()) - x.detach()
    error = (moved - sigma**2 * score).square().mean() / (sigma**2 * score).square().mean()
    assert error < 0.05, error
    drawn = fitted.model.sample(300, rng=torch.Generator().manual_seed(0))
    assert abs(drawn.norm(dim=1).mean() - 2) < 0.5  # near the ring


def test_denoising_mistakes(tmp_path):
    for override, words in (("corruption=blur", "one of gaussian"), ("level=1.5", "a share"), ("chain_steps=0", "1,")):
        with pytest.raises(UserError, match=words):
            fit(["model=denoising", *DIGITS, f"model.{override}"], 1, tmp_path)


# ---------------------------------------------------------------------------------------------------------- contractive


def test_the_penalty_in_closed_form_and_by_autograd():
    torch.manual_seed(0)
    network = TiedAutoencoder((2, 3), 5).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    by_hand = []
    for each in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: network.encode(v[None])[0], each)
        by_hand.append(jacobian.square().sum())
    assert_close(network.squared_jacobian(x), torch.stack(by_hand), rtol=1e-12, atol=0)
    assert_close(squared_jacobian(network.encode, x), torch.stack(by_hand), rtol=1e-12, atol=0)
    code = network.encode(x)
    assert_close(squared_jacobian_of_sigmoid_layer(code, network.encoder.weight), torch.stack(by_hand))
    gradients = [
        torch.autograd.grad(penalty.sum(), list(network.encoder.parameters()))
        for penalty in (network.squared_jacobian(x), squared_jacobian(network.encode, x))
    ]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_the_penalty_of_a_linear_map_is_its_squared_norm():
    layer = torch.nn.Linear(6, 3).double()
    found = squared_jacobian(layer, torch.randn(4, 6, dtype=torch.float64))
    assert_close(found, layer.weight.square().sum().expand(4))


def test_contraction_contracts(tmp_path):
    """A hundred times the weight: a smaller Jacobian; none: the plain autoencoder's loss."""
    overrides = ["model=contractive", "data=digits", "model.code_dim=30", "trainer.log_every_n_steps=1"]
    found = {}
    for weight in (0.0, 100.0):
        memory = Memory()
        fit(
            [*overrides, f"model.contraction_weight={weight}"], 60, tmp_path / str(weight), trainer={"logger": [memory]}
        )
        found[weight] = {name: list(values.values()) for name, values in memory.curves.items()}
    assert found[100.0]["train/contraction"][-1] < 0.7 * found[0.0]["train/contraction"][-1]
    assert_close(torch.tensor(found[0.0]["train/loss"]), torch.tensor(found[0.0]["train/recon"]))
    one = found[100.0]
    assert math.isclose(one["train/loss"][5], one["train/recon"][5] + 100 * one["train/contraction"][5], rel_tol=1e-5)


def test_contractive_mistakes(tmp_path):
    with pytest.raises(UserError, match="contraction_weight must be a number of at least 0"):
        fit(["model=contractive", "data=digits", "model.contraction_weight=-1"], 1, tmp_path)
    deep = ["model=contractive", "data=digits", "network=dcgan", "model.autoencoder=${network.autoencoder}"]
    with pytest.raises(UserError, match="does not couple samples"):
        fit(deep, 1, tmp_path)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("what", ["data.limit_train=1", "data.batch_size=1", "bf16"])
def test_extremes_train_without_nan(name, what, tmp_path):
    trainer = {"precision": "bf16-mixed"} if what == "bf16" else {}
    overrides = [] if what == "bf16" else [what]
    fitted = fit([*CHOICES[name], *overrides], 15, tmp_path, trainer=trainer)
    assert all(p.isfinite().all() for p in fitted.model.parameters())
