"""DRAW: its filters against the paper's numbers, its terms by hand, its canvas."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from genlab.cli.visualize import visualize
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.losses.likelihoods import Bernoulli
from genlab.metrics.likelihood import importance_bounds
from genlab.models.draw import DRAW
from genlab.networks.draw import Attention, filterbank
from genlab.runs.running import build
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, weights
from tests.models.helpers import assert_moves, fit

pytestmark = pytest.mark.usefixtures("one_thread")
N, SHAPE, T, Z, HIDDEN = 5, (2, 6, 8), 3, 4, 7  # all unequal: an axis taken for another shows
SMALL = ["model=draw", "data=digits", "data.batch_size=16", "model.hidden=16", "model.steps=3", "model.latent_dim=2"]
QUIET = ["metrics=none", "callbacks=none", "logger=none", "trainer=cpu", "threads=1"]


def model(shape=SHAPE, steps=T, read=2, write=3):
    torch.manual_seed(0)
    made = DRAW(shape, Bernoulli(), steps, Z, HIDDEN, read_size=read, write_size=write).double()
    with torch.no_grad():
        made.canvas["start"].normal_()
    return made


def images(n=N, shape=SHAPE):
    uniform = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 2 * (uniform < 0.5).double() - 1


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------- the filters


def test_rows_of_filters_sum_to_one_wherever_they_lie():
    centre, stride = torch.tensor([3.0, -500.0, 9000.0]), torch.tensor([1.0, 0.01, 40.0])
    bank = filterbank(centre, stride, torch.tensor([1e-3, 0.1, 50.0]), 4, 11)
    assert bank.shape == (3, 4, 11) and bank.isfinite().all()
    assert_close(bank.sum(dim=2), torch.ones(3, 4))


def test_centres_of_filters_are_the_papers():
    """28 pixels, 5 filters, all numbers 0: the filters span the image, and lie at 1, 7.75, 14.5, 21.25, 28."""
    numbers = torch.zeros(1, 5, dtype=torch.float64)
    numbers[0, 2] = 2  # wide filters, whose mean in the middle of the image is their centre
    window = Attention(3, (1, 28, 28), 5).double().window(numbers)
    assert_close((window.rows[0] @ torch.arange(1.0, 29).double())[2], torch.tensor(14.5).double())
    numbers[0, 2] = -6
    means = Attention(3, (1, 28, 28), 5).double().window(numbers).columns[0] @ torch.arange(1.0, 29).double()
    assert_close(means[[0, 2, 4]], torch.tensor([1.0, 14.5, 28.0]).double())
    assert_close(means[[1, 3]], torch.tensor([8.0, 21.0]).double(), atol=1e-6, rtol=0)  # the pixels next to them


def test_filters_by_the_formula():
    """Eq. 19 and 25 for one filter, with the paper's normalisation."""
    bank = filterbank(*(torch.tensor([v], dtype=torch.float64) for v in (4.2, 1.5, 0.8)), 3, 9)
    for i in range(1, 4):
        mean = 4.2 + (i - 3 / 2 - 0.5) * 1.5
        row = torch.tensor([np.exp(-((a - mean) ** 2) / 1.6) for a in range(1, 10)])
        assert_close(bank[0, i - 1], row / row.sum())


def test_a_window_of_the_images_size_shows_the_image():
    """As many filters as pixels, one pixel apart and narrow: looking gives the image, and stamping gives it back."""
    x = images(3, (2, 6, 6))
    window = Attention(4, (2, 6, 6), 6).double().window(torch.tensor([[0.0, 0, -6, 0, 0]] * 3, dtype=torch.float64))
    assert_close(window.look(x), x, rtol=0, atol=1e-12)
    assert_close(window.stamp(x), x, rtol=0, atol=1e-12)
    bright = window._replace(gain=torch.full((3,), 2.0, dtype=torch.float64))
    assert_close(bright.look(x), 2 * x)
    assert_close(bright.stamp(bright.look(x)), x)


def test_a_window_follows_its_centre():
    """One bright pixel right of the middle, above it: found by going there, and nowhere else."""
    x = torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    x[0, 0, 1, 6] = 1
    attention = Attention(4, (1, 6, 8), 1).double()
    at = [[7 / 4.5 - 1, 2 / 3.5 - 1], [2 / 4.5 - 1, 2 / 3.5 - 1], [7 / 4.5 - 1, 5 / 3.5 - 1]]
    found = [attention.window(torch.tensor([[*place, -6, 0, 0]], dtype=torch.float64)).look(x).item() for place in at]
    assert found == pytest.approx([1, 0, 0], abs=1e-9)


def test_attention_is_differentiable():
    torch.manual_seed(0)
    x, numbers = torch.randn(2, 2, 5, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    patch = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    attention = Attention(4, (2, 5, 4), 3).double()
    numbers.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: attention.window(v).look(x), numbers)
    assert torch.autograd.gradcheck(lambda v: attention.window(v).stamp(patch), numbers)
    extreme = torch.full((2, 5), 1e4, requires_grad=True, dtype=torch.float64)
    attention.window(extreme).look(x).sum().backward()
    assert extreme.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize(("read", "write"), [(2, 3), (None, None), (2, None)])
def test_the_bound_is_the_last_canvas_and_the_kl_of_all_steps(read, write):
    made, x = model(read=read, write=write), images()
    terms = made.objective(x, rng(3))
    done = made.unroll(made.randn(N, T * Z, rng=rng(3)), x)
    kl = sum(
        kl_divergence(Normal(q.mu, (0.5 * q.logvar).exp()), Normal(0.0, 1.0)).sum(dim=1) for q in done.posteriors
    ).mean()
    p = torch.sigmoid(done.canvases[-1])
    recon = -torch.where(x > 0, p, 1 - p).log().sum(dim=(1, 2, 3)).mean()
    assert_close(terms["kl"], kl)
    assert_close(terms["recon"], recon)
    assert_close(terms["elbo"], -(recon + kl))
    assert_close(terms["loss"], -terms["elbo"])


def test_kl_is_zero_at_the_prior():
    """A constant that is dropped once a step shows here."""
    made = model()
    torch.nn.init.zeros_(made.posterior.weight), torch.nn.init.zeros_(made.posterior.bias)
    assert made.objective(images(), rng())["kl"].item() == 0


def test_one_step_without_attention_is_a_vae():
    """Encoder: a linear map, an LSTM from zero; decoder the same; the rest is the VAE's objective, by hand."""
    made, x = model(steps=1, read=None, write=None), images()

    def lstm(cell, value):
        i, _, g, o = (value @ cell.weight_ih.T + cell.bias_ih + cell.bias_hh).chunk(4, dim=1)
        return o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()

    start = made.canvas["start"]
    error = x - (2 * start.sigmoid() - 1)
    seen = torch.cat([x, error], dim=1).flatten(1)
    features = lstm(made.encoder, torch.cat([seen, torch.zeros(N, HIDDEN)], dim=1))
    mu, logvar = (features @ made.posterior.weight.T + made.posterior.bias).chunk(2, dim=1)
    z = mu + (logvar / 2).exp() * made.randn(N, Z, rng=rng(5))
    raw = start + made.writer.patch(lstm(made.decoder, z)).view(N, *SHAPE)
    recon = torch.nn.functional.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="sum") / N
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum() / N
    terms = made.objective(x, rng(5))
    assert_close(terms["recon"], recon)
    assert_close(terms["kl"], kl)


def test_draws_and_densities_agree():
    """The importance weights' own ELBO is the objective's, and each log q that of the steps' Gaussians."""
    made, x = model(), images(2)
    z, log_q = made.sample_posterior(x, 3, rng(2))
    assert z.shape == (3, 2, T * Z) and log_q.shape == (3, 2)
    done = made.unroll(made.randn(6, T * Z, rng=rng(2)), torch.cat([x, x, x]))
    by_hand = sum(Normal(q.mu, (0.5 * q.logvar).exp()).log_prob(w).sum(1) for q, w in zip(*done[:0:-1], strict=True))
    assert_close(log_q.flatten(), by_hand)
    assert_close(made.log_prior(z[0]), Normal(0.0, 1.0).log_prob(z[0]).sum(dim=1))
    recon = made.likelihood.log_prob(x, made.unroll(z[0]).canvases[-1])
    assert_close(made.log_joint(x, z[0]), recon + made.log_prior(z[0]))
    bounds = importance_bounds(made, [x], samples=4000)
    exact = torch.stack([made.objective(x, rng(i))["elbo"] for i in range(2000)]).mean()
    assert_close(bounds.elbo.mean(), exact.detach(), rtol=0, atol=0.1)
    assert (bounds.iwae >= bounds.elbo).all()


def test_the_last_canvas_is_the_reconstruction_and_the_sample():
    made, x = model(), images()
    z = made.encode(x)
    assert z.shape == (N, T * Z)
    assert_close(made.decode(z), made.reconstruct(x))
    frames = made.frames(4, rng(1))
    assert frames.shape == (T + 1, 4, *SHAPE)
    assert_close(frames[0, 0], 2 * made.canvas["start"].sigmoid() - 1)
    assert_close(frames[-1], made.sample(4, rng=rng(1)))
    step = torch.logit((frames[1] + 1) / 2) - made.canvas["start"]
    assert_close(step, made.unroll(made.noise(4, rng(1))).canvases[0] - made.canvas["start"])


# --------------------------------------------------------------------------------------------------------------- a run


def test_all_parts_move(tmp_path):
    assert_moves(SMALL, ["draw"] * 2, 2, tmp_path)


def test_a_resumed_run_is_the_same(tmp_path):
    overrides = [*SMALL, *QUIET, "data.binarize=dynamic", "ema.decay=0.9"]
    train(compose([*overrides, "trainer.max_steps=6"]), tmp_path / "alone")
    train(compose([*overrides, "trainer.max_steps=3"]), tmp_path / "cut")
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    train(compose([*overrides, "trainer.max_steps=6"]), tmp_path / "cut", resume=checkpoint)
    assert_identical(weights(tmp_path / "alone"), weights(tmp_path / "cut"))


def test_the_canvas_is_an_animation_in_the_run_folder(tmp_path):
    overrides = [*SMALL, *QUIET[2:], "metrics=none", "trainer.max_steps=2", "callbacks.grid.num_samples=4"]
    train(compose(overrides), tmp_path)
    with Image.open(tmp_path / "samples.gif") as movie:
        assert movie.n_frames == 4  # the first canvas and three steps
    drawn = visualize({"run": str(tmp_path), "what": "frames,traversals", "n": 2})
    assert all(Image.open(path).size[0] > 100 for path in drawn.values()) and len(drawn) == 2


def test_a_model_without_steps_has_no_animation(tmp_path):
    train(compose(["model=vae", *QUIET[2:], "metrics=none", "trainer.max_steps=1", "network.hidden=[8]"]), tmp_path)
    assert (tmp_path / "samples.png").is_file() and not (tmp_path / "samples.gif").exists()
    with pytest.raises(UserError, match="frames"):
        visualize({"run": str(tmp_path), "what": "frames"})


@pytest.mark.parametrize(
    "odd", [["data.batch_size=1"], ["model.latent_dim=1"], ["model.steps=1"], ["model.read_size=null"],
            ["likelihood=gaussian"], ["model.write_size=null", "data.image_size=16"]]
)  # fmt: skip
def test_odd_sizes_train(odd, tmp_path):
    fit([*SMALL, *odd], 2, tmp_path)


def test_a_constant_image_trains():
    made = model()
    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    losses = []
    for i in range(60):
        loss = made.objective(x, rng(i))["loss"]
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["model.steps=0"], "model.steps"),
        (["model.read_size=0"], "model.read_size"),
        (["likelihood=logistic_mixture"], "likelihood=bernoulli"),
        (["data=ring", "likelihood=gaussian"], "images"),
    ],
)
def test_mistakes(wrong, words):
    with pytest.raises(UserError, match=words):
        build(compose([*SMALL, *QUIET, *wrong]))
