"""DC-VAE: InfoNCE and its queue in closed form, who moves on what in each game, and that reconstructions are found."""

import copy
import math

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.losses.contrastive import info_nce
from genlab.networks.contrastive import KeyQueue, Momentum, Staged, stage_ends
from genlab.networks.dcgan import Discriminator as DCGANDiscriminator
from genlab.networks.init import spectrally_normalised
from genlab.networks.mlp import Discriminator
from genlab.networks.resnet import Discriminator as ResNetDiscriminator
from tests.cli.helpers import assert_identical
from tests.models.helpers import Updates, config, fit, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["model=dc_vae", "data=digits", "network=mlp", "network.hidden=[16,12]", "model.latent_dim=3"]
SMALL += ["model.queue_size=20", "model.contrast_dim=5"]
STEP = 5 * ["trunk", "head"] + ["generator"] + ["generator", "trunk", "contrast"]


def value(number):
    return torch.tensor(number, dtype=torch.float64)


def unit(*shape, seed=0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=-1)


# ----------------------------------------------------------------------------------------------- InfoNCE and its memory


@pytest.mark.parametrize("k", [1, 7, 100])
def test_info_nce_of_identical_keys_is_log_k_plus_one(k):
    key = unit(1, 4)
    loss, _ = info_nce(unit(3, 4, seed=1), key.expand(3, 4), key.expand(k, 4), 0.07)
    assert_close(loss, value(math.log(k + 1)))


def test_info_nce_vanishes_as_it_cools_where_the_own_key_is_nearest():
    query, others = unit(3, 4), unit(9, 4, seed=1)
    values = [info_nce(query, query, others, t)[0].item() for t in (1.0, 0.1, 0.01, 0.001)]
    assert values == sorted(values, reverse=True) and values[0] > 1 and values[-1] < 1e-9
    assert info_nce(query, query, others, 0.1)[1] == 1
    wrong, found = info_nce(query, -query, torch.cat([others, query]), 0.01)
    assert wrong > 100 and found == 0


def test_info_nce_by_the_formula():
    query, key, others = unit(3, 4), unit(3, 4, seed=1), unit(5, 4, seed=2)
    expected = 0.0
    for q, k in zip(query, key, strict=True):
        own, rest = math.exp(float(q @ k) / 0.3), sum(math.exp(float(q @ n) / 0.3) for n in others)
        expected -= math.log(own / (own + rest)) / 3
    assert_close(info_nce(query, key, others, 0.3)[0], value(expected))


def test_the_queue_wraps_whatever_the_batch():
    queue = KeyQueue(2, 5, 1)
    number = torch.arange(1.0, 9.0)
    for start, end in ((0, 3), (3, 6), (6, 8)):
        queue.push(torch.stack([number[start:end], -number[start:end]]).unsqueeze(2))
    assert queue.keys[0, :, 0].tolist() == [6, 7, 8, 4, 5]  # 1, 2 and 3 were the oldest
    assert torch.equal(queue.keys[1], -queue.keys[0]) and queue.pointer == 3
    queue.push(torch.arange(20.0).expand(2, 20).unsqueeze(2))
    assert sorted(queue.keys[0, :, 0].tolist()) == [15, 16, 17, 18, 19]


def test_the_copy_follows_by_the_formula_without_parameters():
    torch.manual_seed(0)
    network = spectrally_normalised(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    slow = Momentum(network)
    before = copy.deepcopy(slow.state_dict())
    assert not list(slow.parameters()) and len(before) == len(network.state_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    network(torch.randn(8, 3))  # a power iteration
    slow.follow(network, 0.9)
    learned = {name for name, _ in network.named_parameters()}
    for name, own in network.state_dict().items():
        expected = 0.9 * before[f"module.{name}"] + 0.1 * own if name in learned else own
        assert_close(slow.state_dict()[f"module.{name}"], expected)
    assert not slow.train().frozen()[0].training
    slow.follow(network, 0.0)
    x = torch.randn(6, 3)
    assert_close(slow.frozen()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("network", "shape", "sizes"),
    [
        (Discriminator((1, 8, 8), [16, 12]), (1, 8, 8), [(16,), (12,)]),
        (DCGANDiscriminator((1, 16, 16), 4, "layer"), (1, 16, 16), [(4, 8, 8), (128,)]),
        (ResNetDiscriminator((3, 32, 32), 6), (3, 32, 32), [(6, 16, 16), (6,)]),
    ],
)
def test_stages_are_the_first_layers_and_what_the_head_reads(network, shape, sizes):
    staged = Staged(network, shape, [0, -1], 7)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    features = staged.features(network, x)
    assert [tuple(f.shape[1:]) for f in features] == sizes
    assert torch.equal(features[1], network.features(x))
    first = network.trunk[: stage_ends(network.trunk)[0] + 1]
    assert_close(features[0], first(x.flatten(1) if len(sizes[0]) == 1 else x))
    assert_close(staged(network, x).norm(dim=2), torch.ones(2, 4))
    assert not any(m._forward_hooks for m in network.modules())


def test_stages_that_are_not_there_are_refused():
    network = Discriminator((1, 8, 8), [16, 12])
    assert Staged(network, (1, 8, 8), [1, -1], 7).stages == [1]
    with pytest.raises(UserError, match="has 2 stages"):
        Staged(network, (1, 8, 8), [2], 7)
    with pytest.raises(UserError, match="no trunk"):
        Staged(nn.Linear(3, 1), (3,), [0], 7)


# ------------------------------------------------------------------------------------------------------------- training


def test_each_game_moves_its_players_alone(tmp_path):
    """The adversarial game leaves D to the bit, the instance game D's adversarial head; no copy moves in a step."""
    updates = Updates()
    fitted = fit(SMALL, 2, tmp_path, [updates])
    assert [who for who, _ in updates.steps] == 2 * STEP
    own = {player: set(values) for player, values in snapshot(fitted.model).items()}
    for who, found in updates.steps:
        assert not {player for player, names in found.items() if names and player != who}, who
        # While all logits are within the margin, the hinge's slopes on real and fake samples cancel in the head's bias.
        assert own[who] - found[who] <= {"discriminator.head.bias"}, f"{who} stood still"
    assert not any(names for found in updates.strays for names in found.values())
    assert all(p.requires_grad for p in fitted.model.parameters())
    assert not any("slow" in name for name, _ in fitted.model.named_parameters())


class Gradients(Callback):
    """Compares each update's gradients with those of the paper's losses, written out, on the same draws."""

    def on_train_start(self, trainer, pl_module):
        self.draws, draw, self.checked = [], pl_module.stream.draw, []
        pl_module.stream.draw = lambda *args: self.draws.append(draw(*args)) or self.draws[-1]
        for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parts, self.before = batch.x.chunk(5), [snapshot(pl_module)]

    def loss(self, m, turn):
        def reconstructed(x, eps):
            mu, logvar = m.encoder(x).chunk(2, dim=1)
            kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / len(x)
            return m.generator(mu + (0.5 * logvar).exp() * eps), 0.25 * kl

        x = self.parts[min(turn, 4)]
        eps = self.draws[2 * turn]
        x_hat, kl = reconstructed(x, eps)
        if turn < 5:  # relu(1 - D(x)) + relu(1 + D(x~)) / 2 + relu(1 + D(x^)) / 2
            x_tilde = m.generator(self.draws[2 * turn + 1])
            fakes = [(1 + m.discriminator(f.detach())).relu().mean() / 2 for f in (x_hat, x_tilde)]
            return (1 - m.discriminator(x)).relu().mean() + sum(fakes)
        if turn == 5:
            x_tilde = m.generator(self.draws[2 * turn + 1])
            return -m.discriminator(x_hat).mean() / 2 - m.discriminator(x_tilde).mean() / 2 + kl
        queries, keys = m.contrast(m.discriminator, x_hat), m.keys(x)
        total = kl
        for query, key, others in zip(queries, keys, m.queue.keys, strict=True):
            own, rest = (query * key).sum(dim=1) / 0.07, query @ others.T / 0.07
            total = total + (torch.cat([own[:, None], rest], dim=1).logsumexp(dim=1) - own).mean() / len(queries)
        return total

    def compare(self, model, player):
        turn = min(len(self.checked) // 2, 5) if len(self.checked) < 11 else 6
        self.checked.append(player)
        if len(self.checked) > 1 and player != "trunk" and turn < 5 or len(self.checked) > 12:
            return  # the trunk of this turn has moved already: its loss is no longer that of the gradients
        with torch.enable_grad():
            wanted = torch.autograd.grad(self.loss(model, turn), model.players[player])
        for p, theirs in zip(model.players[player], wanted, strict=True):
            assert_close(p.grad, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_are_those_of_the_papers_losses(tmp_path):
    """In float64 and without spectral norm, whose power iterations would be repeated here."""
    watched, overrides = Gradients(), [*SMALL, "model.kl_weight=0.25", "model.spectral_norm=false"]
    fit(overrides, 1, tmp_path, [watched], trainer={"precision": "64-true"})
    assert watched.checked == STEP[:10] + ["generator", "generator", "trunk", "contrast"]


def test_the_kl_is_a_mean_over_the_batch(tmp_path):
    """Twice the same batch has the same loss; the paper's code sums, and its weight grows with the batch."""
    model = fit(SMALL, 1, tmp_path).model
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    q = model.posterior(x)
    expected = 0.5 * (q.mu.square() + q.logvar.exp() - 1 - q.logvar).sum() / 6
    assert_close(model.reconstructions(torch.cat([x, x]))[1].mean(), expected)


def test_the_queue_holds_what_the_slow_copy_said(tmp_path):
    """`initialise` fills it; an iteration overwrites the oldest 8 of 20, which is no multiple of 8."""
    start = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            start.setdefault("keys", pl_module.queue.keys.clone())
            start["x"], start["pointer"] = batch.x.chunk(5)[-1], int(pl_module.queue.pointer)

    model = fit(SMALL, 1, tmp_path, [Look()]).model
    assert_close(start["keys"].norm(dim=2), torch.ones(2, 20))
    assert start["pointer"] == 4 and model.queue.pointer == 12  # 24 were pushed to begin with
    assert_close(model.queue.keys[:, 4:12], model.keys(start["x"]))
    assert torch.equal(model.queue.keys[:, 12:], start["keys"][:, 12:])
    assert not model.keys(start["x"]).requires_grad


def test_twenty_steps_and_resume(tmp_path):
    """Finite, and 11 + 9 iterations are 20 to the bit, queue and copies included."""
    overrides = [*SMALL, "model.n_critic=2"]
    whole = fit(overrides, 20, tmp_path / "whole")
    first = fit(overrides, 11, tmp_path / "cut")
    first.trainer.save_checkpoint(tmp_path / "eleven.ckpt")
    again = fit(overrides, 20, tmp_path / "again", resume=str(tmp_path / "eleven.ckpt"))
    assert all(v.isfinite().all() for v in whole.model.state_dict().values() if v.is_floating_point())
    assert_identical(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert "discriminator.head.parametrizations.weight.original" in whole.model.state_dict()
    assert {"queue.keys", "queue.pointer"} < set(whole.model.state_dict())


def test_reconstructions_become_those_of_their_images(tmp_path):
    """Without any error of pixels they come nearer, and the discriminator's features tell whose they are."""
    overrides = ["model=dc_vae", "data=digits", "model.queue_size=128", "data.batch_size=32"]
    overrides += ["network.generator.hidden=[64]", "network.critic.hidden=[64,32]", "network.encoder.hidden=[64]"]
    overrides += ["model.g_optimizer.lr=0.003", "model.d_optimizer.lr=0.003", "ema.decay=0", "model.n_critic=1"]
    fitted = fit(overrides, 150, tmp_path)
    x = next(iter(fitted.data.batches("test", 200))).x
    error = (fitted.model.reconstruct(x) - x).square().mean()
    assert error < 0.9 * (x - x.mean(dim=0)).square().mean(), error
    with torch.no_grad():
        right = fitted.model.instance_loss(x, fitted.model.reconstruct(x))[1]
    assert min(right) > 0.1, right  # by chance it would be 1 in 129


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model.encoder_features=7", UserError, "must give 6 numbers, not 7"),
        ("model.n_critic=0", UserError, "n_critic >= 1"),
        ("model.queue_size=0", UserError, "queue_size"),
    ],
)
def test_mistakes(override, error, words):
    from genlab.runs.running import build

    with pytest.raises(error, match=words):
        build(config([*SMALL, override]))


def test_batch_norm_would_betray_the_keys():
    from genlab.runs.running import build

    overrides = ["model=dc_vae", "network=dcgan", "network.critic_norm=batch", "data.image_size=16"]
    with pytest.raises(UserError, match="without batch norm"):
        build(config(["data=digits", *overrides]))
