"""The swapping autoencoder: swaps, crops and modulation in closed form, who moves on what, and that swaps mix."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.losses.adversarial import NonSaturating
from genlab.models.swapping_autoencoder import SwappingAutoencoder, swapped
from genlab.networks.dcgan import Discriminator
from genlab.networks.swapping import Encoder, Generator, ModulatedConv, PatchDiscriminator, random_crops
from tests.cli.helpers import assert_identical
from tests.models.helpers import assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["model=swapping_autoencoder", "data=digits", "network=mlp", "network.hidden=[16]", "model.encoder.width=4"]
SMALL += ["model.crops=3", "model.patch_size=4", "model.patch_discriminator.width=2", "model.r1_every=2"]
SHAPE = (2, 8, 16)  # all unequal: an axis taken for another shows


def uniform(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)


def model(**changes):
    torch.manual_seed(0)
    arguments = {
        "encoder": Encoder(SHAPE, 3, 5, 4, 2),
        "generator": Generator(SHAPE, 3, 5, 4, 2),
        "discriminator": Discriminator(SHAPE, 4, "none"),
        "patch_discriminator": PatchDiscriminator(SHAPE, 4, 2, 6),
        "loss": NonSaturating(),
        "patch_size": 4,
        "crops": 3,
        "crop_scale": [0.25, 0.5],
        "l1_weight": 1.0,
        "rec_weight": 0.5,
        "mix_weight": 1.0,
        "patch_weight": 1.0,
        "r1_gamma": 10.0,
        "patch_r1_gamma": 1.0,
        "r1_every": 16,
    }
    return SwappingAutoencoder(**{**arguments, **changes}).double()


def images(n=6, seed=1):
    return 2 * uniform(seed)(n, *SHAPE) - 1


# ----------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_a_swap_undoes_itself(n):
    x = torch.arange(3.0 * n).view(n, 3)
    assert torch.equal(swapped(swapped(x)), x)
    moved = (swapped(x) != x).any(dim=1)
    assert moved[: n // 2 * 2].all() and not moved[n // 2 * 2 :].any()
    assert swapped(torch.arange(5)).tolist() == [1, 0, 3, 2, 4]


def test_the_mix_of_an_image_with_itself_is_its_reconstruction():
    swapping = model()
    rec, mix = swapping.both(images(3).repeat_interleave(2, dim=0))
    assert_close(rec, mix)
    rec, mix = swapping.both(images())
    assert (rec - mix).abs().max() > 1e-3
    alone = swapping.both(images(5))
    assert_close(alone[0][4], alone[1][4])  # who has no neighbour


def test_a_mix_has_the_neighbours_structure_and_ones_own_texture():
    swapping, x = model(), images(4)
    structure, texture = swapping.encoder(x)
    rec, mix = swapping.both(x)
    assert_close(mix[2], swapping.generator(structure[3:4], texture[2:3])[0])
    assert_close(rec, swapping.reconstruct(x))
    assert_close(swapping.translate(x), swapped(mix))
    assert_close(swapping.translate(x[:2], x[2:])[1], swapping.generator(structure[1:2], texture[3:4])[0])
    assert_close(swapping.translate(x, x), rec)


def test_codes_are_of_unit_length_and_flat_latents_are_codes():
    swapping, x = model(), images()
    structure, texture = swapping.encoder(x)
    assert structure.shape == (6, 3, 2, 4) and texture.shape == (6, 5)
    assert_close(structure.norm(dim=1), torch.ones(6, 2, 4).double())
    assert_close(texture.norm(dim=1), torch.ones(6).double())
    z = swapping.encode(x)
    assert z.shape == (6, swapping.latent_dim)
    assert_close(swapping.decode(z), swapping.reconstruct(x))
    assert_close(swapping.decode(7 * z), swapping.reconstruct(x))
    assert not swapping.can("sample") and swapping.can("translate")


def test_modulation_scales_each_samples_weights():
    """Against StyleGAN2's Eq. 1 and 3: w' = s w, w'' = w' / |w'|, a convolution of each sample by its own."""
    torch.manual_seed(0)
    layer, x, style = ModulatedConv(3, 4, 5).double(), images(2)[:, :1].repeat(1, 3, 1, 1), torch.randn(2, 5).double()
    with torch.no_grad():
        layer.bias.normal_()
    for i in range(2):
        weight = layer.weight * layer.style(style[i])[None, :, None, None]
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        assert_close(layer(x, style)[i : i + 1], F.conv2d(x[i : i + 1], weight, layer.bias, padding=1))


def test_crops_are_what_grid_sample_gives():
    """Its gradient too, which on a GPU has no deterministic implementation. Some crops reach the edges."""
    draws = torch.rand(5, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws[0], draws[1] = 0.0, 1.0
    x = torch.randn(5, 2, 12, 9, dtype=torch.float64, requires_grad=True)
    crops = random_crops(x, 6, 5, (0.1, 1.0), lambda *_: draws)
    side = (0.1 + 0.9 * draws[..., 0]) * 9
    places = [
        2 * ((length - side) * share + side * step) / length - 1
        for length, share in ((9, draws[..., 1]), (12, draws[..., 2]))
        for step in ((torch.arange(5, dtype=torch.float64) + 0.5) / 5)
    ]
    across, down = torch.stack(places[:5], dim=2), torch.stack(places[5:], dim=2)
    grid = torch.stack([across[:, :, None].expand(-1, -1, 5, -1), down[..., None].expand(-1, -1, -1, 5)], dim=-1)
    wanted = F.grid_sample(x, grid.flatten(1, 2), padding_mode="border", align_corners=False)
    wanted = wanted.unflatten(2, (6, 5)).transpose(1, 2)
    assert_close(crops, wanted)
    weight = torch.randn_like(crops)
    assert_close(*(torch.autograd.grad((each * weight).sum(), x)[0] for each in (crops, wanted)))


def test_crops_lie_in_the_image_and_are_of_the_sizes_asked_for():
    """Of an image whose values are its own coordinates: what a crop spans is read from it."""
    height, width = 20, 30
    rows, columns = torch.arange(height).double() + 0.5, torch.arange(width).double() + 0.5
    x = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)]).expand(40, -1, -1, -1)
    crops = random_crops(x, 7, 4, (0.25, 0.5), uniform())
    assert crops.shape == (40, 7, 2, 4, 4)
    down, across = crops[:, :, 0, :, 0], crops[:, :, 1, 0, :]
    assert_close(crops[:, :, 0], down.unsqueeze(3).expand(-1, -1, -1, 4))
    assert_close(crops[:, :, 1], across.unsqueeze(2).expand(-1, -1, 4, -1))
    for place, end in ((down, height), (across, width)):
        step = (place[..., 2] - place[..., 1]) * 4  # the crop's side
        assert step.min() > 0.25 * height - 1e-9 and step.max() < 0.5 * height + 1e-9
        assert step.min() < 0.27 * height and step.max() > 0.48 * height
        first = place[..., 1] - 1.5 / 4 * step
        assert first.min() > -1e-9 and (first + step).max() < end + 1e-9
        assert first.min() < 1 and (first + step).max() > end - 1
    assert (crops[0, 0] - crops[0, 1]).abs().max() > 0.1 and (crops[0, 0] - crops[1, 0]).abs().max() > 0.1


def test_a_crop_of_the_whole_image_is_the_image():
    x = torch.rand(3, 2, 8, 8).double()
    assert_close(random_crops(x, 2, 8, (1.0, 1.0), uniform()), x.unsqueeze(1).expand(-1, 2, -1, -1, -1))


def test_the_patch_discriminator_compares_with_the_mean_of_the_references():
    torch.manual_seed(0)
    judge = PatchDiscriminator(SHAPE, 4, 2, 6).double()
    reference, crops = uniform(2)(3, 5, 2, 4, 4), uniform(3)(3, 4, 2, 4, 4)
    logits = judge(reference, crops)
    assert logits.shape == (3, 4)
    mean = torch.stack([judge.trunk(reference[:, i]) for i in range(5)]).mean(dim=0)
    assert_close(logits[:, 2], judge.compare(torch.cat([mean, judge.trunk(crops[:, 2])], dim=1))[:, 0])
    assert_close(judge(reference.flip(1), crops), logits)


def test_penalties_by_hand():
    """On linear discriminators: gamma / 2 |w|^2, and gamma / 4 of both slopes of the sum over crops."""

    class Linear(nn.Module):
        def forward(self, x):
            return 3 * x.flatten(1).sum(dim=1)

    class LinearPair(PatchDiscriminator):
        def forward(self, reference, crops):
            mean = reference.mean(dim=1).flatten(1).sum(dim=1, keepdim=True)
            return 5 * mean + 2 * crops.flatten(2).sum(dim=2)

    swapping = model(discriminator=Linear(), patch_discriminator=LinearPair(SHAPE, 4, 2, 6))
    swapping.stream.rng = torch.Generator()
    image, patch = swapping.penalty(images())
    assert_close(image, torch.tensor(10 / 2 * 9.0 * 2 * 8 * 16).double())
    numbers = 3 * 2 * 4 * 4  # of all crops of an image; the sum over crops counts the reference three times
    assert_close(patch, torch.tensor(1 / 4 * (5.0**2 + 2.0**2) * numbers).double())


# ------------------------------------------------------------------------------------------------------------- training


def test_each_player_moves_alone(tmp_path):
    """Bit for bit; the penalty's own update comes in every second iteration, and moves what logits' slopes know."""
    order = ["discriminators", "generator", "discriminators", "discriminators", "generator"]
    fitted = assert_moves(
        [*SMALL, "model.r1_gamma=0", "model.patch_r1_gamma=0"], ["discriminators", "generator"] * 3, 3, tmp_path
    )
    assert fitted.model.batches_per_step == 2
    from tests.models.helpers import Updates

    updates = Updates()
    fit(SMALL, 2, tmp_path / "r1", [updates])
    assert [who for who, _ in updates.steps] == order
    for who, found in updates.steps:
        assert found[who] and not {player for player, names in found.items() if names and player != who}


class Gradients(Callback):
    """Compares each update's gradients with those of the code's losses, written out, on the same draws."""

    def on_train_start(self, trainer, pl_module):
        self.draws, draw, self.checked = [], pl_module.stream.draw, []
        pl_module.stream.draw = lambda *args: self.draws.append(draw(*args)) or self.draws[-1]
        for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.x = batch.x.chunk(2)

    def loss(self, m, update):
        x = self.x[update]
        structure, texture = m.encoder(x)
        rec, mix = m.generator(structure, texture), m.generator(structure[[1, 0, 3, 2, 5, 4, 7, 6]], texture)

        def crops(images, number):
            return random_crops(images, 3, 4, (0.25, 0.5), lambda *_: self.draws[number])

        judge = m.patch_discriminator
        if update == 0:
            rec, mix = rec.detach(), mix.detach()
            reference = crops(x, 0)
            loss = F.softplus(-m.discriminator(x)).mean()
            loss = loss + 0.5 * F.softplus(m.discriminator(rec)).mean() + 0.5 * F.softplus(m.discriminator(mix)).mean()
            loss = loss + F.softplus(-judge(reference, crops(x, 1))).mean()
            return loss + F.softplus(judge(reference, crops(mix, 2))).mean()
        reference = judge.reference(crops(x, 3)).detach()
        loss = (rec - x).abs().mean() + 0.5 * F.softplus(-m.discriminator(rec)).mean()
        loss = loss + F.softplus(-m.discriminator(mix)).mean()
        return loss + F.softplus(-judge.logits(reference, crops(mix, 4))).mean()

    def compare(self, model, player):
        with torch.enable_grad():
            wanted = torch.autograd.grad(self.loss(model, len(self.checked)), model.players[player])
        for p, theirs in zip(model.players[player], wanted, strict=True):
            assert_close(p.grad, theirs, rtol=1e-9, atol=1e-12)
        self.checked.append(player)


def test_gradients_are_those_of_the_codes_losses(tmp_path):
    watched = Gradients()
    fit(SMALL, 1, tmp_path, [watched], trainer={"precision": "64-true"})
    assert watched.checked == ["discriminators", "generator"]


def test_twenty_steps_and_resume(tmp_path):
    """Finite, and 11 + 9 iterations are 20 to the bit: crops come from the model's stream, R1 from its clock."""
    overrides = [*SMALL, "model.r1_every=4"]
    whole = fit(overrides, 20, tmp_path / "whole")
    first = fit(overrides, 11, tmp_path / "cut")
    first.trainer.save_checkpoint(tmp_path / "eleven.ckpt")
    again = fit(overrides, 20, tmp_path / "again", resume=str(tmp_path / "eleven.ckpt"))
    assert all(v.isfinite().all() for v in whole.model.state_dict().values() if v.is_floating_point())
    assert_identical(dict(whole.model.state_dict()), dict(again.model.state_dict()))


@pytest.mark.slow
def test_it_reconstructs_after_a_short_training(tmp_path):
    """Nearer than the median image; with more weight on that, and a quicker Adam, than the paper gives it."""
    overrides = [*SMALL, "data.batch_size=16", "model.r1_every=16", "ema.decay=0", "model.encoder.width=8"]
    overrides += ["model.l1_weight=20", "model.g_optimizer.lr=0.005", "model.g_optimizer.betas=[0.9,0.99]"]
    fitted = fit(overrides, 100, tmp_path)
    x = next(iter(fitted.data.batches("test", 100))).x
    terms = fitted.model.objective(x)
    assert terms["l1"] < 0.95 * (x - x.median(dim=0).values).abs().mean(), terms["l1"]
    assert_close(terms["l1"], (fitted.model.reconstruct(x) - x).abs().mean())
    assert_close(terms["loss"], 64 * (terms["l1"] + torch.tensor(2.0).log()))
    start = fit([*overrides, "model.g_optimizer.lr=0"], 1, tmp_path / "start").model
    assert terms["l1"] < 0.6 * start.objective(x)["l1"]


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model.crop_scale=[0.5,0.2]", UserError, "crop_scale"),
        ("model.crops=0", UserError, "crops and r1_every"),
        ("model.patch_size=6", UserError, "multiple of 4"),
        ("model.encoder.halvings=4", UserError, "multiples of 16"),
    ],
)
def test_mistakes(override, error, words):
    from genlab.runs.running import build

    with pytest.raises(error, match=words):
        build(config([*SMALL, override]))


def test_it_is_for_images_and_judges_without_batch_norm():
    from genlab.runs.running import build

    with pytest.raises(UserError, match="image"):
        build(config(["model=swapping_autoencoder", "data=ring"]))
    with pytest.raises(ValueError, match="couples samples"):
        build(
            config(
                [
                    "model=swapping_autoencoder",
                    "data=digits",
                    "network=dcgan",
                    "network.critic_norm=batch",
                    "data.image_size=16",
                ]
            )
        )
