"""Paths of any letters are read as they are typed, and what a command prints can be pasted."""

import importlib
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from genlab import commands
from genlab.cli import app
from genlab.cli.train import _override
from genlab.config.arguments import take_path
from genlab.config.composition import compose, quote_paths
from genlab.errors import UserError
from genlab.runs.summary import print_summary
from tests.cli.helpers import command

ODD = [
    "é",
    "日本/λ",
    "a b",
    "a'b",
    'a"b',
    "a\\b",
    "a\\",
    "a\\'b",
    "a\\\\'",
    "a=b (c) [d], {e}",
    "~x",
    "a~b",
    "$x",
    "%d",
    "#",
]
KEYS = ["data.root", "data.domains.root", "init_from", "first_stage", "metrics.inception_weights", "hydra.run.dir"]
COMMANDS = {
    "train": "resume",
    "sample": "run",
    "evaluate": "run",
    "visualize": "run",
    "export": "run",
    "report": "runs",
}


@pytest.mark.parametrize("key", KEYS)
def test_hydra_reads_a_path_as_it_was_typed(key):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for path in ODD if key == "data.root" else ODD[:8]:
        if path.startswith("$"):  # an interpolation, as in hydra.run.dir=${...}
            continue
        (typed,) = quote_paths([f"{key}={path}"])
        override = OverridesParser.create().parse_override(typed)
        assert override.value() == path, typed
        assert quote_paths([typed]) == [typed]  # a sweep is typed again by genlab itself


def test_the_home_folder_stands_in_every_path(tmp_path, monkeypatch):
    """Shells leave `~` behind `key=` as it is; in a config file or a variable there is no shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GENLAB_DATA", "~/sets")
    assert compose(["data=mnist"])["data"]["root"] == f"{tmp_path}/sets"
    assert compose(["data=folder", "data.root=~/é b"])["data"]["root"] == f"{tmp_path}/é b"
    assert quote_paths(["hydra.run.dir=~/run"]) == [f"hydra.run.dir={tmp_path}/run"]
    assert take_path(["out=~/a", "n=1"], "out") == (f"{tmp_path}/a", ["n=1"])
    config = compose()
    _override(config, ["data.root=~/moved"])
    assert config["data"]["root"] == f"{tmp_path}/moved"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_looks_for_a_run_in_the_home_folder(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, f"{COMMANDS[name]}=~/ü 'x'"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"genlab.cli.{name}").main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "ü 'x'" in told and "~" not in told


@pytest.mark.parametrize("name", [*COMMANDS, "train_classifier", "benchmark", "gallery", "mode_benchmark"])
def test_a_locale_without_utf8_ends_in_a_sentence(name, monkeypatch, capsys):
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"genlab.cli.{name}").main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "PYTHONUTF8=1" in told and "Traceback" not in told


def test_such_a_locale_on_a_real_command_line(tmp_path):
    typed = ["data=folder", "data.root=é"]
    result = command(typed, tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert result.returncode == 2 and "PYTHONUTF8=1" in result.stderr and "Traceback" not in result.stderr


def test_utf8_passes(monkeypatch):
    for name in ("UTF-8", "utf8", "utf-8"):
        monkeypatch.setattr("locale.getpreferredencoding", lambda _, name=name: name)
        app.check_locale()


def test_commands_name_what_the_user_has(tmp_path, monkeypatch):
    """The script of a checkout, seen from any folder; `genlab-...` while such a command runs."""
    home = Path(commands.__file__).resolve().parent.parent
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [str(home / "train.py")])
    assert commands.command("sample", run=Path("outputs/a"), n=64) == "python scripts/sample.py run=outputs/a n=64"
    assert commands.command("train", resume=home / "outputs" / "a") == "python train.py resume=outputs/a"
    monkeypatch.chdir(tmp_path)
    words = shlex.split(commands.command("sample", run=tmp_path / "é 'b' (c)"))
    assert words[0] == "python" and Path(words[1]).is_file() and words[2] == "run=é 'b' (c)"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/genlab-train"])
    assert commands.command("sample", run=tmp_path / "a") == "genlab-sample run=a"
    assert commands.command("train_classifier", data="digits") == "genlab-classifier data=digits"
    assert commands.command("gallery").startswith("python ")  # has no command of its own


def test_help_names_what_the_user_has(monkeypatch, capsys):
    """In a checkout its scripts, in columns as before; `genlab-...` while such a command runs."""
    from genlab.cli import app, sample

    monkeypatch.chdir(Path(commands.__file__).resolve().parent.parent)
    for program, words in (("scripts/sample.py", "python scripts/sample.py"), ("/bin/genlab-sample", "genlab-sample")):
        monkeypatch.setattr(sys, "argv", [program, "--help"])
        app.print_if_asked(sample.HELP)
        app.print_help("train", [])
        told = capsys.readouterr().out
        assert f"\n  {words} run=outputs/latest " in told
        train = words.replace("scripts/sample", "train").replace("-sample", "-train")
        assert f"\n  {train} model=began data=celeba " in told
        assert ("genlab-" in told) == (program == "/bin/genlab-sample")


def test_an_installed_wheel_has_no_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "site-packages" / "genlab" / "commands.py"))
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert commands.command("evaluate", run=Path("a")) == "genlab-evaluate run=a"


def test_every_named_script_exists():
    home = Path(commands.__file__).resolve().parent.parent
    for name in (*COMMANDS, *commands.ONLY_SCRIPTS, *commands.INSTALLED):
        assert (home / commands.SCRIPTS.get(name, f"scripts/{name}.py")).is_file()


def test_paths_are_relative_where_that_is_shorter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands.short(tmp_path / "outputs" / "a") == os.path.join("outputs", "a")
    assert commands.short("/bin") == "/bin"


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_the_last_lines_of_a_run_can_be_pasted(columns, tmp_path, monkeypatch, capsys):
    """Whatever the width: whole lines, quoted, of arguments that find the run."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a long folder's name [bold], with brackets é" / "2026-01-01_00-00-00-000_gan_digits"
    run.mkdir(parents=True)
    parts = SimpleNamespace(judge=None, config={"trainer": {"max_steps": 5000}, "checkpoint": {}})
    best = {"monitor": None, "score": None, "iteration": None}
    record = {"choices": {"model": "gan"}, "seed": 0, "sessions": [{"wall_seconds": 1.0}], "iterations": 5000}
    print_summary(parts, run, {**record, "images_per_second": 1.0, "best": best, "last": {}}, {})
    plain = capsys.readouterr().out
    lines = [line.partition("  ")[2].strip() for line in _without_colours(plain).splitlines() if ".py" in line]
    typed = [dict(word.split("=", 1) for word in shlex.split(line)[2:]) for line in lines]
    assert [Path(t.get("run") or t["resume"]).resolve() for t in typed] == [run, run]
    assert typed[1]["trainer.max_steps"] == "10000" and all("\n" not in line for line in lines)


def _without_colours(text):
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_record_of_a_run_holds_its_command_as_it_is_pasted(tmp_path, monkeypatch):
    from genlab.runs.folder import RunRecord

    monkeypatch.setattr(sys, "argv", ["train.py", "data.root='a b'", "model=gan"])
    record = RunRecord(tmp_path, {"choices": {}, "seed": 0})
    assert shlex.split(record.session["command"]) == sys.argv


def test_device_names_are_checked_before_a_checkpoint_is_read(tmp_path):
    from genlab.config.arguments import check_device

    for device in ("gpu", "0", "cuda:x", ""):
        with pytest.raises(UserError, match="Try device=cpu"):
            check_device(device)
