"""`optim.accumulate`: updates on the mean of the chunks' gradients are those of the whole batch."""

import os
import re
import signal
import threading
import time
import weakref

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch.testing import assert_close

from genlab.batch import Batch, Seq
from genlab.callbacks.checkpoints import CleanStop
from genlab.config.composition import compose
from genlab.engine.lockstep import Strand, cut
from genlab.errors import Interrupted, UserError
from genlab.models.gan import GAN
from genlab.runs import running, start
from tests.cli.helpers import assert_identical, main, weights
from tests.models.helpers import METHODS, QUIET, RING, Memory, fit
from tests.runs.test_runs_processes import GRADIENTS, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT64 = ["speed.precision=float64", "data.batch_size=16", "ema.decay=0.9"]
ALIKE = {
    **METHODS,
    "warm_up": [*METHODS["vae"], "kl=warm_up"],
    "adversary": [*METHODS["vae"], "adversary=gan"],
    "clipped": [*METHODS["gan"], "optim.clip=0.01", "tricks.historical_averaging=0.1"],
    "noisy": [*METHODS["gan"], "tricks.instance_noise=0.2", "tricks.packing=2"],
    "spectral": ["model=gan", *RING, "network.spectral_norm=true"],  # vectors that every forward pass moves
    "reused": [*METHODS["gan"], "speed.reuse_fakes=true"],  # the generator's graph outlives an update
    "codebook": ["model=vqvae", "data=digits", "network=mlp", "network.hidden=[16]"],  # gathers without gradient
    "chains": ["model=rbm_pcd", "data=digits"],  # draws that are the same for all
}
TAKES_NONE = {  # and the reason that the sentence names
    "tricks.minibatch_discrimination=true": "tricks.minibatch_discrimination",
    "tricks.feature_matching=true": "tricks.feature_matching",
    "tricks.replay=0.5": "tricks.replay",
    "model=unrolled": "the discriminator's unrolled updates",
    "model=ebgan_pt": "the pulling-away term",
    "model=vae kl=free_bits likelihood=gaussian": "kl=free_bits",
    "model=vae kl=capacity likelihood=gaussian": "kl=capacity",
}


def trained(overrides, chunks, folder, steps=3, **more):
    return fit([*overrides, *FLOAT64, f"optim.accumulate={chunks}"], steps, folder, **more)


def assert_alike(one, other):
    """Weights, averages and buffers to rounding, and the streams of draws to the last bit."""
    for theirs, ours in ((one.state_dict(), other.state_dict()), (one.averages.values, other.averages.values)):
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            assert_close(ours[key], value, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")
    assert torch.equal(one.rng.get_state(), other.rng.get_state())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in METHODS else pytest.mark.matrix) for name in ALIKE]
)
def test_chunks_train_as_the_whole_batch(name, tmp_path):
    """Same batches, same draws, four chunks: the same weights after three iterations, and the same curves."""
    found = []
    for chunks in (1, 4):
        memory = Memory()
        fitted = trained(ALIKE[name], chunks, tmp_path / str(chunks), trainer={"logger": [memory]})
        assert fitted.trainer.global_step == 3
        found.append((fitted.model, memory.curves))
    assert_alike(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for key, curve in found[0][1].items():
        if "perplexity" not in key:  # of a chunk's codes
            assert_close(found[1][1][key], curve, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    assert found[1][0].watching.recorded and not any(isinstance(t, Strand) for t in threading.enumerate())


@pytest.mark.matrix
@pytest.mark.parametrize("name", GRADIENTS)
def test_every_method_trains_on_chunks_or_refuses_them(name, tmp_path):
    models = []
    for chunks in (1, 4):
        config = tiny(*GRADIENTS[name], "speed.precision=float64", f"optim.accumulate={chunks}")
        try:
            parts = running.build(config)
        except UserError as error:
            assert "optim.accumulate=4" in str(error) and chunks == 4
            return
        running.make_trainer(parts, tmp_path / str(chunks)).fit(parts.model, datamodule=parts.data)
        models.append(parts.model)
    assert_alike(*models)


class Alive(Callback):
    """Counts the rows of a network's hidden layer that are kept for backward passes, after each forward pass."""

    def on_train_start(self, trainer, pl_module):
        self.seen, self.most, kept = [], 0, []

        def hook(layer, inputs, output):
            kept.append(weakref.ref(output))
            self.seen.append(len(output))
            self.most = max(self.most, sum(len(x) for x in (ref() for ref in kept) if x is not None))

        next(m for m in pl_module.discriminator.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(hook)


@pytest.mark.parametrize("chunks", [1, 4])
def test_activations_of_one_chunk_are_kept(chunks, tmp_path):
    """Real samples and fakes of one chunk, of 16 samples in all; the chunks before it have gone backward."""
    alive = Alive()
    trained(METHODS["gan"], chunks, tmp_path, steps=1, callbacks=[alive])
    assert set(alive.seen) == {16 // chunks} and alive.most <= 2 * 16 // chunks


def test_chunks_of_a_batch_are_cut_as_shares_of_processes():
    """Of each fresh batch of several, and of every column."""
    x = torch.arange(12)
    batch = Batch({"x": x, "s": Seq(x[:, None].expand(12, 3), x % 3)})
    parts = cut(batch, 3, 2)
    assert [c.x.tolist() for c in parts] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert parts[1]["s"].length.tolist() == [2, 0, 0, 1, 1, 2]
    assert [c.x.tolist() for c in cut(batch, 1, 3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_batch_norm_sees_chunks(tmp_path):
    """Each chunk starts from the same running statistics; what stays is the mean of the results."""
    overrides = ["model=gan", *RING, "network.generator_norm=batch"]
    one, four = (trained(overrides, n, tmp_path / str(n), steps=1).model for n in (1, 4))
    ((ours, theirs),) = [
        (m.running_mean, next(x for k, x in one.named_modules() if k == name).running_mean)
        for name, m in four.named_modules()
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    ][:1]
    assert_close(ours, theirs)  # of linear outputs of the same latents: the mean of means
    norm = next(m for m in four.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm))
    assert norm.num_batches_tracked == 2  # as without chunks: for the discriminator's fakes and the generator's


@pytest.mark.parametrize("words", TAKES_NONE)
def test_what_needs_the_whole_batch_is_refused_by_name(words):
    overrides = [*METHODS["gan"], *words.split()]
    if "model=ebgan_pt" in words:
        overrides = words.split()
    with pytest.raises(UserError, match=f"optim.accumulate=2 .* and {TAKES_NONE[words]} needs the whole batch"):
        running.build(compose([*overrides, *QUIET, "optim.accumulate=2"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.accumulate=0"], "optim.accumulate must be a whole number of at least 1, got 0"),
        (["optim.accumulate=3", "data.batch_size=16"], "no multiple of 3. Try data.batch_size=15"),
        (["optim.accumulate=4", "tricks.packing=3", "data.batch_size=18"], "Try data.batch_size=12"),
        (["model=pca", "model.latent_dim=1", "optim.accumulate=2"], "no effect on a model without gradients"),
        (["optim.accumulate=8", "data.batch_size=8", "network.generator_norm=batch"], "one sample"),
    ],
)
def test_mistakes(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        running.build(compose(["data=ring", *QUIET, *words]))


def test_a_mistake_on_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "data=ring", "model=unrolled", "optim.accumulate=2", "trainer=cpu") == 2
    error = capfd.readouterr().err
    assert "Leave one of them out." in error and "Traceback" not in error


class Own(GAN):
    """A method of one's own that is not made for chunks."""

    def training_step(self, batch, batch_idx):
        if self.way == "couples":
            with self.turn("generator") as generator:
                x = self.gathered(self.generator(self.noise(len(batch))))
                generator.minimise(x.var(dim=0).sum())
        elif self.way == "fails" and batch["index"][0] != self.first:
            raise ZeroDivisionError
        elif self.way == "parts" and batch["index"][0] != self.first:
            return
        super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("couples", UserError, "Own has a term that needs the whole batch"),
        ("parts", UserError, "came to the end of the step and to the update of discriminator of Own"),
        ("fails", ZeroDivisionError, None),
    ],
)
def test_a_step_that_breaks_off_leaves_no_thread_and_no_frozen_weight(way, error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(Own, "way", way, raising=False)

    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            monkeypatch.setattr(Own, "first", batch["index"][0], raising=False)

    given = compose([*METHODS["gan"]])["model"] | {"_target_": f"{__name__}.Own"}
    seen = []
    with pytest.raises(error, match=words):
        trained(METHODS["gan"], 2, tmp_path, model=given, callbacks=[First()], before=seen.append)
    assert all(p.requires_grad for p in seen[0].parameters()) and "training_step" not in vars(seen[0])
    assert not any(isinstance(thread, Strand) for thread in threading.enumerate())


def test_a_second_signal_ends_the_threads(tmp_path, monkeypatch):
    """It raises in the main thread, which waits for a chunk."""

    def step(self, batch, batch_idx):
        stop, limit = next(c for c in self.trainer.callbacks if isinstance(c, CleanStop)), time.time() + 20
        os.kill(os.getpid(), signal.SIGTERM)
        while stop._received is None and time.time() < limit:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        strand = threading.current_thread()
        while not strand._ended and time.time() < limit:
            time.sleep(0.01)

    monkeypatch.setattr(GAN, "training_step", step)
    with pytest.raises(Interrupted):
        trained(METHODS["gan"], 2, tmp_path)
    assert not any(isinstance(thread, Strand) for thread in threading.enumerate())


def test_a_run_on_chunks_resumes_to_the_same_bits(tmp_path):
    """Of three and three iterations."""
    overrides = compose([*METHODS["wgan_gp"], *QUIET, "optim.accumulate=4", "trainer.max_steps=6"])
    start.train(overrides, tmp_path / "alone")
    cut_short = compose([*METHODS["wgan_gp"], *QUIET, "optim.accumulate=4", "trainer.max_steps=3"])
    start.train(cut_short, tmp_path / "cut")
    start.train(overrides, tmp_path / "cut", resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert_identical(weights(tmp_path / "alone"), weights(tmp_path / "cut"))


def test_half_precision_reaches_the_chunks(tmp_path, monkeypatch):
    """Autocast is a setting of each thread."""
    seen = []

    def step(self, batch, batch_idx):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        before(self, batch, batch_idx)

    before = GAN.training_step
    monkeypatch.setattr(GAN, "training_step", step)
    fit([*METHODS["gan"], "speed.precision=bfloat16", "optim.accumulate=2"], 1, tmp_path)
    assert seen == 2 * [torch.bfloat16]
