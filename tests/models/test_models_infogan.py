"""InfoGAN: its latents, who learns Q, what is minimised, and that the codes are found again."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.models.helpers import Each, Memory, assert_moves, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["model=infogan", "data=ring", "network.hidden=[16]", "model.latent_dim=16", "model.q_hidden=8"]
IMAGES = ["model=infogan", "data=digits", "network=dcgan", "network.width=4"]


@pytest.mark.parametrize("overrides", [RING, IMAGES])
def test_each_update_moves_one_player_alone(overrides, tmp_path):
    fitted = assert_moves(overrides, ["discriminator", "generator"] * 3, 3, tmp_path)
    q = {id(p) for p in fitted.model.q.parameters()}
    assert q <= {id(p) for p in fitted.model.players["discriminator"]}


def test_latents_are_noise_a_category_and_codes(tmp_path):
    model = fit(RING, 1, tmp_path).model
    z = model.noise(6000, torch.Generator().manual_seed(0))
    noise, category, codes = z.split([4, 10, 2], dim=1)
    assert z.shape == (6000, 16) and set(category.unique().tolist()) == {0, 1}
    assert_close(category.sum(dim=1), torch.ones(6000))
    assert_close(category.mean(dim=0), torch.full((10,), 0.1), rtol=0, atol=0.015)
    for part in (noise, codes):
        assert part.abs().max() <= 1
        assert_close(part.var(dim=0), torch.full((part.shape[1],), 1 / 3), rtol=0, atol=0.02)
    joint = torch.corrcoef(torch.cat([noise, codes], dim=1).T) - torch.eye(6)
    assert joint.abs().max() < 0.05


def test_both_losses_hold_the_information(tmp_path):
    """D and Q: loss - lambda L_I; G: the same with its own side. Written out, from the same noise, in float64."""
    from pytorch_lightning.callbacks import Callback

    checked = []

    class Compare(Callback):
        def on_train_start(self, trainer, pl_module):
            self.draws, draw = [], pl_module.noise
            pl_module.noise = lambda *args: self.draws.append(draw(*args)) or self.draws[-1]
            for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
                optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.x = batch.x

        def compare(self, model, player):
            parameters = model.players[player]
            found = [p.grad for p in parameters]
            z = self.draws[-1]
            with torch.enable_grad():
                fake = model.generator(z)
                out = model.q(model.discriminator.features(fake))
                log_q = out[:, :10].log_softmax(dim=1)
                mutual = math.log(10) + (log_q * z[:, 4:14]).sum(dim=1).mean()
                normal = torch.distributions.Normal(out[:, 10:], torch.ones(()))
                codes = 2 * math.log(2) + normal.log_prob(z[:, 14:]).sum(dim=1).mean()
                s_fake = model.discriminator(fake)
                if player == "discriminator":
                    loss = F.softplus(-model.discriminator(self.x)).mean() + F.softplus(s_fake).mean()
                else:
                    loss = F.softplus(-s_fake).mean()
                expected = torch.autograd.grad(loss - 0.7 * mutual - 0.3 * codes, parameters)
            for mine, theirs in zip(found, expected, strict=True):
                assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
            checked.append(player)

    overrides = [*RING, "model.info_weight=0.7", "model.code_weight=0.3"]
    fit(overrides, 1, tmp_path, [Compare()], trainer={"precision": "64-true"})
    assert checked == ["discriminator", "generator"]


def test_the_category_is_found_again(tmp_path):
    """On eight Gaussians with eight categories: Q reads them off the samples, L_I nears log 8, and so do we."""
    memory = Memory()
    overrides = [*RING, "model.categories=8", "model.codes=0", "network.hidden=[64]", "data.batch_size=64"]
    overrides += ["model.d_optimizer.lr=1e-3", "trainer.log_every_n_steps=400", "ema.decay=0"]
    model = fit(overrides, 400, tmp_path, trainer={"logger": [memory]}).model
    assert memory.curves["train/info_category"][1] < 0.3
    assert memory.curves["train/info_category"][400] > 0.9 * math.log(8)
    z = model.noise(500, torch.Generator().manual_seed(1))
    probabilities, means = model.guess(model.decode(z))
    assert probabilities.shape == (500, 8) and means.shape == (500, 0)
    assert (probabilities.argmax(dim=1) == z[:, 8:].argmax(dim=1)).float().mean() > 0.95


def test_without_weight_the_generator_ignores_it(tmp_path):
    """lambda = 0: Q stands still, as no gradient reaches it."""
    q = Each(lambda model: [p.detach().clone() for p in model.q.parameters()])
    fit([*RING, "model.info_weight=0", "model.code_weight=0"], 2, tmp_path, [q])
    assert all(torch.equal(a, b) for a, b in zip(*q.seen, strict=True))


@pytest.mark.parametrize(
    ("override", "words"),
    [("model.latent_dim=12", "must exceed categories"), ("model.categories=1", "categories >= 2")],
)
def test_it_refuses(override, words):
    from genlab.runs.running import build

    with pytest.raises(ValueError, match=words):
        build(config([*RING, override]))
