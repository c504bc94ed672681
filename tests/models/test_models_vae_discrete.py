"""Discrete latents: the Gumbel-softmax, vector quantisation, PixelCNN over pixels and over codes, in stages."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.metrics.likelihood import importance_bounds
from genlab.runs import running, start
from genlab.runs.folder import load_model
from tests.models.helpers import Memory, assert_moves, config, fit, moved

pytestmark = pytest.mark.usefixtures("one_thread")
GUMBEL = ["model=gumbel", "data=digits", "network=mlp", "network.hidden=[32]", "model.variables=3", "model.classes=4"]
VQ = ["model=vqvae", "data=digits", "model.encoder.width=16", "model.encoder.inner=8", "model.encoder.halvings=1",
      "model.codebook.codes=16", "model.codebook.dim=6"]  # fmt: skip
CNN = ["model=gated_pixelcnn", "data=digits", "data.binarize=dynamic", "model.levels=2", "model.network.width=12",
       "model.network.layers=4", "model.network.kernel=5", "model.network.hidden=16"]  # fmt: skip


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------ Gumbel-softmax


@pytest.mark.parametrize("straight", [False, True])
def test_categorical_steps_move_one_player(straight, tmp_path):
    assert_moves([*GUMBEL, f"model.straight_through={straight}"], ["vae"] * 2, 2, tmp_path)


def test_hard_draws_have_the_stated_frequencies_whatever_the_temperature(tmp_path):
    model = fit(GUMBEL, 3, tmp_path).model.double()
    x = torch.rand(1, 1, 8, 8, generator=rng(), dtype=torch.float64) * 2 - 1
    z, log_q = model.sample_posterior(x, 20_000, rng(1))
    assert z.shape == (20_000, 1, 12) and log_q.shape == (20_000, 1)
    assert ((z == 0) | (z == 1)).all() and (z.unflatten(2, (3, 4)).sum(dim=3) == 1).all()
    assert_close(z.mean(dim=0), model.encode(x), rtol=0, atol=0.015)
    own = (z * model.encode(x).log()).sum(dim=-1)
    assert_close(log_q, own)
    assert_close(model.log_prior(z), torch.full((20_000, 1), -3 * math.log(4), dtype=torch.float64))


def test_relaxed_draws_tend_to_the_hard_ones(tmp_path):
    """softmax((log pi + g) / tau) to one-hot argmax as tau falls; straight-through gives it in the forward pass."""
    model = fit([*GUMBEL, "model.min_temperature=0.0001"], 2, tmp_path).model.eval()
    x = torch.rand(50, 1, 8, 8, generator=rng()) * 2 - 1
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    gaps = []
    for temperature in (5.0, 0.5, 0.001):
        model.start_temperature = temperature
        seen.clear()
        model.objective(x, rng(3))  # the relaxed draw, then the hard one of the same noise
        gaps.append((seen[0] - seen[1]).abs().mean().item())
        assert_close(seen[0].unflatten(1, (3, 4)).sum(dim=2), torch.ones(50, 3))
    assert gaps[0] > 1.5 * gaps[1] > 30 * gaps[2]
    model.straight_through, model.start_temperature = True, 5.0
    seen.clear()
    model.objective(x, rng(3))
    assert_close(seen[0], seen[1], rtol=0, atol=1e-6)


def test_the_objective_by_hand(tmp_path):
    """loss = -E log p(x | z) + sum KL(Cat || uniform), summed per image; the ELBO takes the hard draws."""
    model = fit(GUMBEL, 2, tmp_path).model.double().eval()
    x = torch.rand(7, 1, 8, 8, generator=rng(), dtype=torch.float64) * 2 - 1
    terms = model.objective(x, rng(5))
    pi = model.logits(x).exp()
    kl = (pi * (pi.log() + math.log(4))).sum(dim=(1, 2)).mean()
    z = ((pi.log() + model.gumbel(7, rng(5))) / 1.0).softmax(dim=2).flatten(1)
    recon = -model.likelihood.log_prob(x, model.decoder(z)).mean()
    assert_close(terms["loss"], recon + kl)
    assert_close(terms["relaxed"], -terms["loss"])
    hard = model.one_hot(pi.log() + model.gumbel(7, rng(5)))
    assert_close(terms["elbo"], model.likelihood.log_prob(x, model.decoder(hard)).mean() - kl)


def test_the_temperature_follows_the_iteration(tmp_path):
    memory = Memory()
    overrides = [*GUMBEL, "model.annealing_rate=0.1", "model.anneal_every=2", "model.min_temperature=0.6"]
    fit([*overrides, "trainer.log_every_n_steps=1"], 8, tmp_path, trainer={"logger": [memory]})
    wanted = [max(0.6, math.exp(-0.1 * (t // 2 * 2))) for t in range(8)]
    assert list(memory.curves["train/temperature"].values()) == pytest.approx(wanted)
    assert set(memory.curves["train/elbo"]) == set(range(1, 9))


def test_a_categorical_vae_learns_and_its_relaxed_value_is_too_good(tmp_path):
    overrides = [*GUMBEL, "data.binarize=static", "model.optimizer.lr=0.003", "data.batch_size=64"]
    overrides += ["model.variables=10", "model.start_temperature=2", "model.annealing_rate=0"]
    fitted = fit(overrides, 300, tmp_path)
    x = torch.cat([b.x for b in fitted.data.batches("train", 400, limit=400)])
    with fitted.model.inference():
        terms = fitted.model.objective(x, rng())
    assert terms["elbo"] < terms["relaxed"]
    bounds = importance_bounds(fitted.model, [x], samples=30)
    assert -27.3 < bounds.elbo.mean() < bounds.iwae.mean() < -20  # independent pixels: -27.4
    assert abs(bounds.elbo.mean() - terms["elbo"]) < 0.4
    z = fitted.model.noise(5, rng())
    assert fitted.model.decode(z).shape == fitted.model.sample(5, rng=rng()).shape == (5, 1, 8, 8)


# ------------------------------------------------------------------------------------------------- vector quantisation


def test_gradients_of_the_vqvae(tmp_path):
    """Straight-through: the encoder gets the decoder's input gradient and the commitment's, the codebook nothing."""
    model = fit(VQ, 1, tmp_path).model.double()
    x = torch.rand(3, 1, 8, 8, generator=rng(), dtype=torch.float64) * 2 - 1
    captured = {}
    handle = model.encoder.register_forward_hook(lambda *args: captured.setdefault("z_e", args[2]).retain_grad())
    terms, *_ = model.terms(x)
    handle.remove()
    terms["loss"].backward()
    z_e = captured["z_e"]
    indices = model.codebook.nearest(z_e.detach().permute(0, 2, 3, 1).flatten(0, 2)).view(3, 4, 4)
    z_q = model.codebook.lookup(indices).permute(0, 3, 1, 2).clone().requires_grad_()
    recon = -model.likelihood.log_prob(x, model.decoder(z_q)).mean()
    (through,) = torch.autograd.grad(recon, z_q)
    assert_close(z_e.grad, through + 2 * 0.25 * (z_e - z_q).detach() / 3, rtol=1e-9, atol=1e-12)
    assert not list(model.codebook.parameters())
    assert set(model.codebook.state_dict()) == {"vectors", "counts", "sums"}


def test_the_vqvae_moves_one_player(tmp_path):
    assert_moves(VQ, ["autoencoder"] * 2, 2, tmp_path)


def test_the_loss_does_not_depend_on_the_batch_size(tmp_path):
    model = fit(VQ, 1, tmp_path).model.double().eval()
    x = torch.rand(3, 1, 8, 8, generator=rng(), dtype=torch.float64) * 2 - 1
    once, often = model.objective(x), model.objective(x.repeat(5, 1, 1, 1))
    for name in once:
        assert_close(once[name], often[name], msg=name)


def test_a_vqvae_resumes_to_the_same_codes(tmp_path):
    """4 + 4 iterations are 8, bit for bit, with dead codes that begin anew on the way; judging moves nothing."""
    overrides = [*VQ, "model.codebook.restart_below=0.6", "model.codebook.decay=0.5"]
    whole = fit(overrides, 8, tmp_path / "whole")
    fit(overrides, 4, tmp_path / "cut")
    resumed = fit(overrides, 8, tmp_path / "on", resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert moved(whole.model.state_dict(), resumed.model.state_dict()) == set()
    before = copy.deepcopy(resumed.model.state_dict())
    x = next(iter(resumed.data.batches("val", 20))).x
    tokens = resumed.model.tokens(x)
    assert_close(resumed.model.detokenise(tokens), resumed.model.reconstruct(x), rtol=0, atol=0)
    assert tokens.shape == (20, 4, 4) and tokens.dtype == torch.int64
    assert moved(before, resumed.model.state_dict()) == set()


def test_a_vqvae_learns_and_uses_its_codes(tmp_path):
    memory = Memory()
    overrides = [*VQ, "model.optimizer.lr=0.003", "data.batch_size=64", "trainer.log_every_n_steps=20"]
    fit([*overrides, "likelihood.sigma=0.5"], 200, tmp_path, trainer={"logger": [memory]})
    errors = list(memory.curves["train/squared_error"].values())
    assert errors[-1] < 0.25 * errors[0]
    assert memory.curves["train/codebook_perplexity"][200] > 8  # of 16


# ------------------------------------------------------------------------------------------------------------- PixelCNN


def test_a_pixelcnn_moves_one_player(tmp_path):
    assert_moves([*CNN, "data.batch_size=32"], ["pixelcnn"] * 2, 2, tmp_path)


def test_the_pixels_probabilities_sum_to_one(tmp_path):
    """All 2^6 images of 2 x 3 binary pixels."""
    model = fit(CNN, 1, tmp_path).model.double()
    images = torch.cartesian_prod(*[torch.tensor([0, 1])] * 6).view(-1, 2, 3)
    assert_close(model.log_prob(images).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_draws_follow_the_probabilities(tmp_path):
    model = fit([*CNN, "ema.decay=0"], 3, tmp_path).model.double().eval()
    with torch.no_grad():
        for p in model.network.parameters():
            p.mul_(1.5)
    model.spec = type(model.spec).of("image", (1, 2, 2))
    x = model.sample(20_000, rng=rng())
    assert ((x == 1) | (x == -1)).all()
    drawn = model.tokens(x).flatten(1) @ torch.tensor([8, 4, 2, 1])
    images = torch.cartesian_prod(*[torch.tensor([0, 1])] * 4).view(-1, 2, 2)
    with torch.no_grad():
        p = model.log_prob(images).exp()
    assert_close(torch.bincount(drawn, minlength=16) / 20_000, p, rtol=0, atol=0.015, check_dtype=False)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 5)])
def test_tokens_are_the_pixels_levels(shape, tmp_path):
    model = fit([*CNN, "model.levels=256", "data.binarize=none"], 1, tmp_path).model
    model.spec = type(model.spec).of("image", shape)
    levels = torch.randint(256, (6, *shape), generator=rng())
    x = levels / 127.5 - 1
    tokens = model.tokens(x)
    assert tokens.shape == (6, shape[1], shape[2] * shape[0])
    assert torch.equal(tokens[:, 1, : shape[0]], levels[:, :, 1, 0])  # red, green, blue of a pixel side by side
    assert_close(model.detokenise(tokens), x, rtol=0, atol=1e-6)


def test_judges_read_the_likelihood_itself(tmp_path):
    """One draw is all: the bound is log p(x), with k of 50 too."""
    fitted = fit(CNN, 5, tmp_path)
    x = next(iter(fitted.data.batches("val", 10))).x
    bounds = importance_bounds(fitted.model, [x], samples=50)
    assert bounds.samples == 1 and torch.equal(bounds.elbo, bounds.iwae)
    with fitted.model.inference():
        assert_close(bounds.elbo.float(), fitted.model.log_prob(fitted.model.tokens(x)), rtol=1e-4, atol=1e-4)
    assert fitted.model.likelihood.support == "binary"


@pytest.mark.parametrize("name", ["pixelcnn", "gated_pixelcnn"])
def test_a_pixelcnn_learns(name, tmp_path):
    overrides = [o for o in CNN if not o.startswith("model=")]
    overrides = [f"model={name}", *overrides, "model.optimizer.lr=0.01", "data.batch_size=64", "ema.decay=0.95"]
    fitted = fit(overrides, 60, tmp_path)
    x = torch.cat([b.x for b in fitted.data.batches("val", 180)])
    assert importance_bounds(fitted.model, [x], samples=1).elbo.mean() > -26.9  # independent pixels: -27.4


# --------------------------------------------------------------------------------------------------------------- stages


def staged(steps=4):
    prior = {
        "_target_": "genlab.models.pixelcnn.PixelCNN",
        "levels": 16,
        "network": {
            "_target_": "genlab.networks.pixelcnn.GatedPixelCNN",
            "levels": 16,
            "width": 8,
            "layers": 2,
            "kernel": 3,
            "hidden": 8,
        },
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
    }
    stages = [{"name": "vqvae"}, {"name": "prior", "model": prior}]
    return config([*VQ, "checkpoint.every_n_steps=2"], steps, stages=stages)


def test_codes_and_their_prior_by_one_command(tmp_path):
    """Two stages; the prior moves, the first stage does not; the folder of the second draws images alone."""
    start.train(staged(), tmp_path / "run")
    first = load_model(tmp_path / "run" / "vqvae")
    model = load_model(tmp_path / "run" / "prior")
    assert moved(first.state_dict(), model.first_stage.state_dict()) == set()
    x = model.sample(3, rng=rng())
    assert x.shape == (3, 1, 8, 8) and torch.equal(x, model.sample(3, rng=rng()))
    data = torch.rand(5, 1, 8, 8, generator=rng()) * 2 - 1
    bounds = importance_bounds(model, [data], samples=20)
    tokens = first.tokens(data)
    assert torch.equal(model.tokens(data), tokens)
    expected = first.log_likelihood(data, tokens) + model.log_prior(tokens.flatten(1))
    assert_close(bounds.elbo.float(), expected, rtol=1e-4, atol=1e-3)
    assert model.likelihood is model.first_stage.likelihood


def test_a_prior_of_codes_beats_the_uniform_code(tmp_path):
    """In bits per code, on the codes of validation images: below log2 16 and below the code of single frequencies."""
    whole = staged(120)
    whole["data"]["batch_size"] = 64
    whole["stages"][0]["trainer"] = {"max_steps": 60}
    result = start.train(whole, tmp_path / "run")
    model, data = result.model, running.build({**whole, "stages": None}).data
    x = torch.cat([b.x for b in data.batches("val", 200)])
    tokens = model.tokens(x)
    with model.inference():
        bits = -model.log_prob(tokens).mean() / (16 * math.log(2))
    train = model.tokens(torch.cat([b.x for b in data.batches("train", 400, limit=1200)]))
    frequency = (torch.bincount(train.flatten(), minlength=16) + 1).double()
    unigram = -(frequency / frequency.sum()).log2()[tokens].mean()
    assert bits < unigram - 0.1 < 4 - 0.1


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*GUMBEL, "model.classes=1"], "model.classes at least 2"),
        ([*GUMBEL, "model.min_temperature=0"], "Temperatures must be positive"),
        ([*GUMBEL, "model.latent_dim=7"], "variables \\* classes = 12"),
        ([*VQ, "model.commitment_weight=-1"], "commitment_weight"),
        ([*VQ, "model.encoder.halvings=4"], "multiples of 16"),
        ([*CNN, "model.levels=17"], "model.levels must be 256, or 2"),
        ([*CNN, "model.temperature=0"], "model.temperature must be positive"),
    ],
)
def test_mistakes(overrides, words, tmp_path):
    with pytest.raises(UserError, match=words):
        fit(overrides, 1, tmp_path)


def test_levels_must_be_those_of_the_first_stage(tmp_path):
    whole = staged(2)
    whole["stages"][1]["model"]["levels"] = 32
    with pytest.raises(UserError, match=r"the first stage's codes, 16, got 32. Set model.levels=16"):
        start.train(whole, tmp_path / "run")


@pytest.mark.parametrize("what", ["data.limit_train=1", "data.batch_size=1", "bf16"])
@pytest.mark.parametrize("overrides", [GUMBEL, VQ, CNN], ids=["gumbel", "vqvae", "pixelcnn"])
def test_extremes_train_without_nan(overrides, what, tmp_path):
    trainer = {"precision": "bf16-mixed"} if what == "bf16" else {}
    fitted = fit([*overrides, *([] if what == "bf16" else [what])], 15, tmp_path, trainer=trainer)
    assert all(value.isfinite().all() for value in fitted.model.state_dict().values())
