"""The texts that a new user reads: bar, train.log, lists, versions; and what `outputs/latest` and mistakes leave."""

import importlib
import io
import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing import io_wrapper

import genlab
from genlab.callbacks import progress
from genlab.callbacks.progress import Progress
from genlab.cli import app
from genlab.config.composition import compose, config_dir, first_line
from genlab.config.shipped import options, read_option
from genlab.errors import TrainingStopped, UserError, install
from genlab.files import run_path
from genlab.judging.cards import margin
from genlab.judging.records import find_runs
from genlab.reports.report import short
from genlab.runs.folder import find_run
from genlab.runs.paths import root_of
from genlab.runs.start import train
from tests.cli.helpers import main

COMMANDS = ("train", "sample", "evaluate", "report", "visualize", "export", "train_classifier", "benchmark", "gallery")
RING = ["data=ring", "network.hidden=[16]", "data.batch_size=8", "threads=1", "trainer=cpu"]
SHORT = [*RING, "trainer.max_steps=4", "trainer.log_every_n_steps=2", "logger=csv"]


# --- The bar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120])
def test_iteration_and_time_left_are_cut_last(width, monkeypatch):
    """A line holds them, whatever else has to go."""
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=screen, force_terminal=True, width=width))
    values = {f"train/{name}_loss": torch.tensor(1.2345) for name in ("d", "g", "e", "discriminator", "latent")}
    trainer = SimpleNamespace(
        global_step=1000,
        max_steps=5000,
        is_global_zero=True,
        callback_metrics={**values, "val/fid/classifier-digits": torch.tensor(12.3)},
        datamodule=SimpleNamespace(batch_size=64),
    )
    bar = Progress(refresh_seconds=0.0)
    bar.on_train_start(trainer, None)
    for trainer.global_step in (1001, 1002, 1003):
        bar.on_train_batch_end(trainer, SimpleNamespace(batches_per_step=1), None, None, 0)
    bar.on_train_end(trainer, None)
    text = screen.getvalue().replace("\r", "\n")
    (line,) = [part for part in text.split("\n") if "1003/5000" in part][:1]
    assert " left" in line
    assert ("g_loss" in line) == (width >= 80)
    assert text.count("1003/5000") <= 2  # the second is the closing one: no line is broken in two


def test_a_warning_stands_above_the_bar(monkeypatch):
    """On a line of its own, also by a handler that holds the standard output of before."""
    screen, plain = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", plain)
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda: console)
    handler = logging.StreamHandler(plain)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    trainer = SimpleNamespace(global_step=0, max_steps=9, is_global_zero=True)
    bar = Progress()
    bar.on_train_start(trainer, None)
    logging.getLogger("genlab").warning("beware")
    bar.on_train_end(trainer, None)
    assert "\r\x1b[2Kbeware\n" in screen.getvalue()  # the bar's line is erased first
    logging.getLogger("genlab").warning("after it")
    assert plain.getvalue() == "after it\n"


# --- train.log ------------------------------------------------------------------------------------------------------


def lines_of(run):
    return [line.split("  ", 1)[1] for line in (run / "train.log").read_text().splitlines()]


def test_train_log_holds_the_run(tmp_path, monkeypatch):
    """Start, iterations, scores, warnings (Python's too), the end and a resumption; no line twice under Hydra."""

    class Warns(Progress):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            logging.getLogger("genlab").warning("a warning of genlab")
            warnings.warn("a warning of Python", UserWarning, stacklevel=1)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "Progress", Warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        lines = ["metrics.num_samples=20", "callbacks.progress.log_every_n_steps=2", "~callbacks.grid"]
        assert main(monkeypatch, *SHORT, *lines, "hydra.run.dir=run") == 0
    found = lines_of(tmp_path / "run")
    for start in (
        *("gan on ring (", "iteration 2/4 ", "iteration 4/4 ", "iteration 4: val/", "a warning of genlab"),
        *("UserWarning: a warning of Python", "length: 4 iterations", "modes: ", "go on: "),
    ):
        assert len([line for line in found if line.startswith(start)]) == 1, start
    test, compared = (line for line in found if line.startswith("energy: "))
    assert "20 generated, 20 real, test" in test and compared.split() == ["energy:", "validation", "test"]
    assert main(monkeypatch, "resume=run", "trainer.max_steps=6") == 0
    more = lines_of(tmp_path / "run")[len(found) :]
    assert more[0].startswith("gan on ring from iteration 4 (") and any("length: 6 iterations" in line for line in more)


def test_train_log_holds_the_reason_of_a_stop(tmp_path):
    config = compose([*SHORT, "callbacks=none", "model.g_optimizer.lr=1e30", "trainer.max_steps=50"])
    with pytest.raises(TrainingStopped):
        train(config, tmp_path)
    assert lines_of(tmp_path)[-1].startswith("Training stopped: ")


# --- Lists and versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", sorted(path.name for path in config_dir().iterdir() if any(path.glob("*.yaml"))))
def test_every_option_is_described(group):
    """In a line that is a whole: `--list` shows no more of the yaml."""
    for name in options(group):
        text = first_line(group, name)
        assert text and not text.startswith(("@", "configs/")), name
        assert not text.endswith(
            (",", ";", " a", " the", " of", " with", " and", " as", " et", " one", " each", "/")
        ), name


def test_list_of_experiments(monkeypatch, capsys):
    assert main(monkeypatch, "--list", "experiment") == 0
    output = capsys.readouterr().out
    assert "Gaussians" in output and "@package" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{command}.py", "--version"])
    importlib.import_module(f"genlab.cli.{command}").main()
    assert capsys.readouterr().out == f"genlab {genlab.__version__}\n"


# --- The newest run -------------------------------------------------------------------------------------------------


def test_latest_is_in_tensorboard_once_and_leads_to_the_run(tmp_path, monkeypatch):
    """Also where an older version has left a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "latest").symlink_to("gone", target_is_directory=True)
    train(compose([*SHORT[:-1], "metrics=none", "trainer.max_steps=2"]), tmp_path / "outputs" / "run")
    assert list(io_wrapper.GetLogdirSubdirectories("outputs")) == ["outputs/run/tb"]
    run = (tmp_path / "outputs" / "run").resolve()
    assert find_run("outputs/latest") == (run, run_path("outputs/latest/checkpoints/last.ckpt"))
    assert find_run("outputs/latest/checkpoints/last.ckpt")[0] == run
    assert [path.resolve() for path in find_runs(["outputs/latest"])] == [run]
    assert len(find_runs(["outputs"])) == 1
    assert genlab.load("outputs/latest").sample(2).shape == (2, 2)
    assert main(monkeypatch, "resume=outputs/latest", "trainer.max_steps=3") == 0
    assert run_path("runs/none") == run_path("runs") / "none"


# --- Mistakes -------------------------------------------------------------------------------------------------------


def broken(folder):
    """Pictures, one of which is cut short: only reading them shows it."""
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=folder", "data.root=nowhere"], ["nowhere", "data=folder data.root=PATH"]),
        (["data=folder"], ["data=folder needs data.root=PATH"]),
        (["data=cifar10", "data.root=nowhere"], ["nowhere", "data.download=true"]),
        (["data=captions", "data.root=nowhere"], ["nowhere"]),
        (["data=unpaired", "data@data.domains.a=mnist", "data@data.domains.b=digits"], ["data.domains.a.root"]),
        (["init_from=nowhere"], ["nowhere"]),
        (["data=folder", "data.root=broken", "data.image_size=8"], ["2.png"]),
        (["ema.decay=2"], ["ema.decay"]),
    ],
)
def test_a_mistake_leaves_no_folder(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENLAB_DATA", raising=False)
    broken(tmp_path / "broken")
    assert main(monkeypatch, *arguments, "trainer.max_steps=2") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_every_set_of_files_says_what_its_root_is():
    """Without reading them, by the head of its yaml."""
    for name in options("data"):
        config = read_option("data", name)
        if "root" in config and "source" not in config:  # stacked digits may be stacked of those in scikit-learn
            assert "data.root" in root_of(name) and len(root_of(name)) < 400, name


# --- Small things ---------------------------------------------------------------------------------------------------


def test_small_models_have_parameters(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(compose([*SHORT, "metrics=none", "callbacks=none"]), tmp_path)
    (headline,) = [line for line in caplog.messages if line.startswith("gan on ring")]
    assert "(discriminator 65, generator 306 parameters)" in headline
    assert [short(n) for n in (950, 12_345, 1_234_567, 2e9)] == ["950", "12.3k", "1.23M", "2B"]


def test_rounding_is_no_spread():
    assert margin(1.0, 4.4e-14) == "0" and margin(0.0, 0.0) == "0"
    assert margin(6.2, 0.4712) == "0.47" and margin(0.0, 1e-9) == "1e-09"


def test_an_extra_is_installed_from_the_checkout(monkeypatch, tmp_path):
    from genlab import errors

    root = config_dir().resolve().parent
    monkeypatch.chdir(root)
    assert install("optuna") == 'pip install -e ".[optuna]"'
    monkeypatch.chdir(tmp_path)
    assert install("optuna") == f'pip install -e "{root}[optuna]"'
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "genlab" / "errors.py"))
    assert install("optuna") == 'pip install "genlab[optuna]"'


def test_a_bar_is_for_terminals(capsys):
    with app.bars() as show:
        show("drawing", 0.5)
    assert capsys.readouterr().out == ""


def test_pictures_that_do_not_fit_are_named_once(tmp_path, capsys):
    """On one line; asked for alone, each tells why. Titles are the names of the command line."""
    from genlab.cli.visualize import DEFAULTS as LOOKS
    from genlab.cli.visualize import looks_into, visualize

    train(compose([*SHORT, "model=wgan_gp", "metrics=none", "callbacks=none"]), tmp_path)
    visualize({"run": str(tmp_path), "n": 2})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Left out" in line]
    assert "latent_map" in line and "frames" in line
    with pytest.raises(UserError, match="has no `encode`"):
        visualize({"run": str(tmp_path), "what": "latent_map"})
    assert looks_into(genlab.load(tmp_path), LOOKS).name == "wgan_gp on ring"


def test_the_oldest_tensorboard_that_is_allowed_works_with_new_setuptools():
    """2.20 imports pkg_resources, which setuptools 82 has no longer."""
    assert '"tensorboard>=2.21"' in (config_dir().resolve().parent / "pyproject.toml").read_text()
    assert read_option("experiment", "gan_ring")  # the checkout's own configs
