"""alpha-GAN and its kin: who moves on what, to the paper's letter, and how the choices lead from one to the other."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.runs.running import build
from tests.models.helpers import Losses, assert_moves, config, fit, log_d, log_not_d

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["data=digits", "network=mlp", "network.hidden=[12]", "model.latent_dim=3"]
MODEL = ["model=alpha_gan", *SMALL, "model.latent_discriminator.hidden=[6]"]
VGH = ["model=vgh", "posterior=deterministic", *SMALL, "model.latent_discriminator.hidden=[6]"]
PLAYERS = ["encoder", "generator", "discriminator", "latent_discriminator"]


def ratio(logits):
    """R = -log D + log(1 - D), as the paper writes it."""
    d = logits.sigmoid()
    return (-d.log() + (1 - d).log()).mean()


def l1(m, x):
    return 40 * (x - m.generator(m.encoder(x))).abs().mean()


def encoder_loss(m, x, draws):
    return l1(m, x) + ratio(m.latent_discriminator(m.encoder(x)))


def c_loss(m, x, draws):
    return -log_d(m.latent_discriminator(draws[1])) - log_not_d(m.latent_discriminator(m.encoder(x)))


def test_each_player_moves_alone_and_all_of_it(tmp_path):
    assert_moves(MODEL, PLAYERS * 3, 3, tmp_path)


def test_the_losses_are_those_of_algorithm_1(tmp_path):
    def g_loss(m, x, draws):
        codes = m.encoder(x).detach()
        recon = 40 * (x - m.generator(codes)).abs().mean()
        return recon + ratio(m.discriminator(m.generator(codes))) + ratio(m.discriminator(m.generator(draws[1])))

    def d_loss(m, x, draws):
        fakes = [m.generator(m.encoder(x)).detach(), m.generator(draws[1]).detach()]
        return -log_d(m.discriminator(x)) - sum(log_not_d(m.discriminator(fake)) for fake in fakes)

    losses = Losses([encoder_loss, g_loss, d_loss, c_loss])
    fit(MODEL, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS


def test_vgh_shows_reconstructions_alone(tmp_path):
    def g_loss(m, x, draws):
        return l1(m, x) + ratio(m.discriminator(m.generator(m.encoder(x))))

    def d_loss(m, x, draws):
        return -log_d(m.discriminator(x)) - log_not_d(m.discriminator(m.generator(m.encoder(x))))

    losses = Losses([encoder_loss, g_loss, d_loss, c_loss])
    fit(VGH, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS


def test_vgh_with_both_fakes_is_alpha_gan_to_the_last_bit(tmp_path):
    """But for the encoder's noise, which VGH++ has by default."""
    runs = [fit(MODEL, 3, tmp_path / "a"), fit(["model=vgh_plus", *VGH[1:]], 3, tmp_path / "b")]
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_latent_part_may_be_the_vaes(tmp_path):
    """Three players, and an encoder that lowers lambda |x - x^| + KL(q(z | x) || N(0, I)) on drawn codes."""

    def code(m, x, draws):
        mu, logvar = m.encoder(x).chunk(2, dim=1)
        return mu, logvar, mu + (logvar / 2).exp() * draws[0]

    def encoder(m, x, draws):
        mu, logvar, z = code(m, x, draws)
        return 40 * (x - m.generator(z)).abs().mean() + kl_standard_normal(mu, logvar).mean()

    def g_loss(m, x, draws):
        x_recon = m.generator(code(m, x, draws)[2])
        fooled = ratio(m.discriminator(x_recon)) + ratio(m.discriminator(m.generator(draws[1])))
        return 40 * (x - x_recon).abs().mean() + fooled

    def d_loss(m, x, draws):
        fakes = [m.generator(code(m, x, draws)[2]), m.generator(draws[1])]
        return -log_d(m.discriminator(x)) - sum(log_not_d(m.discriminator(fake)) for fake in fakes)

    losses = Losses([encoder, g_loss, d_loss])
    overrides = [*MODEL, "model.latent=kl", "posterior=diagonal"]
    fitted = fit(overrides, 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == PLAYERS[:3] == list(fitted.model.players)


def test_the_ratio_is_minus_the_logit():
    logits = torch.linspace(-8, 8, 33, dtype=torch.float64)
    loss = build(config(MODEL)).model.loss
    assert_close(loss.generator(logits), ratio(logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.latent=kl"], "posterior=diagonal"),
        (["model.latent=free"], "model.latent must be one of"),
        (["model.fakes=[]"], "model.fakes must be one or both"),
        (["model.reconstruction_weight=-1"], "at least 0"),
    ],
)
def test_what_cannot_be_is_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        build(config([*MODEL, *overrides]))


def test_a_vae_wants_a_posterior_with_a_density():
    with pytest.raises(UserError, match="no density"):
        build(config(["model=vae", *SMALL, "posterior=deterministic"]))


def test_codes_come_near_the_prior(tmp_path):
    """Without C's part codes go where they like; with it their mean and variance near those of N(0, 1)."""
    overrides = ["model=alpha_gan", "data=digits", "network=mlp", "network.hidden=[64]", "model.latent_dim=2"]
    overrides += ["model.latent_discriminator.hidden=[64]", "data.batch_size=64", "ema.decay=0"]
    overrides += [f"model.{p}_optimizer.lr=0.001" for p in "egdc"]
    fitted = fit(overrides, 400, tmp_path)
    codes = fitted.model.encode(torch.cat([b.x for b in fitted.data.batches("train", 200)]))
    assert codes.mean(dim=0).abs().max() < 0.5, codes.mean(dim=0)
    assert (codes.var(dim=0) - 1).abs().max() < 0.6, codes.var(dim=0)
