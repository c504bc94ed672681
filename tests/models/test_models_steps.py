"""Each method's step through the real Trainer: who moves when, on which gradients, and that it learns."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch.testing import assert_close

from tests.models.helpers import METHODS, ORDER, Each, Memory, Updates, fit, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
REAL = {  # beside the small networks on points: batch norm, spectral norm, convolutions
    **METHODS,
    "gan with norms": [
        "model=gan",
        "data=digits",
        "network.generator.hidden=[16]",
        "network.discriminator.hidden=[16]",
    ],
    "dcgan": ["model=dcgan", "network.width=4"],
    "wgan_gp with norms": ["model=wgan_gp", "network=dcgan", "network.width=4"],
    "vae with norms": ["model=vae", "network=dcgan", "network.width=4"],
}
ORDERS = {**ORDER, "dcgan": ORDER["gan"]}
# A critic's loss is a difference of its values: a shift of them all has no gradient but rounding's.
STILL = {"wgan_gp": {"critic.head.bias"}}


@pytest.mark.parametrize("name", REAL)
def test_each_update_moves_one_player_alone(name, tmp_path):
    """Bit for bit: every tensor of the player's own, no other, and nothing between the updates."""
    updates = Updates()
    fitted = fit(REAL[name], 3, tmp_path, [updates])
    order = ORDERS[name.partition(" ")[0]]
    assert [who for who, _ in updates.steps] == 3 * order
    own = {player: set(values) for player, values in snapshot(fitted.model).items()}
    for who, found in updates.steps:
        for player, names in found.items():
            if player != who:
                assert names == set(), f"{who}'s update moved {player}"
            else:
                assert own[player] - names <= STILL.get(name.partition(" ")[0], set()), f"{who} stood still"
    assert not any(names for found in updates.strays for names in found.values())
    assert all(p.requires_grad for p in fitted.model.parameters())


def test_simultaneous_gradients_equal_those_of_one_graph(tmp_path):
    """BEGAN in float64: two frozen-other turns give bit for bit what one shared graph gives, at the same parameters."""
    seen = {}

    class Capture(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.loss.k.fill_(0.3)  # at its start, 0, the fakes would not count
            draw, seen["noise"] = pl_module.noise, []
            pl_module.noise = lambda *args: seen["noise"].append(draw(*args)) or seen["noise"][-1]
            trainer.optimizers[0].register_step_pre_hook(lambda *_: self.look(pl_module))

        def look(self, model):
            """Before anyone has moved."""
            seen["turns"] = {player: [p.grad.clone() for p in ps] for player, ps in model.players.items()}
            z_d, z_g = seen["noise"]
            assert z_d.dtype == seen["x"].dtype == torch.float64 and not torch.equal(z_d, z_g)
            with torch.enable_grad():
                fake = model.generator(z_d)
                d_loss = model.loss.discriminator(model.energy(seen["x"]), model.energy(fake))
                g_loss = model.loss.generator(model.energy(model.generator(z_g)))
                whole = {"discriminator": d_loss, "generator": g_loss}
                seen["graph"] = {
                    player: torch.autograd.grad(whole[player], ps, retain_graph=True)
                    for player, ps in model.players.items()
                }

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen["x"] = batch.x

    fit(METHODS["began"], 1, tmp_path, [Capture()], trainer={"precision": "64-true"})
    for player, gradients in seen["turns"].items():
        for mine, theirs in zip(gradients, seen["graph"][player], strict=True):
            assert mine.abs().sum() > 0 and torch.equal(mine, theirs)


def losses_of(name, model, x, draws):
    """What each update of one iteration minimises, from the batch and the random draws in their order; as the paper."""
    if name == "vae":
        mu, logvar = model.posterior(x)
        z = mu + (0.5 * logvar).exp() * draws[0]
        log_q, log_p = torch.distributions.Normal(mu, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
        kl = torch.distributions.kl_divergence(log_q, log_p).sum(dim=1)
        yield (kl - model.likelihood.log_prob(x, model.decoder(z))).mean()
    elif name == "gan":
        fake = model.generator(draws[0]).detach()
        yield -(model.discriminator(x).sigmoid().log() + (1 - model.discriminator(fake).sigmoid()).log()).mean()
        yield -model.discriminator(model.generator(draws[1])).sigmoid().log().mean()
    else:
        for i, part in enumerate(x.split(8)):  # fresh data for each of the five
            z, alpha = draws[2 * i], draws[2 * i + 1].view(len(part), 1)  # a position for each sample
            fake = model.generator(z).detach()
            between = (alpha * part + (1 - alpha) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(model.critic(between).sum(), between, create_graph=True)
            penalty = 10 * (slope.square().sum(dim=1).sqrt() - 1).square()
            yield (model.critic(fake) - model.critic(part) + penalty).mean()
        yield -model.critic(model.generator(draws[-1])).mean()


@pytest.mark.parametrize("name", ["gan", "wgan_gp", "vae"])
def test_each_gradient_is_that_of_the_papers_loss(name, tmp_path):
    """In float64, at the parameters of the moment, on the same noise: also which data and noise each update uses."""
    checked = []

    class Compare(Callback):
        def on_train_start(self, trainer, pl_module):
            self.draws, draw = [], pl_module.stream.draw
            pl_module.stream.draw = lambda *args: self.draws.append(draw(*args)) or self.draws[-1]
            for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
                optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.x, self.update = batch.x, 0

        def compare(self, model, player):
            parameters = model.players[player]
            found = [p.grad for p in parameters]
            with torch.enable_grad():
                # The generator's loss is the last: the others' need noise that was drawn before it.
                losses = losses_of(name, model, self.x, self.draws)
                loss = next(loss for i, loss in enumerate(losses) if i == self.update)
                expected = torch.autograd.grad(loss, parameters, allow_unused=True)
            for mine, theirs in zip(found, expected, strict=True):
                theirs = torch.zeros_like(mine) if theirs is None else theirs
                assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
            assert sum(g.abs().sum() for g in found) > 0
            self.update += 1
            checked.append(player)

    fit(METHODS[name], 1, tmp_path, [Compare()], trainer={"precision": "64-true"})
    assert checked == ORDER[name]


def test_k_follows_the_balance_of_the_whole_iteration(tmp_path):
    """k starts at 0, moves by lambda_k (gamma L(x) - L(G(z))), and is recorded after its update."""
    memory = Memory()
    overrides = [*METHODS["began"], "loss.lambda_k=0.5", "trainer.log_every_n_steps=1"]
    fitted = fit(overrides, 5, tmp_path, trainer={"logger": [memory]})
    k = 0.0
    for step in range(1, 6):
        real, fake = (memory.curves[f"train/{name}"][step] for name in ("l_real", "l_fake"))
        assert fake == memory.curves["train/g_loss"][step]  # of the generator's samples, not the discriminator's
        k = min(1.0, max(0.0, k + 0.5 * (0.5 * real - fake)))
        assert_close(memory.curves["train/k"][step], k, rtol=1e-5, atol=1e-6)
        assert_close(memory.curves["train/m_global"][step], real + abs(0.5 * real - fake), rtol=1e-5, atol=1e-6)
    assert 0 < k < 1 and fitted.model.loss.k.item() == pytest.approx(k, rel=1e-5)


# What they learn, in seconds


def test_the_discriminator_beats_a_frozen_generator(tmp_path):
    overrides = ["model=gan", "data=ring", "network.hidden=[64]", "data.batch_size=128", "model.g_optimizer.lr=0"]
    start = {}
    fitted = fit(overrides, 300, tmp_path, before=lambda model: start.update(snapshot(model)))
    assert all(
        torch.equal(a, b) for a, b in zip(start["generator"].values(), fitted.model.players["generator"], strict=True)
    )
    real = next(iter(fitted.data.batches("test", 1000))).x
    fake = fitted.model.sample(1000, rng=torch.Generator().manual_seed(0))
    right = torch.cat([fitted.model.score_logits(real) > 0, fitted.model.score_logits(fake) < 0]).float().mean()
    assert right > 0.97, right


@pytest.mark.parametrize("name", ["gan", "wgan_gp"])
def test_the_generator_fools_a_frozen_discriminator(name, tmp_path):
    """Its fakes score higher than at the start, by more than anything else could explain."""
    opponent = "model.d_optimizer.lr=0" if name == "gan" else "model.c_optimizer.lr=0"
    overrides = [*METHODS[name], opponent, "model.g_optimizer.lr=0.01", "ema.decay=0"]

    def score(model):
        return model.score_logits(model.sample(500, rng=torch.Generator().manual_seed(0))).mean().item()

    each = Each(score)
    fit(overrides, 150, tmp_path, [each])
    assert each.seen[-1] > each.seen[0] + 3


def test_a_vae_memorises_eight_images(tmp_path):
    overrides = ["model=vae", "likelihood=gaussian", "network=mlp", "data.limit_train=8"]
    fitted = fit(overrides, 300, tmp_path)
    x = next(iter(fitted.data.batches("train"))).x
    assert len(x) == 8
    error = (fitted.model.reconstruct(x) - x).square().mean()
    assert error < 0.03 * (x - x.mean(dim=0)).square().mean(), error
    others = next(iter(fitted.data.batches("test", 8))).x  # by heart, not as such
    assert (fitted.model.reconstruct(others) - others).square().mean() > 5 * error


def test_a_vae_starts_at_the_mean_image(tmp_path):
    """`initialise` sets the output bias before the first update (the learning rate is 0 here)."""
    fitted = fit(["model=vae", "network=mlp", "model.optimizer.lr=0"], 1, tmp_path)
    x = torch.cat([b.x for b in fitted.data.first_batches(8)])
    bias = fitted.model.decoder.body[-1].bias.detach()
    assert_close(bias, torch.logit(((x + 1) / 2).mean(dim=0), eps=1e-3).flatten())


def test_the_vaes_weight_of_the_kl_leaves_the_elbo_alone(tmp_path):
    """loss = recon + beta kl is minimised; elbo = -(recon + kl) is recorded whatever beta is."""
    memory = Memory()
    overrides = [*METHODS["vae"], "model.kl_weight=3", "trainer.log_every_n_steps=1"]
    fit(overrides, 2, tmp_path, trainer={"logger": [memory]})
    loss, recon, kl, elbo = (memory.curves[f"train/{name}"][2] for name in ("loss", "recon", "kl", "elbo"))
    assert kl > 0
    assert_close(loss, recon + 3 * kl, rtol=1e-5, atol=1e-5)
    assert_close(elbo, -(recon + kl), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "words"), [("n_critic", "n_critic must be at least 1"), ("norm", "batch norm")])
def test_wgan_gp_refuses(name, words, tmp_path):
    overrides = {
        "n_critic": [*METHODS["wgan_gp"], "model.n_critic=0"],
        "norm": ["model=wgan_gp", "network=dcgan", "network.critic_norm=batch", "data.image_size=16"],
    }[name]
    with pytest.raises(ValueError, match=words):
        fit(overrides, 1, tmp_path)
