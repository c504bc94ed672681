"""StackGAN: conditioning augmentation, its KL, two stages, and a first stage that stays as it is."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import genlab
from genlab.batch import Batch
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.losses.adversarial import NonSaturating
from genlab.losses.divergences import kl_standard_normal
from genlab.losses.matching import matching_loss
from genlab.networks.stackgan import Augmentation, Refiner
from genlab.runs import start
from genlab.runs.running import build
from tests.models.helpers import QUIET, Batches, assert_moves, config, fit, moved

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["network.width=4", "data.image_size=16", "data.num_train=64", "model.latent_dim=7", "model.code_dim=3"]
STAGE = ["model=stackgan", *TINY, "ema.decay=0"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_kl_of_the_augmentation():
    """0 at N(0, 1), 1/2 for each dimension at N(1, 1): with the code's 2 times the mean over dimensions, 0 and 1."""
    zeros, ones = torch.zeros(2, 128, dtype=torch.float64), torch.ones(2, 128, dtype=torch.float64)
    weight = compose(["model=stackgan"])["model"]["kl_weight"]
    assert torch.equal(kl_standard_normal(zeros, zeros), torch.zeros(2, dtype=torch.float64))
    assert_close(kl_standard_normal(ones, zeros), torch.full((2,), 64.0, dtype=torch.float64))
    assert_close(weight * kl_standard_normal(ones, zeros), ones[:, 0])
    torch.manual_seed(0)
    network = Augmentation([5], 128).double()
    t = torch.randn(2, 5, generator=rng(), dtype=torch.float64)
    mu, log_sigma = network.body(t).chunk(2, dim=1)
    by_code = (0.5 * (-1 + (2 * log_sigma).exp() + mu.square()) - log_sigma).mean(dim=1)  # the authors' line
    assert_close(weight * kl_standard_normal(*network(t).chunk(2, dim=1)), 2 * by_code)


def test_each_update_moves_its_own_player_alone(tmp_path):
    fitted = assert_moves(STAGE, ["discriminator", "generator"] * 2, 2, tmp_path)
    names = {n.partition(".")[0] for n, p in fitted.model.named_parameters() if p.requires_grad}
    assert names == {"augmentation", "generator", "discriminator"}


def test_stage_one_by_hand(tmp_path):
    """Small real pictures and fakes, and both losses from the logits."""
    calls, batches = [], Batches()

    def listen(model):
        model.discriminator.register_forward_hook(lambda _, args, out: calls.append((*args, out)))

    model = fit([*STAGE, "model.kl_weight=0.5"], 1, tmp_path, [batches], listen).model
    (real, told, right), (fake, _, of_fake), (again, other, wrong), (new, _, of_new) = calls
    (batch,) = batches.seen
    small = batch.x.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean(dim=(3, 5))
    assert_close(real, small)
    assert torch.equal(again, real) and fake.shape == new.shape == (8, 3, 8, 8) and not torch.equal(fake, new)
    assert torch.equal(told["caption"].values, batch["caption"].values)
    assert not torch.equal(other["caption"].values, told["caption"].values)
    recorded = model.watching.recorded
    assert_close(recorded["d_loss"], matching_loss(NonSaturating(), right, wrong, of_fake).detach())
    assert_close(recorded["g_loss"], nn.functional.softplus(-of_new).mean().detach())
    assert recorded["kl"] > 0


def test_samples_have_the_size_of_the_data(tmp_path):
    """Each pixel of the small picture twice to a side; codes are mean plus noise times deviation."""
    model = fit(STAGE, 1, tmp_path).model
    caption = model.spec.fields["caption"].parse(
        "a large red ellipse in the middle|a small blue triangle on the left", 4
    )
    told = Batch({"caption": caption})
    z = model.noise(4, rng())
    x = model.sample(4, given=told, rng=rng())
    assert x.shape == (4, 3, 16, 16) and torch.equal(model.decode(z, told), x)
    assert torch.equal(x[:, :, ::2, ::2], x[:, :, 1::2, 1::2])
    with torch.no_grad(), model.inference():
        q = model.codes(told)
        by_hand = model.generator(torch.cat([z[:, :4], q.mu + (q.logvar / 2).exp() * z[:, 4:]], dim=1))
    assert_close(x[:, :, ::2, ::2], by_hand)
    assert model.score_logits(x, told).shape == (4,)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Both stages by one command."""
    folder = tmp_path_factory.mktemp("stackgan") / "run"
    narrow = ["data.image_size=32", "stages.1.model.generator.width=4", "ema.decay=0.5"]
    start.train(compose(["experiment=stackgan_scenes", *TINY, *QUIET, *narrow, "trainer.max_steps=3"]), folder)
    return folder


def test_the_second_stage_leaves_the_first_as_it_was(run):
    """Bit for bit, statistics included, after the second stage's steps."""
    first, second = genlab.load(run / "first"), genlab.load(run / "second")
    assert moved(first.state_dict(), second.first_stage.state_dict()) == set()
    assert second.latent_dim == first.latent_dim + 3
    untrained = build(second.run_config).model
    assert moved(untrained.generator.state_dict(), second.generator.state_dict())


def test_the_second_stage_refines_the_firsts_pictures(run):
    second = genlab.load(run / "second")
    told = Batch({"caption": second.spec.fields["caption"].parse("a large red ellipse in the middle", 2)})
    z = second.noise(2, rng())
    assert z.shape == (2, 10)
    x = second.sample(2, given=told, rng=rng())
    assert x.shape == (2, 3, 32, 32) and torch.equal(second.decode(z, told), x)
    with torch.no_grad(), second.inference():
        small = second.first_stage.draw(z[:, :7], told)
        q = second.codes(told)
        assert small.shape == (2, 3, 16, 16)
        assert_close(second.generator(small, q.mu + (q.logvar / 2).exp() * z[:, 7:]), x)


def test_sizes_of_the_refiner():
    for scale, halvings in ((1, 1), (2, 1), (4, 2)):
        network = Refiner([3, 32, 48], 5, scale, width=4, halvings=halvings, blocks=1)
        assert network(torch.zeros(2, 3, 32 // scale, 48 // scale), torch.zeros(2, 5)).shape == (2, 3, 32, 48)
    for scale, halvings in ((3, 1), (0, 1), (4, 4)):
        with pytest.raises(UserError, match="needs a power of two, and sides that"):
            Refiner([3, 32, 32], 5, scale, width=4, halvings=halvings)


def test_senseless_sizes_are_refused():
    with pytest.raises(UserError, match="must exceed model.code_dim=7"):
        build(config([*STAGE, "model.code_dim=7"]))
    with pytest.raises(UserError, match=r"model.scale=3 must divide the sides \[32, 32\]. Try model.scale=2"):
        build(config([*STAGE, "data.image_size=32", "model.scale=3"]))
