"""PixelVAE: a likelihood that is a PixelCNN of the decoder's feature map, and latents that free bits keep in use."""

import copy

import pytest
import torch
from torch.testing import assert_close

import genlab
from genlab.errors import UserError
from genlab.metrics.likelihood import active_units, importance_bounds
from genlab.networks.autoregressive import Autoregressive
from genlab.runs import start
from tests.models.helpers import assert_moves, config, fit, moved

pytestmark = pytest.mark.usefixtures("one_thread")
PIXEL = ["model=pixelvae", "data=digits", "data.binarize=static", "network=mlp", "network.hidden=[32]",
         "model.latent_dim=5", "likelihood.levels=2", "likelihood.features=4", "likelihood.width=8",
         "likelihood.layers=2", "likelihood.kernel=3", "likelihood.hidden=8"]  # fmt: skip


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def binary(*shape):
    return (torch.rand(*shape, generator=rng(), dtype=torch.float64) < 0.4).double() * 2 - 1


def likelihood(shape, levels=2, features=3):
    """One with weights far from zero, in float64."""
    torch.manual_seed(0)
    made = Autoregressive(shape, levels, features, width=8, layers=4, kernel=3, hidden=8).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made.eval()


# ------------------------------------------------------------------------------------------------------- the likelihood


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 1, 2)])
def test_the_probabilities_of_all_images_sum_to_one(shape):
    """All 2^6 binary images, grey or coloured, for each of three latents' feature maps."""
    p = likelihood(shape)
    c, h, w = shape
    images = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6).view(-1, *shape)
    for seed in range(3):
        raw = torch.randn(1, 3 * c, h, w, generator=rng(seed), dtype=torch.float64)
        total = p.log_prob(images, raw.expand(64, -1, -1, -1)).exp().sum()
        assert_close(total, torch.ones_like(total))


def test_draws_have_these_probabilities():
    p = likelihood((1, 2, 2))
    raw = torch.randn(1, 3, 2, 2, generator=rng(), dtype=torch.float64)
    x = p.sample(raw.expand(20_000, -1, -1, -1), rng())
    drawn = ((x > 0).flatten(1).long() @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16) / 20_000
    images = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4).view(-1, 1, 2, 2)
    assert_close(drawn.double(), p.log_prob(images, raw.expand(16, -1, -1, -1)).exp(), rtol=0, atol=0.015)


def test_a_pixel_depends_on_those_before_it_and_on_the_features():
    """log p(x_i | ...) is read off as a difference: later pixels change nothing, each pixel's own features do."""
    p, x = likelihood((1, 4, 4), levels=256), torch.randint(256, (1, 1, 4, 4), generator=rng()) / 127.5 - 1
    raw = torch.randn(1, 3, 4, 4, generator=rng(), dtype=torch.float64, requires_grad=True)
    tokens = (x.double().flatten() * 127.5 + 127.5).round().long().view(1, 4, 4)
    logits = p.network(tokens, p.context(raw))
    for i in range(16):
        other = tokens.flatten().clone()
        other[i:] = 255 - other[i:]
        again = p.network(other.view(1, 4, 4), p.context(raw))
        assert_close(again.flatten(2)[..., : i + 1], logits.flatten(2)[..., : i + 1], rtol=0, atol=1e-12)
        assert i == 15 or not torch.allclose(again.flatten(2)[..., i + 1 :], logits.flatten(2)[..., i + 1 :])
        (into,) = torch.autograd.grad(logits.flatten(2)[..., i].square().sum(), raw, retain_graph=True)
        assert into[0, :, i // 4, i % 4].abs().sum() > 0
    (whole,) = torch.autograd.grad(p.log_prob(x.double(), raw).sum(), raw)
    assert (whole.abs().sum(dim=1) > 0).all()


def test_colours_have_features_of_their_own():
    p = likelihood((3, 2, 2), features=5)
    raw = torch.randn(2, 15, 2, 2, generator=rng(), dtype=torch.float64)
    context = p.context(raw)
    assert context.shape == (2, 5, 2, 6)
    for f in range(5):
        for c in range(3):
            assert_close(context[:, f, 1, 3 + c], raw[:, 3 * f + c, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"levels": 17}, UserError, "likelihood.levels must be 256, or 2"),
        ({"features": 0}, UserError, "likelihood.features"),
        ({"raw_shape": [4, 8, 8]}, ValueError, "raw_shape must be"),
    ],
)
def test_mistakes(arguments, error, words):
    with pytest.raises(error, match=words):
        Autoregressive((1, 8, 8), **arguments)


# ------------------------------------------------------------------------------------------------------------ the model


def test_one_player_moves(tmp_path):
    assert_moves([*PIXEL, "data.batch_size=32"], ["vae"] * 2, 2, tmp_path)


def test_the_objective_by_hand(tmp_path):
    """loss = -E log p(x | z) + sum_u max(lambda, mean KL_u); the ELBO has the KL itself, whatever the free bits."""
    model = fit([*PIXEL, "kl.nats=0.3"], 2, tmp_path).model.double().eval()
    x = binary(6, 1, 8, 8)
    terms, q = model.objective(x, rng(4)), model.posterior(x)
    kl = 0.5 * (q.mu.square() + q.logvar.exp() - 1 - q.logvar)
    z = q.mu + (q.logvar / 2).exp() * torch.randn(6, 5, generator=rng(4), dtype=torch.float64)
    logits = model.likelihood.network((x.squeeze(1) > 0).long(), model.likelihood.context(model.decoder(z)))
    chosen = logits.log_softmax(dim=1).gather(1, (x > 0).long()).sum(dim=(1, 2, 3))
    assert_close(terms["recon"], -chosen.mean())
    assert_close(terms["loss"], -chosen.mean() + kl.mean(dim=0).clamp_min(0.3).sum())
    assert_close(terms["elbo"], (chosen - kl.sum(dim=1)).mean())


def test_it_resumes_bit_for_bit(tmp_path):
    whole = fit(PIXEL, 6, tmp_path / "whole")
    fit(PIXEL, 3, tmp_path / "cut")
    resumed = fit(PIXEL, 6, tmp_path / "on", resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert moved(whole.model.state_dict(), resumed.model.state_dict()) == set()


def test_samples_of_a_run(tmp_path):
    """New pixels for the same seed's latents only with other random numbers; reconstructions are functions of x."""
    start.train(config(PIXEL, 3), tmp_path / "run")
    model = genlab.load(tmp_path / "run")
    x = model.sample(6, rng=rng())
    assert x.shape == (6, 1, 8, 8) and (x.abs() == 1).all()
    assert torch.equal(x, model.sample(6, rng=rng())) and not torch.equal(x, model.sample(6, rng=rng(1)))
    z = torch.zeros(4, 5)
    assert model.decode(z).unique(dim=0).shape[0] == 1  # the same noise for all
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))
    assert model.likelihood.support == "binary"


@pytest.mark.parametrize("other", ["iwae", "gumbel"])
def test_other_models_take_the_likelihood_too(other, tmp_path):
    """Their samples are draws as well."""
    overrides = [f"model={other}", "likelihood=pixelcnn", *[o for o in PIXEL[1:] if "latent" not in o]]
    overrides += ["model.k=2"] if other == "iwae" else ["model.variables=2"]
    model = fit(overrides, 2, tmp_path).model
    assert (model.sample(3, rng=rng()).abs() == 1).all()


def test_free_bits_keep_units_active(tmp_path):
    """The same training with and without: without, the PixelCNN says it all alone; the bound does not suffer."""
    found = {}
    quick = ["model.optimizer.lr=0.005", "data.batch_size=64", "data.limit_train=400", "likelihood.layers=4"]
    for nats in (0.0, 1.0):
        fitted = fit([*PIXEL, *quick, f"kl.nats={nats}"], 150, tmp_path / str(nats))
        x = torch.cat([b.x for b in fitted.data.batches("val", 180)])
        bounds = importance_bounds(fitted.model, [x], samples=20)
        units = active_units(fitted.model.encode(x).cpu())["active_units"]
        found[nats] = (units, bounds.kl.mean().item(), bounds.iwae.mean().item())
    assert found[1.0][0] == 5 and found[1.0][1] > 3
    assert found[0.0][1] < 1
    assert found[1.0][2] > -27.3  # independent pixels: -27.4


@pytest.mark.parametrize("what", ["data.limit_train=1", "data.batch_size=1", "model.latent_dim=1", "grey", "bf16"])
def test_extremes_train_without_nan(what, tmp_path):
    extra = {"bf16": [], "grey": ["data.binarize=none", "likelihood.levels=256"]}.get(what, [what])
    fitted = fit([*PIXEL, *extra], 12, tmp_path, trainer={"precision": "bf16-mixed"} if what == "bf16" else {})
    assert all(value.isfinite().all() for value in copy.deepcopy(fitted.model.state_dict()).values())
