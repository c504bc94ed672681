"""Mode-regularised GANs: who moves when on what, and that a collapsed generator finds the other modes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from genlab.models.mdgan import distance
from tests.models.helpers import Losses, assert_moves, config, fit, log_d, log_not_d, moved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["data=ring", "network.hidden=[16]"]
STEP = ["manifold_discriminator", "generator", "diffusion_discriminator", "generator"]


def test_reg_gan_moves_one_player_at_a_time(tmp_path):
    assert_moves(["model=reg_gan", *RING], ["discriminator", "generator"] * 3, 3, tmp_path)


def test_mdgan_moves_one_player_at_a_time(tmp_path):
    """Generator and encoder in the manifold step, the generator without it in the diffusion step."""
    from tests.models.helpers import Updates

    updates = Updates()
    fitted = fit(["model=mdgan", *RING], 3, tmp_path, [updates])
    assert [who for who, _ in updates.steps] == 3 * STEP
    own = {player: set(values) for player, values in snapshot(fitted.model).items()}
    for i, (who, found) in enumerate(updates.steps):
        assert not {player for player, names in found.items() if names and player != who}
        still = own[who] - found[who]
        assert all(name.startswith("encoder") for name in still)
        assert bool(still) == (i % 4 == 3)
    assert not any(names for found in updates.strays for names in found.values())


def test_the_distance_is_a_mean_over_dimensions():
    x = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(distance(*x), (x[0] - x[1]).square().sum() / 12)


def test_reg_gans_losses(tmp_path):
    def g_loss(m, x, draws):
        again = m.generator(m.encoder(x))
        d = (x - again).square().mean()
        return -log_d(m.discriminator(m.generator(draws[1]))) + 0.2 * d - 0.4 * log_d(m.discriminator(again))

    losses = Losses(
        [
            lambda m, x, draws: -log_d(m.discriminator(x)) - log_not_d(m.discriminator(m.generator(draws[0]).detach())),
            g_loss,
        ]
    )
    fit(["model=reg_gan", *RING], 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == ["discriminator", "generator"]


def test_mdgans_losses(tmp_path):
    def again(m, x):
        return m.generator(m.encoder(x))

    losses = Losses(
        [
            lambda m, x, _: (
                -log_d(m.manifold_discriminator(x)) - log_not_d(m.manifold_discriminator(again(m, x).detach()))
            ),
            lambda m, x, _: (x - again(m, x)).square().mean() - 0.01 * log_d(m.manifold_discriminator(again(m, x))),
            lambda m, x, draws: (
                -log_d(m.diffusion_discriminator(again(m, x).detach()))
                - log_not_d(m.diffusion_discriminator(m.generator(draws[0]).detach()))
            ),
            lambda m, x, draws: -log_d(m.diffusion_discriminator(m.generator(draws[1]))),
        ]
    )
    fit(["model=mdgan", *RING], 1, tmp_path, [losses], trainer={"precision": "64-true"})
    assert losses.checked == STEP


def test_where_the_encoder_inverts_the_generator_nothing_is_left_of_the_manifold_step():
    """G(E(x)) = x: the distance is 0, and the best D_1 pays log 4."""
    x = torch.randn(7, 2, dtype=torch.float64)
    assert distance(x, x) == 0
    logits = torch.zeros(7, dtype=torch.float64)
    assert_close(F.softplus(-logits).mean() + F.softplus(logits).mean(), torch.tensor(math.log(4), dtype=torch.float64))


@pytest.mark.parametrize("model", ["reg_gan", "mdgan"])
def test_every_mode_is_reached_through_the_encoder(model, tmp_path):
    """After a short training G(E(x)) lies near x for samples of all eight modes."""
    overrides = [f"model={model}", "data=ring", "network.hidden=[64]", "data.batch_size=64", "ema.decay=0"]
    overrides += ["model.distance_weight=10"] if model == "reg_gan" else []
    fitted = fit(overrides, 250, tmp_path)
    batch = next(iter(fitted.data.batches("test", 400)))
    error = (fitted.model.reconstruct(batch.x) - batch.x).norm(dim=1)
    by_mode = torch.stack([error[batch.y == mode].mean() for mode in range(8)])
    assert by_mode.max() < 0.5, by_mode  # neighbours are 1.53 apart
    assert_close(fitted.model.decode(fitted.model.encode(batch.x)), fitted.model.reconstruct(batch.x))


@pytest.mark.parametrize("model", ["reg_gan", "mdgan"])
def test_the_encoder_must_give_latents(model):
    from genlab.runs.running import build

    with pytest.raises(ValueError, match="must give 16 numbers, not 3"):
        build(config([f"model={model}", *RING, "model.encoder_features=3"]))


def test_the_two_discriminators_start_apart(tmp_path):
    """They are built twice from one config, and not one module under two names."""
    model = fit(["model=mdgan", *RING, "model.d_optimizer.lr=0", "model.g_optimizer.lr=0"], 1, tmp_path).model
    names = {
        name: dict(model.get_submodule(f"{name}_discriminator").named_parameters())
        for name in ("manifold", "diffusion")
    }
    assert moved(names["manifold"], names["diffusion"])
