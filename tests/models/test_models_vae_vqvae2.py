"""VQ-VAE-2: codes on two levels, the priors of both, and all three stages by one command."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import genlab
from genlab.errors import UserError
from genlab.metrics.likelihood import importance_bounds
from genlab.models.conditional_pixelcnn import ConditionalPixelCNN
from genlab.models.vqvae import VQVAE
from genlab.networks.pixelcnn import draw_tokens
from genlab.runs import running, start
from genlab.runs.folder import load_model
from tests.models.helpers import Memory, assert_moves, config, fit, moved

pytestmark = pytest.mark.usefixtures("one_thread")
VQ2 = ["model=vqvae2", "data=digits", "model.encoder.width=12", "model.encoder.inner=6", "model.encoder.blocks=1",
       "model.top_codebook.codes=8", "model.top_codebook.dim=5", "model.bottom_codebook.codes=16",
       "model.bottom_codebook.dim=6"]  # fmt: skip
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01}
STAGES = ("vqvae2", "top", "bottom")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=3, dtype=torch.float64):
    return torch.rand(n, 1, 8, 8, generator=rng(), dtype=dtype) * 2 - 1


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Three iterations."""
    return fit(VQ2, 3, tmp_path_factory.mktemp("fitted"))


@pytest.fixture
def model(fitted):
    return copy.deepcopy(fitted.model).double()


# ------------------------------------------------------------------------------------------------------- the two levels


def test_one_player_moves(tmp_path):
    assert_moves([*VQ2, "data.batch_size=32"], ["autoencoder"] * 2, 2, tmp_path)


def test_the_loss_is_a_mean_over_samples_of_sums_over_their_numbers(model):
    """Repeating the batch changes nothing; the terms are those added up sample by sample, by hand."""
    x = images(3)
    once, often = model.objective(x), model.objective(x.repeat(5, 1, 1, 1))
    for name, value in once.items():
        assert_close(value, often[name], msg=name)
    alone = [model.objective(x[i : i + 1]) for i in range(3)]
    for name in ("loss", "recon", "commitment", "squared_error"):
        assert_close(once[name], torch.stack([terms[name] for terms in alone]).mean(), msg=name)
    commitment = 0.0
    with torch.no_grad():
        features = model.encoder(x)
        z_top = model.top_encoder(features)
        q_top = torch.zeros_like(z_top)
        for n in range(3):
            for i in range(2):
                for j in range(2):
                    distances = (model.top_codebook.vectors - z_top[n, :, i, j]).norm(dim=1)
                    q_top[n, :, i, j] = model.top_codebook.vectors[distances.argmin()]
                    commitment += distances.min() ** 2
        z_bottom = model.bottom_head(features, model.top_decoder(q_top))
        distances = torch.cdist(z_bottom.permute(0, 2, 3, 1).flatten(0, 2), model.bottom_codebook.vectors)
        commitment += distances.min(dim=1).values.square().sum()
    assert_close(once["commitment"], commitment / 3)
    assert_close(once["loss"], once["recon"] + 0.25 * once["commitment"])


def test_gradients_go_straight_through_both_levels(model):
    """Each encoding gets the gradient of the code in its place and its commitment's; the codebooks get none."""
    x, kept = images(3), {}
    handles = [
        part.register_forward_hook(lambda *a, name=name: (a[2].retain_grad(), kept.setdefault(name, a[2]))[0])
        for name, part in (("encoder", model.encoder), ("top", model.top_encoder), ("bottom", model.bottom_head))
    ]
    model.terms(x)[0]["loss"].backward()
    for handle in handles:
        handle.remove()
    q_top = model.top_codebook.quantise(kept["top"])[0].requires_grad_()
    z_bottom = model.bottom_head(kept["encoder"].detach(), model.top_decoder(q_top))
    z_bottom.retain_grad()
    q_bottom = model.bottom_codebook.quantise(z_bottom)[0].detach().requires_grad_()
    (-model.likelihood.log_prob(x, model.decoder(q_top, q_bottom)).mean()).backward()
    at_bottom = q_bottom.grad + 2 * 0.25 * (z_bottom - q_bottom).detach() / 3
    assert_close(kept["bottom"].grad, at_bottom, rtol=1e-9, atol=1e-12)
    (into_top,) = torch.autograd.grad(
        model.bottom_head(kept["encoder"].detach(), model.top_decoder(q_top)), q_top, at_bottom
    )
    at_top = q_top.grad + into_top + 2 * 0.25 * (kept["top"] - q_top).detach() / 3
    assert_close(kept["top"].grad, at_top, rtol=1e-9, atol=1e-12)
    for codebook in (model.top_codebook, model.bottom_codebook):
        assert not list(codebook.parameters()) and not codebook.vectors.requires_grad
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())


def test_without_the_top_level_it_is_a_vqvae(model):
    """Top codes that nothing reads leave the loss of the VQ-VAE on the same bottom encoder, and the top commitment."""

    class Whole(nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.parts = nn.ModuleList(parts)

    class Encoder(Whole):
        def forward(self, x):
            features = self.parts[0](x)
            return self.parts[1](features, torch.zeros_like(features))

    class Decoder(Whole):
        def forward(self, z):
            return self.parts[0].body(torch.cat([z.new_zeros(len(z), 5, *z.shape[2:]), z], dim=1))

    with torch.no_grad():
        for parameter in [*model.top_decoder.parameters(), *model.decoder.upsample.parameters()]:
            parameter.zero_()
    parts = Encoder(model.encoder, model.bottom_head), Decoder(model.decoder)
    plain = VQVAE(*parts, model.bottom_codebook, model.likelihood).double()
    x = images(4)
    ours, theirs = model.objective(x), plain.objective(x)
    assert_close(ours["recon"], theirs["recon"])
    z_top = model.top_encoder(model.encoder(x))
    of_top = (z_top - model.top_codebook.quantise(z_top)[0]).square().sum() / 4
    assert_close(ours["commitment"], theirs["commitment"] + of_top)


def test_indices_stand_for_the_whole_code(model):
    """Decoding the indices is the reconstruction, bit for bit; the top level alone is worth less."""
    x = images(5)
    top, bottom = model.both_tokens(x)
    assert top.shape == (5, 2, 2) and bottom.shape == (5, 4, 4) and top.dtype == bottom.dtype == torch.int64
    assert torch.equal(top, model.tokens(x))
    assert torch.equal(model.detokenise(top, bottom), model.reconstruct(x))
    assert_close(-model.log_likelihood(x, top, bottom).mean(), model.objective(x)["recon"])
    assert model.detokenise(top).shape == x.shape


def test_it_resumes_to_the_same_codes(tmp_path):
    """4 + 4 iterations are 8, bit for bit, with dead codes on both levels on the way."""
    overrides = [*VQ2, *(f"model.{level}_codebook.restart_below=0.6" for level in ("top", "bottom"))]
    whole = fit(overrides, 8, tmp_path / "whole")
    fit(overrides, 4, tmp_path / "cut")
    resumed = fit(overrides, 8, tmp_path / "on", resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert moved(whole.model.state_dict(), resumed.model.state_dict()) == set()


def test_it_learns_and_uses_both_levels(tmp_path):
    memory = Memory()
    overrides = [*VQ2, "model.optimizer.lr=0.003", "data.batch_size=64", "trainer.log_every_n_steps=20"]
    fitted = fit([*overrides, "likelihood.sigma=0.5"], 160, tmp_path, trainer={"logger": [memory]})
    errors = list(memory.curves["train/squared_error"].values())
    assert errors[-1] < 0.2 * errors[0]
    assert memory.curves["train/top_codebook_perplexity"][160] > 4  # of 8
    assert memory.curves["train/bottom_codebook_perplexity"][160] > 6  # of 16
    x = next(iter(fitted.data.batches("val", 100))).x
    top, _ = fitted.model.both_tokens(x)
    both, alone = ((y - x).square().mean() for y in (fitted.model.reconstruct(x), fitted.model.detokenise(top)))
    assert both < 0.7 * alone < 0.7 * x.var(dim=0).mean() * 2


# --------------------------------------------------------------------------------------------------------------- stages


class Interrupted(Exception):
    """In place of a killed process."""


def staged(steps=3, **changes):
    """The stages of `experiment=vqvae2_cifar10`, tiny."""
    network = {"_target_": "genlab.networks.pixelcnn.GatedPixelCNN", "width": 8, "layers": 2, "kernel": 3, "hidden": 8}
    conditioner = {"_target_": "genlab.networks.pixelcnn.CodeContext", "channels": 7, "width": 8, "blocks": 1}
    top = {
        "_target_": "genlab.models.pixelcnn.PixelCNN",
        "levels": 8,
        "network": {**network, "levels": 8},
        "optimizer": ADAM,
    }
    bottom = {
        "_target_": "genlab.models.conditional_pixelcnn.ConditionalPixelCNN",
        "levels": 16,
        "network": {**network, "levels": 16, "context": 7},
        "conditioner": {**conditioner, "levels": 8},
        "optimizer": ADAM,
        **changes,
    }
    stages = [{"name": "vqvae2"}, {"name": "top", "model": top}, {"name": "bottom", "model": bottom}]
    quick = ["model.optimizer.lr=0.003", "likelihood.sigma=0.5", "checkpoint.every_n_steps=2", "data.batch_size=32"]
    return config([*VQ2, *quick], steps, stages=stages)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "run"
    start.train(staged(), folder)
    return folder


def test_three_stages_by_one_command(run):
    """Each moves itself alone, and the last folder draws images without the others."""
    first, top, model = (load_model(run / name) for name in STAGES)
    assert moved(first.state_dict(), model.hierarchy.state_dict()) == set()
    with top.ema():
        assert moved(top.state_dict(), model.first_stage.state_dict()) == set()
    model = genlab.load(run / "bottom")
    x = model.sample(3, rng=rng())
    assert x.shape == (3, 1, 8, 8) and torch.equal(x, model.sample(3, rng=rng()))
    assert not torch.equal(x, model.sample(3, rng=rng(1)))
    assert genlab.load(run / "top").sample(2, rng=rng()).shape == (2, 1, 8, 8)


def test_the_bound_is_the_sum_of_the_three(run):
    model, x = load_model(run / "bottom"), images(5, torch.float32)
    bounds = importance_bounds(model, [x], samples=20)
    with model.inference():
        top, bottom = model.hierarchy.both_tokens(x)
        expected = model.hierarchy.log_likelihood(x, top, bottom) + model.first_stage.log_prob(top)
        expected = expected + model.log_prob(bottom, top)
        terms = model.objective(x)
    assert_close(bounds.elbo.float(), expected, rtol=1e-4, atol=1e-3)
    assert bounds.samples == 1 and model.likelihood is model.hierarchy.likelihood
    assert_close(terms["bits_per_token"], terms["loss"] / (16 * math.log(2)))
    share = torch.tensor([count / bottom.numel() for count in Counter(bottom.flatten().tolist()).values()])
    assert_close(terms["unigram_bits_per_token"], -(share * share.log2()).sum())


def test_draws_follow_the_conditional_probabilities(run):
    """Pairs of the first top and the first bottom code: p(top) p(bottom | top), whose rows differ."""
    model = load_model(run / "bottom").eval()
    torch.manual_seed(0)
    for p in [*model.conditioner.parameters(), *model.network.parameters()]:
        nn.init.normal_(p, std=0.7)
    uniform = torch.rand(40_000, 1, generator=rng())
    top = torch.randint(8, (40_000, 1, 1), generator=rng(1))
    with torch.no_grad():
        context = model.conditioner(torch.arange(8).view(8, 1, 1))[:, :, :1, :1]
        p = model.network(torch.zeros(8, 1, 1, dtype=torch.long), context)[:, :, 0, 0].softmax(dim=1)
        drawn = draw_tokens(model.network, uniform.view(-1, 1, 1), 1.0, context[top.flatten()])
    counts = torch.bincount(top.flatten() * 16 + drawn.flatten(), minlength=128).view(8, 16)
    assert_close(counts / counts.sum(dim=1, keepdim=True), p, rtol=0, atol=0.03)
    assert (p[0] - p[1]).abs().max() > 0.01


def test_an_interrupted_third_stage_goes_on(run, tmp_path, monkeypatch):
    step = ConditionalPixelCNN.training_step

    def training_step(self, batch, batch_idx):
        if self.iteration == 2:
            raise Interrupted
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ConditionalPixelCNN, "training_step", training_step)
        with pytest.raises(Interrupted):
            start.train(staged(), tmp_path / "run")
    start.train(staged(), tmp_path / "run")
    for name in STAGES:
        ours, theirs = (load_model(folder / name).state_dict() for folder in (run, tmp_path / "run"))
        assert moved(ours, theirs) == set()


def test_a_dry_run_describes_all_three(capsys, tmp_path):
    start.train({**staged(), "dry_run": True}, tmp_path / "run")
    printed = capsys.readouterr().out
    assert all(f"# stage {name}" in printed for name in STAGES)
    assert not (tmp_path / "run").exists()


def test_a_conditional_prior_learns_what_the_top_codes_say(tmp_path):
    """Bits per bottom code, given the right top codes and those of other images."""
    whole = staged(80)
    whole["data"]["batch_size"] = 64
    result = start.train(whole, tmp_path / "run")
    x = torch.cat([b.x for b in running.build({**whole, "stages": None}).data.batches("val", 160)])
    model = result.model
    with model.inference():
        top, bottom = model.hierarchy.both_tokens(x)
        right, wrong = model.log_prob(bottom, top).mean(), model.log_prob(bottom, top.roll(1, 0)).mean()
    assert right > wrong + 0.5
    assert -right / (16 * math.log(2)) < 4  # the uniform code of 16


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*VQ2, "model.commitment_weight=-1"], "commitment_weight"),
        ([*VQ2, "model.top_encoder.top_halvings=3"], "multiples of 16"),
        ([*VQ2, "model.top_codebook.codes=1"], "at least 2 codes"),
    ],
)
def test_mistakes(overrides, words, tmp_path):
    with pytest.raises(UserError, match=words):
        fit(overrides, 1, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": 8}, "Set model.levels=16"),
        ({"temperature": 0}, "model.temperature must be positive"),
    ],
)
def test_mistakes_of_the_third_stage(change, words, run, tmp_path):
    single = {**staged(), "stages": None, "first_stage": str(run / "top")}
    with pytest.raises(UserError, match=words):
        start.train({**single, "model": staged(**change)["stages"][2]["model"]}, tmp_path / "run")


def test_the_third_stage_needs_the_second(run, tmp_path):
    single = {**staged(), "stages": None, "first_stage": str(run / "vqvae2")}
    with pytest.raises(UserError, match="the PixelCNN of the top codes"):
        start.train({**single, "model": staged()["stages"][2]["model"]}, tmp_path / "run")


@pytest.mark.parametrize("what", ["data.limit_train=1", "data.batch_size=1", "dim 1", "bf16"])
def test_extremes_train_without_nan(what, tmp_path):
    dims = ["model.top_codebook.dim=1", "model.bottom_codebook.dim=1"]
    extra = {"bf16": [], "dim 1": dims}.get(what, [what])
    fitted = fit([*VQ2, *extra], 12, tmp_path, trainer={"precision": "bf16-mixed"} if what == "bf16" else {})
    assert all(value.isfinite().all() for value in fitted.model.state_dict().values())
