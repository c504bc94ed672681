"""The projection GAN: the order of its updates, the classes of its fakes, spectral norm everywhere, and no drift."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.networks.told import NormTold, Projection
from genlab.runs.running import build
from tests.models.helpers import SGD, Batches, Each, assert_moves, config, fit
from tests.models.signs import SIGNS, PaperLosses

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["model=projection_gan", "data=digits", "network.generator.hidden=[16,16]", "model.latent_dim=4"]
DIGITS = [*SMALL, "network.critic.hidden=[16,8]", "ema.decay=0"]
ORDER = ["generator", *["discriminator"] * 5]


@pytest.mark.parametrize(
    "overrides", [DIGITS, ["model=projection_gan", "data=ring", "network.hidden=[16]"],
                  ["model=projection_gan", "network=resnet", "data.image_size=16", "network.width=4"]]
)  # fmt: skip
def test_each_update_moves_its_own_player_alone(overrides, tmp_path):
    """The generator first, as in the authors' code. While all hinges are open, D's last bias is in no gradient."""
    assert_moves(overrides, ORDER * 2, 2, tmp_path, ["discriminator.network.head.bias"])


def test_who_sees_which_samples_with_which_classes(tmp_path):
    """Two batches of fakes for the generator, one for each discriminator update; real samples have their classes."""
    calls, batches = [], Batches()

    def spy(model):
        for name in ("generator", "discriminator"):
            network = model.get_submodule(name)
            network.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, *args)))

    fit(DIGITS, 1, tmp_path, [batches], spy)
    (batch,) = batches.seen
    assert len(batch) == 5 * 8
    assert [name for name, *_ in calls] == ["generator", "discriminator"] + 5 * ["generator", *["discriminator"] * 2]
    (_, z, told), (_, _, same) = calls[:2]
    assert len(z) == 16 and same is told
    drawn = [told["y"]]
    for part, start in zip(batch.chunk(5), range(2, len(calls), 3), strict=True):
        (_, z, told), (_, x_real, own), (_, x_fake, same) = calls[start : start + 3]
        assert torch.equal(x_real, part.x) and torch.equal(own["y"], part.y)
        assert len(z) == len(x_fake) == 8 and same is told and not x_fake.requires_grad
        drawn.append(told["y"])
    assert not any(torch.equal(one, two) for one, two in zip(drawn[1:], drawn[2:], strict=False))
    assert not torch.equal(torch.cat(drawn[1:]), batch.y)


def test_classes_of_fakes_are_drawn_evenly(tmp_path):
    model = fit(DIGITS, 1, tmp_path).model
    with torch.no_grad():
        x, told = model.fakes_of_any_class(6000)
    counts = told["y"].bincount()
    assert len(x) == 6000 and len(counts) == 10
    assert ((counts - 600).abs() < 120).all()  # five standard deviations


class Hinges(PaperLosses):
    """The hinge losses, which need the part of the batch and the fakes of each discriminator update."""

    def compare(self, model, player):
        if player == "discriminator":
            whole, number = self.batch, self.checked.count("discriminator") % 5
            self.batch = whole.chunk(5)[number]
            super().compare(model, player)
            self.batch = whole
        else:
            super().compare(model, player)


def test_each_gradient_is_that_of_the_hinge(tmp_path):
    """Without norms, whose statistics and power iterations a second look would move."""

    def d_loss(m, batch, z, told):
        real, fake = m.discriminator(batch.x, batch.only(["y"])), m.discriminator(m.generator(z, told), told)
        return (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()

    def g_loss(m, batch, z, told):
        return -m.discriminator(m.generator(z, told), told).mean()

    expected = Hinges({"discriminator": d_loss, "generator": g_loss})
    plain = ["network=mlp", "model.discriminator=${network.critic}", "network.hidden=[16]"]
    model = ["model=projection_gan", "data=digits", "model.latent_dim=4"]
    fit([*model, *plain], 2, tmp_path, [expected], trainer={"precision": "64-true"})
    assert expected.checked == ORDER * 2


def test_spectral_norm_is_in_every_layer_of_the_discriminator(tmp_path):
    """The embedding of the classes included; the generator's norms are told, but for the last."""
    model = fit(DIGITS, 1, tmp_path).model
    assert isinstance(model.discriminator, Projection) and isinstance(model.generator, NormTold)
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == 4 and all(is_parametrized(layer, "weight") for layer in layers)
    assert model.discriminator.projection in layers
    x, told = torch.randn(8, 1, 8, 8), Batch({"y": torch.arange(8)})
    for _ in range(100):
        model.discriminator(x, told)
    largest = torch.linalg.matrix_norm(model.discriminator.projection.weight.detach(), 2)
    assert_close(largest, torch.ones(()), rtol=0, atol=1e-3)
    norms = [m for m in model.generator.network.modules() if isinstance(m, nn.BatchNorm1d)]
    films = [m.norm for m in model.generator.modules() if hasattr(m, "film")]
    assert len(norms) == 2 and len(films) == 1 and films[0] is norms[0]


def test_the_learning_rates_fall_to_zero(tmp_path):
    rates = Each(lambda model: [o.param_groups[0]["lr"] for o in model.trainer.optimizers])
    fit(DIGITS, 4, tmp_path, [rates])
    assert_close(torch.tensor(rates.seen) / 2e-4, torch.tensor([[1.0], [0.75], [0.5], [0.25]]).expand(4, 2))


@pytest.mark.parametrize(("theta", "after"), [(1.0, 1.0), (1.5, 1.45), (0.5, 0.55)])
def test_the_generator_goes_to_the_data_and_stays_there(theta, after, tmp_path):
    """Against the best discriminator of `Signed(theta)`; where AC-GAN's leaves the data, this one does not."""
    toy = {
        "_target_": "genlab.models.projection_gan.ProjectionGAN",
        "generator": {"_target_": "tests.models.signs.Signed", "theta": theta},
        "discriminator": {"_target_": "tests.models.signs.Ratio", "t": theta},
        "loss": {"_target_": "genlab.losses.adversarial.Hinge"},
        "latent_dim": 1,
        "classes": 2,
        "n_critic": 1,
        "generator_batches": 2,
        "given": ["y"],
        "g_optimizer": SGD,
        "d_optimizer": {**SGD, "lr": 0.0},
    }
    fitted = fit(["data=ring"], 1, tmp_path, trainer={"precision": "64-true"}, model=toy, data=SIGNS)
    assert_close(fitted.model.generator.theta.item(), after, rtol=0, atol=1e-9)


def test_refusals():
    model = build(config(DIGITS)).model
    model.given = ("y", "caption")
    with pytest.raises(UserError, match=r"^ProjectionGAN draws the classes of its fakes, .*model=cgan cond"):
        model.initialise(iter(()))
    for key in ("n_critic", "generator_batches"):
        with pytest.raises(UserError, match=f"model.{key} must be at least 1, got 0"):
            build(config([*DIGITS, f"model.{key}=0"]))
