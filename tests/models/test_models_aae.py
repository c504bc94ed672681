"""Adversarial autoencoders: who moves on what, against the paper's updates, and what their codes become."""

import math
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.testing import assert_close

from genlab.batch import Batch
from genlab.contracts import CAPABILITIES
from genlab.errors import UserError
from genlab.losses.adversarial import Minimax
from genlab.networks.latent import LatentDiscriminator
from genlab.runs.running import build
from genlab.sampling.latents import go_through
from tests.models.helpers import SGD, Memory, assert_moves, config, fit, log_d, log_not_d, moved, snapshot
from tests.models.pairs import LINE

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["data=ring", "network.hidden=[16]", "likelihood=gaussian"]
SMALL = [*RING, "model.latent_discriminator.hidden=[16]"]
TWO = [*RING, "model.style_discriminator.hidden=[16]", "model.category_discriminator.hidden=[16]"]
PLAIN = ["model=aae", *SMALL, "model.latent_dim=2"]
METHODS = {
    "plain": PLAIN,
    "gaussian": [*PLAIN, "posterior=diagonal"],
    "universal": [*PLAIN, "posterior=universal", "posterior.hidden=[8]"],
    "mixture": [*PLAIN, "prior=gaussian_mixture"],
    "informed": [*PLAIN, "prior=gaussian_mixture", "prior.components=8", "model.label_informed=true"],
    "informed roll": [*PLAIN, "prior=swiss_roll", "model.label_informed=true", "data.num_labelled=5000"],
    "supervised": ["model=aae_supervised", *SMALL, "model.style_dim=3"],
    "semi": ["model=aae_semi_supervised", *TWO, "model.style_dim=3", "data.num_labelled=50000"],
    "clusters": ["model=aae_clustering", *TWO, "model.style_dim=3", "model.categories=5"],
}
ORDER = ["encoder", "decoder", "latent_discriminator", "encoder"]
ORDERS = {
    "semi": ["encoder", "decoder", "category_discriminator", "style_discriminator", "encoder", "encoder"],
    "clusters": ["encoder", "decoder", "category_discriminator", "style_discriminator", "encoder"],
}


@pytest.mark.parametrize("name", METHODS)
def test_each_update_moves_its_players_alone(name, tmp_path):
    """Reconstruction: encoder and decoder. Discriminators: they alone. Regularisation, cross-entropy: the encoder."""
    order = ORDERS.get(name, ORDER)
    # A logit's last bias knows of no category; a head that an update does not read stands still.
    assert_moves(METHODS[name], order * 2, 2, tmp_path)


class Parabola(LatentDiscriminator):
    """z -> c z + w z^2, of two parameters."""

    def __init__(self, c: float, w: float) -> None:
        super().__init__(1, [])
        del self.body
        self.c, self.w = nn.Parameter(torch.tensor(c)), nn.Parameter(torch.tensor(w))

    def forward(self, z, y=None):
        return (self.c * z + self.w * z.square()).squeeze(1)


def mean_error(model, x, z):
    """-log N(x; Dec(z), sigma^2 I), a mean over samples."""
    square, sigma = (x - model.decoder(z)).square().sum(dim=1).mean(), model.likelihood.log_sigma.exp()
    return 0.5 * square / sigma**2 + x.shape[1] * (sigma.log() + 0.5 * math.log(2 * math.pi))


def losses_of(name, m, batch, draws):
    """What each update of an iteration minimises, written out: one loss for each entry of `ORDERS`."""
    x, y = batch.x, batch.y
    if name in ("plain", "gaussian", "informed", "universal"):

        def code(eps):
            out = m.encoder(x)
            if name == "gaussian":
                return out[:, :2] + (out[:, 2:] / 2).exp() * eps
            return m.family.body(torch.cat([out, eps], dim=1)) if name == "universal" else out

        told = (y,) if name == "informed" else ()
        recon = mean_error(m, x, code(draws[0]))
        yield recon
        yield recon
        real = draws[2]
        if name == "informed":  # component y: centre and axes turned by 2 pi y / 8
            angle = 2 * math.pi * y / 8
            out = torch.stack([angle.cos(), angle.sin()], dim=1)
            across = torch.stack([-angle.sin(), angle.cos()], dim=1)
            real = 1.4 * out + 0.5 * real[:, :1] * out + 0.1 * real[:, 1:2] * across
        d = m.latent_discriminator
        yield -log_d(d(real.to(x), *told)) - log_not_d(d(code(draws[1]).detach(), *told))
        yield -log_d(d(code(draws[3]), *told))
    elif name == "supervised":
        recon = mean_error(m, x, torch.cat([m.encoder(x), F.one_hot(y, 8).to(x)], dim=1))
        yield recon
        yield recon
        d = m.latent_discriminator
        yield -log_d(d(draws[0])) - log_not_d(d(m.encoder(x).detach()))
        yield -log_d(d(m.encoder(x)))
    else:
        k = m.categories

        def code():
            out = m.encoder(x)
            return out[:, :k].exp() / out[:, :k].exp().sum(dim=1, keepdim=True), out[:, k:]

        recon = mean_error(m, x, torch.cat(code(), dim=1))
        yield recon
        yield recon  # the discriminators' draws come after it
        drawn, style_real = F.one_hot((draws[0] * k).long(), k).to(x), draws[1]
        category, style = code()
        yield -log_d(m.category_discriminator(drawn)) - log_not_d(m.category_discriminator(category.detach()))
        yield -log_d(m.style_discriminator(style_real)) - log_not_d(m.style_discriminator(style.detach()))
        yield -log_d(m.category_discriminator(category)) - log_d(m.style_discriminator(style))
        known = y >= 0
        yield -m.encoder(x)[known][:, :k].log_softmax(dim=1)[torch.arange(int(known.sum())), y[known]].mean()


class Compare(Callback):
    """In front of each step: its player's gradients are those of the loss that is written out."""

    def __init__(self, losses, shared, atol):
        self.losses, self.shared, self.atol, self.checked = losses, shared, atol, []

    def on_train_start(self, trainer, pl_module):
        self.draws, draw = [], pl_module.stream.draw
        pl_module.stream.draw = lambda *args: self.draws.append(draw(*args)) or self.draws[-1]
        for player, optimizer in zip(pl_module.players, trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(lambda *_, player=player: self.compare(pl_module, player))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch, self.update = batch, 0

    def compare(self, model, player):
        parameters = model.players[player]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if self.update not in self.shared:  # the second of a joint update, whose gradients were taken at once
            with torch.enable_grad():
                loss = next(
                    loss for i, loss in enumerate(self.losses(model, self.batch, self.draws)) if i == self.update
                )
                expected = torch.autograd.grad(loss, parameters, allow_unused=True)
            for mine, theirs in zip(found, expected, strict=True):
                assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-8, atol=self.atol)
        assert sum(g.abs().sum() for g in found) > 0
        self.update += 1
        self.checked.append(player)


@pytest.mark.parametrize("name", ["plain", "gaussian", "universal", "informed", "supervised", "semi"])
def test_gradients_are_those_of_the_papers_updates(name, tmp_path):
    """In float64, on the same draws, at the parameters of the moment."""
    # The decoder steps after the encoder has, on gradients of before: those are compared by the toy below.
    atol = 1e-7 if name == "informed" else 1e-11  # the mixture's centres are kept in float32
    compare = Compare(lambda *args: losses_of(name, *args), shared={1}, atol=atol)
    fit(METHODS[name], 1, tmp_path, [compare], trainer={"precision": "64-true"})
    assert compare.checked == ORDERS.get(name, ORDER)


def test_a_toy_of_one_parameter_each(tmp_path):
    """Enc = a x, Dec = b z, D = c z + w z^2, sigma = 1: every gradient in closed form."""
    a, b, c, w = 0.7, -0.4, 0.9, 0.3
    still = {**SGD, "lr": 0.0}
    toy = {
        "_target_": "genlab.models.aae.AAE",
        "encoder": {"_target_": "tests.models.pairs.Scale", "a": a},
        "decoder": {"_target_": "tests.models.pairs.Scale", "a": b},
        "latent_discriminator": {"_target_": "tests.models.test_models_aae.Parabola", "c": c, "w": w},
        "likelihood": {"_target_": "genlab.losses.likelihoods.Gaussian", "sigma": 1.0},
        "loss": {"_target_": "genlab.losses.adversarial.NonSaturating"},
        "latent_dim": 1,
        "encoder_features": 1,
        "adversarial_weight": 3.0,
        "e_optimizer": still,
        "g_optimizer": still,
        "d_optimizer": still,
    }
    seen, found = {}, []

    class Note(Callback):
        def on_train_start(self, trainer, pl_module):
            seen["draws"], draw = [], pl_module.stream.draw
            pl_module.stream.draw = lambda *args: seen["draws"].append(draw(*args)) or seen["draws"][-1]
            for (player, parameters), optimizer in zip(pl_module.players.items(), trainer.optimizers, strict=True):
                optimizer.register_step_pre_hook(
                    lambda *_, player=player, ps=parameters: found.append((player, [p.grad.clone() for p in ps]))
                )

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen["x"] = batch.x

    fit(["data=ring"], 1, tmp_path, [Note()], trainer={"precision": "64-true"}, model=toy, data=LINE)
    x, real = seen["x"], seen["draws"][2]
    assert [who for who, _ in found] == ORDER
    (_, (d_a,)), (_, (d_b,)), (_, (d_c, d_w)), (_, (adversarial,)) = found
    assert_close(d_a, -b * (1 - a * b) * x.square().mean(), rtol=1e-6, atol=1e-8)  # of 1/2 (x - b a x)^2
    assert_close(d_b, -a * (1 - a * b) * x.square().mean(), rtol=1e-6, atol=1e-8)
    z, logit = a * x, lambda z: c * z + w * z.square()
    up, down = logit(real).sigmoid() - 1, logit(z).sigmoid()  # the prior's draws are the positive ones
    assert_close(d_c, (up * real + down * z).mean(), rtol=1e-6, atol=1e-8)
    assert_close(d_w, (up * real.square() + down * z.square()).mean(), rtol=1e-6, atol=1e-8)
    assert_close(adversarial, 3 * ((logit(z).sigmoid() - 1) * (c + 2 * w * z) * x).mean(), rtol=1e-6, atol=1e-8)


def test_at_the_best_discriminator_the_game_lowers_the_jensen_shannon_divergence():
    """D* = log p(z) - log q(z): the minimax update's gradient is that of 2 JSD(p, q), here of two Gaussians."""
    n = 4001
    e = torch.tensor([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)], dtype=torch.float64)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, 0.6))

    def log_normal(z, m, s):
        return -0.5 * ((z - m) / s).square() - s.log() - 0.5 * math.log(2 * math.pi)

    one, nought = torch.ones(()).double(), torch.zeros(()).double()
    codes = m + s * e
    best = log_normal(codes, nought, one) - log_normal(codes, m.detach(), s.detach())
    game = torch.autograd.grad(Minimax().generator(best), (m, s))
    log_p, log_q = log_normal(z, nought, one), log_normal(z, m, s)
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    both = log_p.exp() * (log_p - middle) + log_q.exp() * (log_q - middle)
    divergence = torch.autograd.grad(torch.trapezoid(both, z), (m, s))
    for mine, theirs in zip(game, divergence, strict=True):
        assert_close(mine, theirs, rtol=2e-3, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- capabilities


@pytest.mark.parametrize("name", METHODS)
def test_what_it_offers_works(name, tmp_path):
    model = fit(METHODS[name], 2, tmp_path).model
    x, z = torch.randn(5, 2), model.noise(5, torch.Generator().manual_seed(0))
    assert z.shape == (5, model.latent_dim) and model.decode(z).shape == model.reconstruct(x).shape == x.shape
    rng = torch.Generator().manual_seed
    assert model.sample(4, rng=rng(1)).shape == (4, 2)
    assert torch.equal(model.sample(4, rng=rng(1)), model.sample(4, rng=rng(1)))
    assert model.encode(x).shape == (5, 3 if name == "supervised" else model.latent_dim)
    offered = {c for c in CAPABILITIES if model.can(c)}
    extra = {"semi": {"cluster", "classify"}, "clusters": {"cluster"}}
    assert offered == {"sample", "encode", "decode", "reconstruct"} | extra.get(name, set())
    assert bool(model.given) == (name.split()[0] in ("informed", "supervised", "semi"))
    if model.one_hot_latents:
        classes = 5 if name == "clusters" else 8
        walks = go_through(model.noise(3, rng(2)), model.one_hot_latents)
        sheet = model.decode(walks.flatten(0, 1)).unflatten(0, (3, classes))
        assert sheet.shape == (3, classes, 2) and not torch.equal(sheet[:, 0], sheet[:, 1])
    if model.given:
        y = torch.tensor([1, 1, 3])
        a, b = (model.sample(3, Batch({"y": each}), rng(3)) for each in (y, torch.tensor([1, 1, 4])))
        assert torch.equal(a[:2], b[:2]) and not torch.equal(a[2], b[2])
    if "cluster" in offered:
        assert model.cluster(x).shape == (5, model.categories)


def test_a_supervised_reconstruction_has_the_likeliest_class(tmp_path):
    model = fit([*METHODS["supervised"], "ema.decay=0"], 30, tmp_path).model
    x = next(iter(model.trainer.datamodule.batches("val", 20))).x
    with model.inference():
        each = [
            model.likelihood.mean(model.decoder(model.joined(model.encoder(x), torch.full((20,), y)))) for y in range(8)
        ]
    errors = torch.stack([(x - recon).square().sum(dim=1) for recon in each])
    assert_close((x - model.reconstruct(x)).square().sum(dim=1), errors.min(dim=0).values)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*PLAIN, "prior=gaussian_mixture", "model.label_informed=true"], "a part for each of 8 classes"),
        ([*PLAIN, "model.label_informed=true"], "a part for each of 8 classes"),
        ([*PLAIN, "data=swiss_roll", "model.label_informed=true"], "needs data with labels"),
        ([*PLAIN, "model.latent_dim=3", "prior=gaussian_mixture"], "lies in the plane, got model.latent_dim=3"),
        ([*PLAIN, "prior=vamp", "posterior=diagonal"], "this one is learned"),
        (["model=aae_supervised", *SMALL[1:], "data=swiss_roll"], "needs data with classes"),
        ([*METHODS["semi"], "model.label_weight=-1"], "label_weight must be a number of at least 0"),
        ([*METHODS["clusters"], "model.recon_weight=-1"], "must be a number of at least 0"),
        (["model=vae", *RING, "posterior=universal"], "no density"),
    ],
)
def test_it_refuses(overrides, words):
    with pytest.raises(UserError, match=words):
        build(config(overrides))


def test_it_refuses_data_whose_labels_are_left_out(tmp_path):
    with pytest.raises(UserError, match="data.labels=true"):
        fit([*METHODS["supervised"], "data.labels=false"], 1, tmp_path)


@pytest.mark.parametrize("name", ["informed roll", "supervised", "semi"])
def test_it_resumes_bit_for_bit(name, tmp_path):
    whole = fit(METHODS[name], 6, tmp_path / "whole")
    fit(METHODS[name], 3, tmp_path / "cut")
    resumed = fit(METHODS[name], 6, tmp_path / "on", resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert moved(whole.model.state_dict(), resumed.model.state_dict()) == set()


# ------------------------------------------------------------------------------------------------------------ learning


def test_codes_become_the_prior(tmp_path):
    """Digits, two latents: means near 0, variances near 1 on all samples, and reconstructions better than the mean."""
    overrides = ["model=aae", "data=digits", "network=mlp", "network.hidden=[64,64]", "model.latent_dim=2"]
    overrides += ["model.latent_discriminator.hidden=[64,64]", "data.batch_size=64"]
    fitted = fit(overrides, 300, tmp_path)
    x = next(iter(fitted.data.batches("train", 2000))).x
    z = fitted.model.encode(x)
    assert z.mean(dim=0).abs().max() < 0.35, z.mean(dim=0)
    assert ((z.var(dim=0) > 0.5) & (z.var(dim=0) < 1.5)).all(), z.var(dim=0)
    error = (fitted.model.reconstruct(x) - x).square().mean()
    assert error < 0.85 * (x - x.mean(dim=0)).square().mean()


def test_without_labels_nothing_but_the_unsupervised_updates_is_left(tmp_path):
    """A batch in which no sample has a label has no cross-entropy, and a finite one."""
    memory = Memory()
    overrides = [*METHODS["semi"], "data.num_labelled=8", "trainer.log_every_n_steps=1"]
    fit(overrides, 2, tmp_path, trainer={"logger": [memory]})
    assert memory.curves["train/cross_entropy"] == {1: 0.0, 2: 0.0}


def test_weights_of_zero_leave_the_classifier_alone(tmp_path):
    """The baseline: the encoder on the cross-entropy of labelled samples, nobody else moves."""
    alone = [*METHODS["semi"], "model.recon_weight=0", "model.adversarial_weight=0"]
    start = {}
    fitted = fit(alone, 3, tmp_path, before=lambda model: start.update(snapshot(model)))
    now = snapshot(fitted.model)
    assert moved(start["encoder"], now["encoder"])
    assert not moved(start["category_discriminator"], now["category_discriminator"])
    assert not moved(start["style_discriminator"], now["style_discriminator"])
    assert {name for name in moved(start["decoder"], now["decoder"]) if "body.2" not in name} == set()  # `initialise`
    assert list(fitted.model.watching.recorded) and "recon" not in fitted.model.watching.recorded


def test_the_head_learns_from_few_labels(tmp_path):
    """Ring, one label in ten: nearly every point falls to its mode's class."""
    overrides = [*METHODS["semi"], "data.num_labelled=10000", "data.batch_size=64", "model.e_optimizer.lr=0.01"]
    fitted = fit([*overrides, "model.recon_weight=0.01", "ema.decay=0"], 150, tmp_path)
    batch = next(iter(fitted.data.batches("test", 1000)))
    assert (fitted.model.classify(batch.x).argmax(dim=1) == batch.y).float().mean() > 0.9
