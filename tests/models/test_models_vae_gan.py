"""VAE/GAN: who moves on what, to the paper's letter, and what is left of it at the ends of its weights."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.networks import dcgan, mlp, resnet
from genlab.runs.running import build
from tests.models.helpers import Losses, assert_moves, config, fit, log_d, log_not_d, moved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ["model=vae_gan", "data=digits", "network=mlp", "network.hidden=[12,8]", "model.latent_dim=3"]
MODEL += ["model.standardise=false", "model.gamma=0.1"]  # the paper's letter
PLAYERS = ["encoder", "generator", "discriminator"]


def parts(m, x, draws, layer=2):
    """Fakes and the learned similarity, from the first draws of an iteration: eps, then z_p."""
    q = m.posterior(x)
    x_recon, x_prior = m.generator(q.mu + (q.logvar / 2).exp() * draws[0]), m.generator(draws[1])
    seen = [m.discriminator.trunk[: 2 * layer - 1](one.flatten(1)) for one in (x, x_recon)]
    return q, x_recon, x_prior, 0.5 * (seen[0] - seen[1]).square().sum(dim=1).mean()


def encoder_loss(m, x, draws):
    q, _, _, recon = parts(m, x, draws)
    return kl_standard_normal(q.mu, q.logvar).mean() + recon


def decoder_loss(m, x, draws):
    _, x_recon, x_prior, recon = parts(m, x, draws)
    return 0.1 * recon - log_d(m.discriminator(x_recon)) - log_d(m.discriminator(x_prior))


def discriminator_loss(m, x, draws):
    _, x_recon, x_prior, _ = parts(m, x, draws)
    fakes = log_not_d(m.discriminator(x_recon)) + log_not_d(m.discriminator(x_prior))
    return -log_d(m.discriminator(x)) - fakes


def test_each_player_moves_alone_and_all_of_it(tmp_path):
    assert_moves(MODEL, PLAYERS * 3, 3, tmp_path)


def test_the_gradients_are_those_of_algorithm_1(tmp_path):
    """All at the same parameters: the encoder's from L_prior + L_llike, the decoder's from gamma L_llike - L_GAN."""
    losses = Losses([encoder_loss, decoder_loss, discriminator_loss], together=True)
    fit(MODEL, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS


def test_the_minimax_decoder_lowers_what_the_discriminator_raises(tmp_path):
    def minimax(m, x, draws):
        return 0.1 * parts(m, x, draws)[3] - discriminator_loss(m, x, draws)

    losses = Losses([encoder_loss, minimax, discriminator_loss], together=True)
    fit([*MODEL, "loss=minimax"], 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS


def test_the_layer_and_the_fakes_are_choices(tmp_path):
    def encoder(m, x, draws):
        q, _, _, recon = parts(m, x, draws, layer=1)
        return kl_standard_normal(q.mu, q.logvar).mean() + recon

    def decoder(m, x, draws):
        _, _, x_prior, recon = parts(m, x, draws, layer=1)
        return 0.5 * recon - log_d(m.discriminator(x_prior))

    def discriminator(m, x, draws):
        return -log_d(m.discriminator(x)) - log_not_d(m.discriminator(parts(m, x, draws)[2]))

    losses = Losses([encoder, decoder, discriminator], together=True)
    overrides = [*MODEL, "model.feature_layer=1", "model.fakes=[samples]", "model.gamma=0.5"]
    fit(overrides, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS


def test_without_the_game_it_is_a_vae_whose_likelihood_is_learned(tmp_path):
    """The paper's VAE_Dis_l: encoder and decoder minimise one objective, the bound in the features of the layer."""
    losses = Losses([encoder_loss, encoder_loss, discriminator_loss], together=True)
    overrides = [*MODEL, "model.gamma=1", "model.adversarial_weight=0"]
    fit(overrides, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS


def test_standardised_features_have_no_scale(tmp_path):
    """L_llike in units of their deviation over the batch: a discriminator of other weights measures alike."""
    model = build(config([*MODEL, "model.standardise=true", "model.feature_sigma=0.5"])).model.double()
    x, other = torch.randn(2, 50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = model.dissimilarity(x, other)
    assert_close(model.dissimilarity(7 * x, 7 * other), shift)
    spread = x.var(dim=0, correction=0).mean()
    assert_close(shift, 0.5 * ((x - other).square().sum(dim=1).mean() / (0.25 * spread)))
    assert model.dissimilarity(0 * x, 0 * x) == 0
    fit([*MODEL, "model.standardise=true"], 3, tmp_path)


def test_its_similarity_is_that_of_a_gaussian_where_the_layer_is_the_image(tmp_path):
    """Dis_l = identity: a Gaussian VAE with sigma = 1, up to the constant."""
    model = build(config(MODEL)).model.double()
    first = model.discriminator.trunk[0]
    first.weight.data = torch.eye(64).double()[: len(first.weight)]
    first.bias.data.zero_()
    x, other = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    width = len(first.weight)
    seen = [model.discriminator.until(one, 1) for one in (x, other)]
    gaussian = torch.distributions.Normal(other.flatten(1)[:, :width], 1.0)
    constant = gaussian.log_prob(gaussian.mean).sum(dim=1).mean()
    expected = constant - gaussian.log_prob(x.flatten(1)[:, :width]).sum(dim=1).mean()
    assert_close(model.dissimilarity(*seen), expected)


@pytest.mark.parametrize(
    ("discriminator", "layers"),
    [
        (mlp.Discriminator((1, 16, 16), [6, 5]), 2),
        (dcgan.Discriminator((1, 16, 16), width=4), 2),
        (resnet.Discriminator((1, 16, 16), width=4), 3),
    ],
)
def test_a_discriminator_goes_on_from_where_it_was_stopped(discriminator, layers):
    discriminator.eval()
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for layer in (*range(1, layers + 1), -1, -layers):
        assert_close(discriminator.beyond(discriminator.until(x, layer), layer), discriminator(x))
    for layer in (0, layers + 1, -layers - 1):
        with pytest.raises(UserError, match=rf"has {layers} layers before its head.*got {layer}"):
            discriminator.check_layer(layer)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.fakes=[]", "model.fakes must be one or both"),
        ("model.fakes=[noise]", "model.fakes must be one or both"),
        ("model.gamma=-1", "at least 0"),
        ("model.feature_sigma=0", "positive"),
        ("model.feature_layer=7", "feature_layer"),
    ],
)
def test_what_cannot_be_is_refused(override, sentence):
    with pytest.raises(UserError, match=sentence):
        build(config([*MODEL, override]))


def test_with_the_discriminator_at_rest_the_autoencoder_learns(tmp_path):
    """gamma alone drives the decoder: images come back nearer, in the features and in pixels."""
    overrides = [*MODEL, "model.gamma=1", "model.adversarial_weight=0", "model.d_optimizer.lr=0", "network.hidden=[64]"]
    overrides += ["data.batch_size=64", "ema.decay=0", "model.e_optimizer.lr=0.002", "model.g_optimizer.lr=0.002"]
    errors = []
    for steps in (1, 300):
        fitted = fit(overrides, steps, tmp_path / str(steps))
        x = next(iter(fitted.data.batches("test", 200))).x
        errors.append((fitted.model.reconstruct(x) - x).square().mean())
    assert errors[1] < 0.6 * errors[0]
    before = snapshot(fitted.model)
    assert not moved(before["discriminator"], snapshot(fitted.model)["discriminator"])
