"""Unrolling: the bilinear game in closed form, the optimizer's own steps, and the plain GAN at K = 0."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from genlab.models.unrolled import check_unrollable, unroll
from genlab.runs.running import build
from tests.models.helpers import SGD, Each, assert_moves, config, fit, moved, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
RING = ["data=ring", "network.hidden=[16]", "model.latent_dim=8"]
BOTH = ["discriminator", "generator"]


def value(number, requires_grad=False):
    return torch.tensor(number, dtype=torch.float64, requires_grad=requires_grad)


# --------------------------------------------------------------------------------------------- f = theta_G * theta_D


def bilinear(theta_g, theta_d, steps):
    """f_K, whose discriminator raises f by gradient ascent with a rate of 0.1."""
    optimizer = torch.optim.SGD([theta_d], lr=0.1)
    (theta_k,) = unroll(lambda theta: -theta_g * theta[0], [theta_d], optimizer, steps)
    return theta_g * theta_k


def test_the_bilinear_game():
    """theta_D^5 = theta_D + 5 * 0.1 theta_G, so f_5 = 1 and df_5/dtheta_G = theta_D + 2 * 5 * 0.1 theta_G = 1.5."""
    theta_g, theta_d = value(1.0, True), nn.Parameter(value(0.5))
    f = bilinear(theta_g, theta_d, 5)
    assert_close(f, value(1.0))
    (slope,) = torch.autograd.grad(f, theta_g)
    assert_close(slope, value(1.5))  # 1.0 if the second term of Eq. 9 is dropped
    assert_close(theta_d.detach(), value(0.5))  # and nothing has moved


def test_inner_steps_are_clipped():
    """theta_D rises by at most 0.1 * 0.25 a step, whatever theta_G: 0.125 after five, without a slope."""
    theta_g, theta_d = value(1.0, True), nn.Parameter(value(0.5))
    optimizer = torch.optim.SGD([theta_d], lr=0.1)
    (theta_k,) = unroll(lambda theta: -theta_g * theta[0], [theta_d], optimizer, 5, clip=0.25)
    assert_close(theta_k, value(0.625), rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(theta_g * theta_k, theta_g)
    assert_close(slope, value(0.625), rtol=1e-5, atol=0)


def test_the_run_s_clipping_reaches_the_inner_steps(tmp_path):
    """With both players moving at once, the first loss of the generator knows of clipping by its inner steps alone."""
    gains = {}
    plain = ["model.d_optimizer._target_=torch.optim.SGD", "~model.d_optimizer.betas"]  # Adam heeds no scale
    for clip in ("null", "1e6", "1e-3"):
        each = Each(lambda model: float(model.watching.recorded["gain"]))
        fit(
            ["model=unrolled", *RING, *plain, "model.simultaneous=true", f"optim.clip={clip}"],
            1,
            tmp_path / clip,
            [each],
        )
        gains[clip] = each.seen[0]
    assert gains["null"] == gains["1e6"]
    assert gains["1e-3"] != gains["null"]


@pytest.mark.parametrize(("steps", "radius"), [(0, 3.825), (1, 0.565), (5, 0.00015)])
def test_two_hundred_simultaneous_steps(steps, radius):
    theta_g, theta_d = value(1.0, True), nn.Parameter(value(1.0))
    for _ in range(200):
        (g,) = torch.autograd.grad(bilinear(theta_g, theta_d, steps), theta_g)
        up = theta_g.detach()
        with torch.no_grad():
            theta_d += 0.1 * up
            theta_g = (theta_g - 0.1 * g).detach().requires_grad_()
    found = math.hypot(theta_g.item(), theta_d.item())
    assert found == pytest.approx(radius, abs=0.0005 if steps < 5 else 0.000005)


class Point(nn.Module):
    """A generator of one parameter: every sample is theta_G."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, z):
        return self.theta.expand(len(z), 1)


class Slope(nn.Module):
    """A discriminator of one parameter: theta_D x."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x[:, 0] * self.theta


@pytest.mark.parametrize(("steps", "radius"), [(0, 3.825), (1, 0.565), (5, 0.00015)])
def test_the_model_plays_it_alike(steps, radius, tmp_path):
    """The same game through the Trainer: f = -loss.discriminator of `wasserstein` at real samples of 0."""
    here = "tests.models.test_models_unrolled"
    sgd = {**SGD, "lr": 0.1}
    model = config(["model=unrolled", "data=ring", "loss=wasserstein", f"model.unroll_steps={steps}"])["model"]
    model.update(g_optimizer=sgd, d_optimizer=sgd, generator={"_target_": f"{here}.Point"})
    model["discriminator"] = {"_target_": f"{here}.Slope"}

    def before(model):
        step = model.training_step

        def at_zero(batch, batch_idx):
            step(batch.with_column("x", torch.zeros_like(batch.x)), batch_idx)

        model.training_step = at_zero
        model.double()
        with torch.no_grad():
            model.discriminator.theta.fill_(-1.0)  # f = -theta_G theta_D here

    fitted = fit(["data=ring"], 200, tmp_path, before=before, model=model, trainer={"precision": "64-true"})
    found = math.hypot(fitted.model.generator.theta.item(), fitted.model.discriminator.theta.item())
    assert found == pytest.approx(radius, abs=0.0005 if steps < 5 else 0.000005)


# --------------------------------------------------------------------------------------------------- optimizers' steps


@pytest.mark.parametrize("made", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("warm", [0, 3])
def test_the_steps_are_the_optimizers_own(made, warm):
    """theta^K is where K real steps lead, also from an optimizer that has a past; and neither is touched."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), torch.randn(6, 3).double()
    optimizer = made(net.parameters(), lr=0.05)

    def loss(theta):
        names = [name for name, _ in net.named_parameters()]
        return torch.func.functional_call(net, dict(zip(names, theta, strict=True)), (x,)).square().mean()

    def real_steps(n):
        for _ in range(n):
            optimizer.zero_grad()
            loss(list(net.parameters())).backward()
            optimizer.step()

    real_steps(warm)
    before = [p.detach().clone() for p in net.parameters()]
    theta = unroll(loss, list(net.parameters()), optimizer, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    real_steps(4)
    for mine, theirs in zip(theta, net.parameters(), strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("made", [torch.optim.SGD, torch.optim.Adam])
def test_gradients_go_through_all_steps(made):
    """By finite differences, in what the loss depends on besides the parameters."""
    theta = [nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))]

    def end(x):
        return unroll(lambda t: (t[0] * x).sin().sum() + t[0].square().sum(), theta, made(theta, lr=0.1), 3)[0]

    assert torch.autograd.gradcheck(end, (value([0.5, 1.2], True),))


def test_a_gradient_of_zero_is_no_nan():
    """Adam's square root has an infinite slope at 0, where a dead unit is."""
    theta, x = [nn.Parameter(torch.zeros(2))], torch.zeros(2, requires_grad=True)
    unroll(lambda t: (t[0] * x).square().sum(), theta, torch.optim.Adam(theta), 2)[0].sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda p: torch.optim.RMSprop(p), "RMSprop"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "SGD with momentum"),
        (lambda p: torch.optim.AdamW(p), "AdamW with weight_decay"),
    ],
)
def test_other_optimizers_are_refused(make, what):
    with pytest.raises(ValueError, match=f"got {what}"):
        check_unrollable(make([torch.nn.Parameter(torch.zeros(1))]))


# ----------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("simultaneous", [True, False])
def test_each_update_moves_one_player_alone(simultaneous, tmp_path):
    overrides = ["model=unrolled", *RING, "model.unroll_steps=2", f"model.simultaneous={simultaneous}"]
    assert_moves(overrides, BOTH * 3, 3, tmp_path)


@pytest.mark.parametrize("data", [RING, ["data=digits", "model.latent_dim=8", "network.generator.hidden=[16]"]])
def test_without_steps_it_is_the_plain_gan(data, tmp_path):
    """K = 0, bit for bit, with spectral norm and batch norm too; any step more is another game."""
    alike = [*data, "model.g_optimizer.lr=1e-3", "model.d_optimizer.lr=1e-3", "loss=minimax"]
    alike += ["model.g_optimizer.betas=[0.5,0.999]", "model.d_optimizer.betas=[0.5,0.999]"]
    plain = snapshot(fit(["model=gan", *alike], 4, tmp_path / "gan").model)
    for steps in (0, 1):
        overrides = ["model=unrolled", *alike, f"model.unroll_steps={steps}", "model.simultaneous=false"]
        unrolled = snapshot(fit(overrides, 4, tmp_path / str(steps)).model)
        assert any(moved(plain[player], unrolled[player]) for player in plain) == (steps > 0)


def test_the_statistics_of_the_discriminator_are_those_of_the_plain_gan(tmp_path):
    """Inner steps leave no trace in running means or power iterations, however many there are."""
    counts = {}
    for steps in (0, 3):
        overrides = ["model=unrolled", "data=digits", "network=dcgan", "network.width=4", f"model.unroll_steps={steps}"]
        each = Each(lambda model: model.discriminator.trunk[3].num_batches_tracked.item())
        fit([*overrides, "model.latent_dim=8", "data.image_size=16"], 2, tmp_path / str(steps), [each])
        counts[steps] = each.seen
    assert counts[0] == counts[3] == [3, 6]


def test_it_learns(tmp_path):
    """With the discriminator's answer in view the samples come near the ring from a start at the centre."""
    overrides = ["model=unrolled", "data=ring", "network.hidden=[32]", "model.latent_dim=2", "data.batch_size=64"]
    overrides += ["model.d_optimizer.lr=5e-3", "model.unroll_steps=2", "ema.decay=0"]
    each = Each(lambda m: (m.sample(200, rng=torch.Generator().manual_seed(0)).norm(dim=1) - 2).abs().mean().item())
    fit(overrides, 130, tmp_path, [each])
    assert each.seen[0] > 1.4 and each.seen[-1] < 0.95, (each.seen[0], each.seen[-1])


def test_it_refuses_a_negative_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="unroll_steps must be a whole number of at least 0"):
        fit(["model=unrolled", *RING, "model.unroll_steps=-1"], 1, tmp_path)


def test_processes_unroll_alike_with_drawn_labels():
    """All see the whole batch, so that labels must be those of the whole batch too, as one process would draw them."""
    model = build(config(["model=unrolled", *RING, "loss.real_labels=[0.5,1.0]", "loss.flip=0.3"])).model
    x_real, x_fake = torch.randn(2, 8, 2)
    model.loss.adopt(model)
    player = model.turn("discriminator")
    player.optimizer = SimpleNamespace(optimizer=torch.optim.Adam(player.parameters))
    model.gathered = lambda x: x  # whole already

    def unrolled(rank, world):
        model.stream.rank, model.stream.world = rank, world
        model.rng.manual_seed(3)
        return float(model.unrolled_loss(x_real, x_fake).detach()), model.rng.get_state(), model.rand(2)

    alone, first, second = unrolled(0, 1), unrolled(0, 2), unrolled(1, 2)
    assert first[0] == second[0] == alone[0]
    assert torch.equal(first[1], alone[1]) and torch.equal(second[1], alone[1])
    assert not torch.equal(first[2], second[2])  # other draws are each process's own
