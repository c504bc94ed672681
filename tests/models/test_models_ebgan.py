"""EBGAN: pre-training, who moves, and what the generator's loss holds."""

import pytest
import torch
from torch.testing import assert_close

from genlab.losses.energy import pulling_away
from tests.models.helpers import Each, Memory, assert_moves, fit, moved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["data=ring", "network.hidden=[16]", "model.code_dim=8"]
BOTH = ["discriminator", "generator"]


@pytest.mark.parametrize("model", ["ebgan", "ebgan_pt"])
def test_each_update_moves_one_player_alone(model, tmp_path):
    """Two iterations of the autoencoder alone, then both players in turn."""
    overrides = [f"model={model}", *RING, "model.pretrain_steps=2"]
    assert_moves(overrides, ["discriminator"] * 2 + BOTH * 2, 4, tmp_path)


def test_resumed_in_the_middle_of_pre_training_it_goes_on_there(tmp_path):
    """The schedule is one of the iteration: 2 + 2 iterations are 4."""
    overrides = ["model=ebgan", *RING, "model.pretrain_steps=3"]
    whole = fit(overrides, 4, tmp_path / "whole").model
    fit(overrides, 2, tmp_path / "part")
    resumed = fit(overrides, 4, tmp_path / "rest", resume=tmp_path / "part" / "checkpoints" / "last.ckpt").model
    assert all(not moved(a, b) for a, b in zip(snapshot(whole).values(), snapshot(resumed).values(), strict=True))


def test_pre_training_gives_real_samples_a_low_energy(tmp_path):
    """It is an autoencoder's training: the error falls to a fifth, and the generator has not moved."""
    start = {}
    overrides = ["model=ebgan", "data=digits", "model.pretrain_steps=150", "data.batch_size=64"]
    each = Each(lambda model: float(model.watching.recorded["energy_real"]))
    fitted = fit(overrides, 150, tmp_path, [each], before=lambda model: start.update(snapshot(model)))
    assert each.seen[-1] < 0.2 * each.seen[0]
    assert not moved(start["generator"], snapshot(fitted.model)["generator"])


@pytest.mark.parametrize(("model", "weight"), [("ebgan", 0.0), ("ebgan_pt", 0.1)])
def test_the_generators_loss(model, weight, tmp_path):
    """D(G(z)) and, with a weight, f_PT of the codes of the fakes: recomputed at the same parameters and noise."""
    seen = {}

    def compare(model):
        with torch.no_grad():
            x_fake = model.generator(seen["z"])
            codes = model.discriminator.encode(x_fake)
            expected = (x_fake - model.discriminator(x_fake)).square().sum(dim=1).mean()
            return model.watching.recorded["g_loss"], expected + weight * pulling_away(codes)

    def listen(model):
        draw = model.noise
        model.noise = lambda *args: seen.update(z=draw(*args)) or seen["z"]

    overrides = [f"model={model}", *RING, "model.pretrain_steps=0", "model.g_optimizer.lr=0", "data.batch_size=16"]
    each = Each(compare)
    fit(overrides, 2, tmp_path, [each], before=listen)
    for found, expected in each.seen:
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_margin_holds_the_fakes_energy_up(tmp_path):
    """Against a frozen generator the autoencoder learns to spoil its samples up to the margin, and mends real ones."""
    memory = Memory()
    overrides = ["model=ebgan", "data=digits", "network.autoencoder.hidden=[64]", "network.generator.hidden=[32]"]
    overrides += ["model.g_optimizer.lr=0", "loss.m=40", "model.pretrain_steps=50", "data.batch_size=32"]
    fit([*overrides, "trainer.log_every_n_steps=200"], 400, tmp_path, trainer={"logger": [memory]})
    real, fake = (memory.curves[f"train/energy_{name}"][400] for name in ("real", "fake"))
    assert real < 12 and fake > 30, (real, fake)


def test_a_negative_schedule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pretrain_steps must be a whole number of at least 0"):
        fit(["model=ebgan", *RING, "model.pretrain_steps=-1"], 1, tmp_path)
