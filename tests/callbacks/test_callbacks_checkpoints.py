"""Checkpoints whole or not at all, the newest few, the best one, and a clean stop."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, CleanStop
from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.errors import Interrupted, TrainingStopped, UserError
from genlab.files import write_atomic, write_json, write_text
from genlab.judging.measure import known
from genlab.runs import running, start
from genlab.runs.folder import find_checkpoint, find_run
from tests.models.helpers import METHODS, SGD, config, fit

pytestmark = pytest.mark.usefixtures("one_thread")
WALK = {"_target_": "tests.models.toys.Walk", "optimizer": SGD}
POINTS = ["data=ring"]


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def found(folder):
    """{file name: iteration} of all that lies among a run's checkpoints."""
    return {path.name: step_of(path) for path in sorted((folder / "checkpoints").iterdir())}


# Writing


def half(file, error):
    file.write(b"half of it")
    file.flush()
    raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("zip"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failing_write_leaves_what_was_there(error, existing, tmp_path):
    """The old file, or none; and no temporary one."""
    path = tmp_path / "folder" / "file"
    if existing:
        write_text(path, "old")
    with pytest.raises(type(error)):
        write_atomic(path, lambda file: half(file, error))
    assert [p.name for p in path.parent.iterdir()] == (["file"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    assert write_text(path, "a longer old text") == path
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    write_json(path, {"a": [1, None]})
    assert path.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    assert oct(path.stat().st_mode & 0o777) == "0o644" and len(list(path.parent.iterdir())) == 1


def test_a_file_is_never_seen_half_written(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    seen = []
    write_atomic(path, lambda file: (file.write(b"ne"), file.flush(), seen.append(path.read_text()), file.write(b"w")))
    assert seen == ["old"] and path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_checkpoint_that_cannot_be_written(error, tmp_path, monkeypatch):
    """A sentence with the path, the reason and the room that is left; the one before stays readable."""
    path, io = tmp_path / "checkpoints" / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"global_step": 1}, path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda checkpoint, file: half(file, error))
        with pytest.raises(TrainingStopped, match=r"last\.ckpt could not be written .*(space|pos).*MiB are free"):
            io.save_checkpoint({"global_step": 2}, path)
    assert io.load_checkpoint(path) == {"global_step": 1} and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_a_full_disk_stops_a_run_and_leaves_it_resumable(keep, tmp_path, monkeypatch):
    """The third checkpoint fails; the run can go on from the second and ends as one that was never stopped."""
    overrides = [*METHODS["gan"], "checkpoint.every_n_steps=2", f"checkpoint.keep={keep}"]
    save, calls = torch.save, []

    def full(checkpoint, file):
        calls.append(checkpoint["global_step"])
        return half(file, OSError(28, "No space left on device")) if len(calls) == 3 else save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(TrainingStopped, match="could not be written.*The last good checkpoint is"):
            start.train(config(overrides, 8), tmp_path / "run")
    assert calls == [2, 4, 6]
    _, last = find_run(tmp_path / "run")
    assert step_of(last) == 4 and not list((tmp_path / "run" / "checkpoints").glob(".*"))
    start.train(config(overrides, 8), tmp_path / "run", resume=last)
    whole = fit(overrides, 8, tmp_path / "whole")
    state = torch.load(find_checkpoint(tmp_path / "run"), weights_only=True)["state_dict"]
    assert all(torch.equal(state[k], v) for k, v in whole.model.state_dict().items())


def test_reading_executes_nothing(tmp_path):
    torch.save({"call": os.getcwd}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=False)


# Which ones stay


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, {"last.ckpt": 9}),
        (2, {"last.ckpt": 9, "step_0000008.ckpt": 8}),
        (3, {"last.ckpt": 9, "step_0000006.ckpt": 6, "step_0000008.ckpt": 8}),
        (9, {"last.ckpt": 9, **{f"step_000000{s}.ckpt": s for s in (2, 4, 6, 8)}}),
    ],
)
def test_the_newest_few_are_kept(keep, expected, tmp_path):
    """Every second iteration and the last one; each file holds what its name says."""
    fit([*POINTS, "checkpoint.every_n_steps=2", f"checkpoint.keep={keep}"], 9, tmp_path, model=WALK)
    assert found(tmp_path) == expected


def test_as_many_are_kept_across_a_resume(tmp_path):
    overrides = [*POINTS, "checkpoint.every_n_steps=2", "checkpoint.keep=3"]
    fit(overrides, 6, tmp_path, model=WALK)
    fit(overrides, 8, tmp_path, model=WALK, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert len(found(tmp_path)) == 3 and found(tmp_path)["last.ckpt"] == 8
    fit(overrides, 13, tmp_path, model=WALK, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert found(tmp_path) == {"last.ckpt": 13, "step_0000010.ckpt": 10, "step_0000012.ckpt": 12}


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0)])
def test_checkpoints_need_positive_numbers(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        Checkpoints(*arguments, monitor=None)


# The best one


LIKELIHOOD = ("bound", "elbo", "objective", "loss")


def judge_of(name):
    return instantiate(compose([f"metrics={name}"])["metrics"])


@pytest.mark.parametrize(
    ("names", "chosen", "best"),
    [
        (("loss", "elbo", "bound"), "bound", 2),
        (("loss", "elbo", "recon"), "elbo", 2),
        (("loss", "objective"), "objective", 2),
        (("loss", "recon"), "loss", 1),
        (("contrast", "recon", "free_energy"), None, None),  # an RBM: none of these says how good it is
    ],
)
def test_likelihood_runs_choose_by_the_best_bound_they_have(names, chosen, best, tmp_path):
    """All values rise, the loss too, as under a warm-up of the KL's weight: the later weights are the better ones."""
    judge = judge_of("likelihood")
    assert judge.monitor == LIKELIHOOD
    checkpoints = Checkpoints(1, 1, judge.monitor, judge.mode)
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), save_checkpoint=lambda path: None)
    for step, value in ((1, -40.0), (2, -29.0)):
        trainer.global_step = step
        checkpoints.consider(trainer, dict.fromkeys(names, value))
    assert (checkpoints.monitor, checkpoints.best_step) == (chosen, best)


@pytest.mark.parametrize(("before", "kept"), [("elbo", True), ("loss", False), (None, False)])
def test_a_best_score_is_resumed_with_its_name(before, kept, tmp_path):
    """The best of another score, or one without a name, would stand for ever beside values of another scale."""
    checkpoints = Checkpoints(1, 1, "elbo", "max")
    checkpoints.load_state_dict({"monitor": before, "best_score": 29.0, "best_step": 3})
    assert (checkpoints.best_score, checkpoints.best_step) == ((29.0, 3) if kept else (None, None))
    judge = judge_of("likelihood")
    several = Checkpoints(1, 1, judge.monitor, judge.mode)
    several.load_state_dict({"monitor": "elbo", "best_score": -28.0, "best_step": 3})
    assert (several.monitor, several.mode, several.best_score) == ("elbo", "max", -28.0)  # before any validation
    state = {name: value for name, value in several.state_dict().items() if value}
    assert state == {"monitor": "elbo", "best_score": -28.0, "best_step": 3}


@pytest.mark.parametrize("name", ["images", "likelihood", "points", "stacked", "classification"])
def test_factor_scores_have_one_direction_under_every_judge(name):
    """`factor_corr_<name>` too; what leaks into other units is bad."""
    judge = judge_of(name)
    assert judge.mode("factor_corr") == judge.mode("factor_corr_light") == "max" and judge.mode("factor_leak") == "min"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "max") for name in ("elbo", "relaxed", "bound", "objective", "iwae_500", "ais_16", "ess")),
        *((name, "max") for name in ("perplexity", "top_perplexity", "bottom_perplexity")),
        *((name, "min") for name in ("loss", "recon", "kl", "bits_per_dim", "commitment", "squared_error")),
    ],
)
def test_which_values_of_a_likelihood_score_are_good(name, mode):
    assert judge_of("likelihood").mode(name) == mode


def test_active_units_are_not_ranked():
    """More of them are not better in themselves, but where they choose a checkpoint a collapse is worse."""
    bounds = known()["likelihood"]()
    assert bounds.direction("active_units") == "higher" and bounds.about["active_units"].better is None


def test_an_rbm_s_run_has_no_best_checkpoint(tmp_path):
    """Its contrast is the difference of two free energies, near 0 whatever the machine has learned."""
    words = ["model=rbm", "data=digits", "data.binarize=dynamic", "metrics=likelihood", "metrics.every_n_steps=2"]
    quiet = ["callbacks.grid=null", "logger=none", "trainer=cpu", "trainer.max_steps=4"]
    record = start.train(compose([*words, *quiet]), tmp_path)
    assert record.monitored is None and not (tmp_path / "checkpoints" / "best.ckpt").exists()


class Given(Callback):
    """A judge with an opinion of its own: hands given scores to the checkpoints, as `Scores` does."""

    judge = None

    def __init__(self, name, scores):
        self.name, self.scores = name, scores

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.scores:
            checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))
            checkpoints.consider(trainer, {"other": 0.0, self.name: self.scores[trainer.global_step]})


def scored(folder, monitor, scores, mode="min", name=None, steps=6, resume=None, smooth=1, early_stop=None):
    """Trains with these scores; the Trainer and the callback."""
    given = Given(name or monitor, scores)
    overrides = [*POINTS, f"checkpoint.monitor={monitor}", f"checkpoint.smooth={smooth}", "metrics=points"]
    overrides += [] if early_stop is None else [f"checkpoint.early_stop={early_stop}"]
    parts = running.build(config(overrides, steps, model=WALK))
    parts.callbacks["given"] = given
    parts.judge = SimpleNamespace(monitor=None, mode=lambda score: mode)
    trainer = running.make_trainer(parts, folder)
    trainer.fit(parts.model, datamodule=parts.data, ckpt_path=resume, weights_only=True)
    return trainer, next(c for c in trainer.callbacks if isinstance(c, Checkpoints))


def best(folder, *arguments, **options):
    """{iteration: score} of best.ckpt as it is remembered, and the file's iteration."""
    _, checkpoints = scored(folder, *arguments, **options)
    path = folder / "checkpoints" / "best.ckpt"
    return checkpoints.best_step, checkpoints.best_score, step_of(path) if path.is_file() else None


def test_the_best_follows_the_monitored_score(tmp_path):
    """The lowest; an equal one later does not replace it; another score's value does not count."""
    assert best(tmp_path / "min", "fid", {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.0}) == (2, 1.0, 2)
    assert best(tmp_path / "max", "quality", {1: 3.0, 2: 1.0, 3: 4.0}, mode="max") == (3, 4.0, 3)
    assert best(tmp_path / "long", "fid", {1: 3.0}, name="fid/classifier-digits") == (1, 3.0, 1)
    assert best(tmp_path / "none", "fid", {1: 3.0}, name="fidelity") == (None, None, None)


def test_the_best_is_remembered_across_a_resume(tmp_path):
    best(tmp_path, "fid", {2: 1.0}, steps=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert best(tmp_path, "fid", {4: 2.0}, steps=5, resume=last) == (2, 1.0, 2)
    assert best(tmp_path, "fid", {6: 0.5}, steps=6, resume=last) == (6, 0.5, 6)


def test_a_score_that_is_nan_is_never_the_best(tmp_path):
    assert best(tmp_path, "fid", {1: float("nan"), 2: 5.0, 3: float("nan")}) == (2, 5.0, 2)


NOISY = {1: 9.0, 2: 5.0, 3: 1.0, 4: 6.0, 5: 4.0, 6: 3.0}  # a lucky third validation


def test_the_best_is_chosen_by_a_mean_of_validations(tmp_path):
    """Of the last three, the first two have fewer; the values of single validations are remembered beside it."""
    assert best(tmp_path / "single", "fid", NOISY) == (3, 1.0, 3)
    assert best(tmp_path / "mean", "fid", NOISY, smooth=3, steps=5) == (5, pytest.approx(11 / 3), 5)
    _, checkpoints = scored(tmp_path / "more", "fid", {**NOISY, 6: 9.0}, smooth=3)
    assert (checkpoints.best_step, checkpoints.best_value) == (5, 4.0)
    assert (checkpoints.last_step, checkpoints.last_value, checkpoints.idle) == (6, 9.0, 1)


def test_the_mean_goes_on_across_a_resume(tmp_path):
    scored(tmp_path / "cut", "fid", NOISY, smooth=3, steps=4)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    _, again = scored(tmp_path / "cut", "fid", NOISY, smooth=3, resume=last)
    _, whole = scored(tmp_path / "whole", "fid", NOISY, smooth=3)
    assert again.state_dict() == whole.state_dict()


def test_a_run_stops_early(tmp_path):
    """After two validations without a better one, at a checkpoint; a NaN is none; more patience goes on from there."""
    scores = {1: 5.0, 2: 4.0, 3: float("nan"), 4: 4.5, 5: 3.0, 6: 3.5, 7: 3.5}
    trainer, checkpoints = scored(tmp_path, "fid", scores, steps=9, early_stop=2)
    assert trainer.global_step == 4 and checkpoints.exhausted and checkpoints.idle == 2
    assert found(tmp_path) == {"best.ckpt": 2, "last.ckpt": 4}
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer, _ = scored(tmp_path, "fid", scores, steps=9, early_stop=2, resume=last)
    assert trainer.global_step == 4  # killed before its scores: it is at its end
    trainer, checkpoints = scored(tmp_path, "fid", scores, steps=9, early_stop=3, resume=last)
    assert trainer.global_step == 9 and checkpoints.best_step == 5 and checkpoints.idle == 2
    trainer, _ = scored(tmp_path / "never", "fid", scores, steps=7)
    assert trainer.global_step == 7


def test_without_the_monitored_score_nothing_stops_early_and_that_is_said(tmp_path, caplog):
    trainer, _ = scored(tmp_path, "fid", {1: 1.0, 2: 2.0}, name="other score", steps=3, early_stop=1)
    assert trainer.global_step == 3 and caplog.text.count("No best.ckpt and no early stop: checkpoint.monitor=fid") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["checkpoint.early_stop=0"], "checkpoint.early_stop must be a whole number of at least 1, or null, got 0"),
        (["checkpoint.smooth=0"], "checkpoint.smooth must be a whole number of at least 1, got 0"),
        (["checkpoint.early_stop=2"], "needs scores on validation data, and metrics=none has none"),
        (["checkpoint.early_stop=2", "metrics=points"], "needs the callback that scores validation data"),
    ],
)
def test_mistakes_about_the_best(words, said, tmp_path):
    with pytest.raises(UserError, match=said):
        running.make_trainer(running.build(config([*POINTS, *words])), tmp_path)


@pytest.mark.parametrize(("monitor", "mode"), [("energy", "min"), ("hq", "max"), ("modes", "max")])
def test_a_monitored_score_knows_which_way_is_better(monitor, mode, tmp_path):
    """`checkpoint.monitor` may name any score of the judge, not only its first choice."""
    parts = running.build(config([*POINTS, "metrics=points", f"checkpoint.monitor={monitor}"], model=WALK))
    trainer = running.make_trainer(parts, tmp_path)
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))
    assert (checkpoints.monitor, checkpoints.mode) == (monitor, mode)


# Stopping


class At(Callback):
    """Does something at the end of an iteration."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            self.action()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_iteration(number, tmp_path):
    """With a checkpoint of it; and the handlers are the former ones again."""

    def mine(number, frame):
        raise AssertionError("not while training")

    before = signal.signal(number, mine)
    try:
        callback = At(4, lambda: os.kill(os.getpid(), number))
        fitted = fit(POINTS, 1000, tmp_path, [callback], model=WALK)
        assert signal.getsignal(number) is mine
        broken = At(2, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(POINTS, 5, tmp_path / "broken", [broken], model=WALK)
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)
    assert fitted.trainer.global_step == 4 and found(tmp_path) == {"last.ckpt": 4}
    stop = next(c for c in fitted.trainer.callbacks if isinstance(c, CleanStop))
    assert stop.signal == number and not stop.out_of_time


def test_a_second_signal_means_now():
    stop = CleanStop()
    stop._note(signal.SIGINT, None)
    with pytest.raises(Interrupted):
        stop._note(signal.SIGINT, None)


def test_the_time_limit_ends_the_run_after_an_iteration(tmp_path):
    parts = running.build(config([*POINTS, "max_time=00:00:01"], 10**6, model=WALK))
    parts.callbacks["slow"] = At(3, lambda: time.sleep(1.1))
    trainer = running.make_trainer(parts, tmp_path)
    trainer.fit(parts.model, datamodule=parts.data)
    assert trainer.global_step == 3 and found(tmp_path) == {"last.ckpt": 3}
