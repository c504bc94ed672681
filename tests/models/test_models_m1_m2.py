"""M1+M2: two stages by one command, M2 on fresh draws of latents, and M1 that no training of M2 moves."""

import math
import shutil

import pytest
import torch
from torch.testing import assert_close

import genlab
from genlab.batch import Batch
from genlab.contracts import offers
from genlab.errors import UserError
from genlab.losses.likelihoods import OwnVariances
from genlab.models.ssl_vae import SemiSupervisedVAE
from genlab.models.vae import VAE
from genlab.networks.posteriors import DiagonalGaussian
from genlab.runs import folder as runs
from genlab.runs import start
from genlab.runs.running import build
from tests.models.helpers import assert_moves, config, moved

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["data=digits", "network=mlp", "network.hidden=[16]", "data.num_labelled=100", "model.latent_dim=4"]
SMALL += [f"model.{part}.hidden=[8]" for part in ("recognition", "classifier", "decoder.network")][:2]
M1_M2 = ["model=m1_m2", *SMALL, "model.decoder.hidden=[8]"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m1_m2") / "run"
    start.train(config([*M1_M2, "ema.decay=0.5"], 30), folder)
    return folder


def test_one_command_trains_m1_and_then_m2(run):
    """M1 is in the run's checkpoint as it was at the end of the first stage, bit for bit."""
    first, second = genlab.load(run / "first_stage"), genlab.load(run)
    assert type(first).__name__ == "VAE" and type(second).__name__ == "StackedVAE"
    inside = {k.removeprefix("first_stage."): v for k, v in state(run).items() if k.startswith("first_stage")}
    assert moved(first.state_dict(), inside) == set()
    untrained = build(runs.read_config(run / "first_stage")).model.state_dict()
    assert moved(untrained, inside) != set()
    shutil.move(run / "first_stage", run / "elsewhere")
    assert moved(genlab.load(run).state_dict(), second.state_dict()) == set()
    shutil.move(run / "elsewhere", run / "first_stage")


def test_a_first_stage_of_ones_own(run, tmp_path):
    """`first_stage=RUN` takes a trained run, and trains one stage."""
    result = start.train(config([*M1_M2, f"first_stage={run / 'first_stage'}", "ema.decay=0.5"], 30), tmp_path)
    assert moved(state(tmp_path), state(run)) == set()
    assert not (tmp_path / "first_stage").exists()
    assert not any(p.requires_grad for p in result.model.first_stage.parameters())


class Interrupted(Exception):
    """In place of a killed process."""


def interrupt_at(monkeypatch, cls, iteration):
    """Training of a class breaks off in an iteration."""
    step = cls.training_step

    def training_step(self, batch, batch_idx):
        if self.iteration + 1 == iteration:
            raise Interrupted
        return step(self, batch, batch_idx)

    monkeypatch.setattr(cls, "training_step", training_step)


@pytest.mark.parametrize(("stage", "iteration"), [(VAE, 1), (VAE, 15), (SemiSupervisedVAE, 1), (SemiSupervisedVAE, 25)])
def test_a_run_that_was_killed_in_either_stage_goes_on(stage, iteration, run, tmp_path, monkeypatch):
    """From a checkpoint or the start, and ends with the same weights, bit for bit; a finished stage is not touched."""
    whole = config([*M1_M2, "ema.decay=0.5", "checkpoint.every_n_steps=10"], 30)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, iteration)
        with pytest.raises(Interrupted):
            start.train(whole, tmp_path)
    done = stage is SemiSupervisedVAE
    before = (tmp_path / "first_stage" / "checkpoints" / "last.ckpt").stat().st_mtime_ns if done else None
    start.train(whole, tmp_path, resume=runs.find_checkpoint(tmp_path))
    assert moved(state(tmp_path), state(run)) == set()
    assert before in (None, (tmp_path / "first_stage" / "checkpoints" / "last.ckpt").stat().st_mtime_ns)


def test_folders_that_hold_another_run_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="already holds a run. Go on with it"):
        start.train(config([*M1_M2, "ema.decay=0.5"], 30), run)
    shutil.copytree(run / "first_stage", tmp_path / "first_stage")
    with pytest.raises(UserError, match="holds the first stage of another run"):
        start.train(config([*M1_M2, "ema.decay=0.5", "model.first_stage.optimizer.lr=0.5"], 30), tmp_path)


def test_m2_alone_moves(tmp_path):
    """The updates of the second stage reach all of M2 and nothing of M1; latents that are left out are no target."""
    still = [f"decoder.network.body.2.{kind}" for kind in ("weight", "bias")]  # rows of latents that are left out
    fitted = assert_moves(M1_M2, ["vae"] * 2, 2, tmp_path, still)
    assert not any(p.requires_grad for name, p in fitted.model.named_parameters() if name.startswith("first_stage"))


def images(n=6):
    return torch.rand(n, 1, 8, 8, generator=rng()) * 2 - 1


def test_training_sees_draws_and_everything_else_the_mean(run):
    model, x = genlab.load(run), images()
    with torch.no_grad(), model.inference():
        q = model.first_stage.posterior(x)
    assert_close(model.seen(x), q.mu * model.kept)
    assert torch.equal(model.classify(x), model.classify(x))
    model.train()
    drawn = [model.seen(x) for _ in range(2)]
    assert not torch.equal(*drawn)
    eps = (torch.stack([model.seen(x) for _ in range(4000)]) - q.mu) / (0.5 * q.logvar).exp()
    kept = model.kept > 0
    assert_close(eps.std(dim=0)[:, kept], torch.ones(6, int(kept.sum())), rtol=0, atol=0.05)
    assert not drawn[0].requires_grad


def test_latents_that_do_not_vary_are_left_out():
    """By the standard deviation of M1's means over 1,000 samples: above .1 they are kept."""
    model = build(config(M1_M2)).model
    z = torch.randn(1200, 4, generator=rng(7)) * torch.tensor([1.0, 0.05, 0.2, 0.001])

    class M1:
        def posterior(self, x):
            mean = z[: len(x)]
            return DiagonalGaussian(mean, torch.full_like(mean, math.log(0.04)))

    del model.first_stage
    object.__setattr__(model, "first_stage", M1())
    model.initialise(iter([Batch({"x": torch.zeros(600, 1, 8, 8)})] * 2))
    assert model.kept.tolist() == [1, 0, 1, 0]
    bias = model.decoder.network.body[-1].bias  # the moments of draws: variances of the means + .04
    mean, logvar = model.likelihood.parts(bias.unsqueeze(0))
    assert_close(mean[0], torch.zeros(4), rtol=0, atol=0.1)
    assert_close(logvar[0].exp()[[0, 2]], torch.tensor([1.04, 0.08]), rtol=0.15, atol=0)
    raw, noise = torch.randn(5, 8, generator=rng()), torch.randn(5, 4, generator=rng(1))
    other = torch.where(model.kept > 0, noise, 9.0)
    assert_close(model.log_likelihood(other, raw), model.log_likelihood(noise, raw))
    assert_close(model.log_likelihood(noise, raw), model.likelihood.terms(noise, raw)[:, [0, 2]].sum(dim=1))


def test_samples_go_through_both_decoders(run):
    model = genlab.load(run)
    y = Batch({"y": torch.arange(6)})
    x = model.sample(6, given=y, rng=rng())
    assert x.shape == (6, 1, 8, 8)
    z_2 = model.noise(6, rng())
    with torch.no_grad(), model.inference():
        z_1 = model.likelihood.mean(model.decoder(z_2, y)) * model.kept
    assert torch.equal(x, model.first_stage.decode(z_1))
    assert torch.equal(model.decode(z_2, y), x)
    assert model.reconstruct(x).shape == x.shape and model.encode(x).shape == (6, 4)


def test_no_density_of_pictures_is_offered(run):
    model = genlab.load(run)
    for name in ("log_joint", "log_prior", "sample_prior", "sample_posterior"):
        assert not offers(model, name)
    assert "elbo" not in model.objective(images(), rng())
    assert all(offers(model, name) for name in ("sample", "classify", "encode", "decode", "reconstruct"))


def test_a_first_stage_without_a_posterior_is_refused():
    pca = {"_target_": "genlab.models.gan.GAN", "latent_dim": 4}
    whole = config(M1_M2)
    gan = {**config(["model=gan", "data=digits", "model.latent_dim=4"])["model"], **pca}
    with pytest.raises(UserError, match="^model=m1_m2 needs a first stage with a posterior and a decoder, not GAN"):
        build({**whole, "model": {**whole["model"], "first_stage": gan}})


def test_each_number_has_a_variance_of_its_own():
    """log N(x; mu, sigma^2) of each, a floor under sigma, and a start at the data's own moments."""
    likelihood = OwnVariances(min_sigma=0.05).double()
    x, raw = torch.randn(7, 3, generator=rng()).double(), torch.randn(7, 6, generator=rng(1)).double()
    mean, logvar = likelihood.parts(raw)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    assert_close(likelihood.log_prob(x, raw), normal.log_prob(x).sum(dim=1))
    assert_close(likelihood.mean(raw), raw[:, :3])
    low = likelihood.parts(torch.full((1, 6), -1e3).double())[1]
    assert_close((0.5 * low).exp(), torch.full((1, 3), 0.05).double())
    x = torch.tensor([[0.0, 5.0, -1.0], [4.0, 5.0, 1.0]]).double()
    mean, logvar = likelihood.parts(likelihood.visible_bias(x).unsqueeze(0))
    assert_close(mean[0], torch.tensor([2.0, 5.0, 0.0]).double())
    assert_close((0.5 * logvar[0]).exp()[[0, 2]], torch.tensor([2.0, 1.0]).double(), rtol=1e-3, atol=0)
    assert logvar.isfinite().all()
    draws = torch.stack([likelihood.sample(raw, rng(i)) for i in range(3000)])
    assert_close(draws.std(dim=0), (0.5 * likelihood.parts(raw)[1]).exp(), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="min_sigma must be positive"):
        OwnVariances(0.0)
