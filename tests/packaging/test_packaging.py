"""The wheel: what is in it, and its commands from another folder. Built without network from a copy of the sources."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")  # CPU time of children; not on Windows

REPO = Path(__file__).resolve().parents[2]
SOURCES = ("genlab", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def copied(target, names=SOURCES):
    """A copy of the sources, since setuptools leaves build folders behind, and would pack what an older one holds."""
    target.mkdir()
    for name in names:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, target / name)
    return target


def run(arguments, cwd, **env):
    """A command that must succeed, on one thread; its standard output."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env}
    result = subprocess.run(arguments, cwd=cwd, env=env, text=True, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, so that both are complete."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", code, str(folder)], copied(folder / "copy"))
    (archive,) = folder.glob("genlab-*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked")
    (source,) = (folder / "unpacked").iterdir()
    pip = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-index", "--no-build-isolation"]
    assert "Warning" not in run([*pip, "--wheel-dir", str(folder), str(source)], folder)
    (path,) = folder.glob("genlab-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's packages and commands."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    run([*pip, "--target", str(target), str(wheel)], target)
    return target


def test_the_wheel_holds_all_modules_and_configs(wheel):
    """`packages` in pyproject.toml is a list: a new folder that it does not name would be missed."""
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(p.relative_to(REPO)) for p in (REPO / "genlab").rglob("*.py")} | {"genlab/py.typed"}
    configs = {f"genlab/{p.relative_to(REPO)}" for p in (REPO / "configs").rglob("*.yaml")}
    assert sorted((code | configs) - names) == []
    metadata = {name for name in names if ".dist-info/" in name}
    assert sorted(names - code - configs - metadata) == []  # no tests, no scripts, no run folders
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


@pytest.mark.long
def test_the_commands_of_the_wheel_in_another_folder(installed, tmp_path):
    """Three iterations and four samples; `commit` in `run.json` is null only outside a checkout."""
    path = {"PYTHONPATH": str(installed)}
    where = "import genlab; from genlab.config.shipped import config_dir; print(genlab.__file__, config_dir())"
    for found in run([sys.executable, "-c", where], tmp_path, **path).split():
        assert Path(found).is_relative_to(installed)  # an editable install would otherwise answer
    train, sample = str(installed / "bin" / "genlab-train"), str(installed / "bin" / "genlab-sample")
    run(
        [sys.executable, train, "data=ring", "trainer.max_steps=3", "callbacks=none", "hydra.run.dir=here/run"],
        tmp_path,
        **path,
    )
    record = json.loads((tmp_path / "here" / "run" / "run.json").read_text())
    assert record["iterations"] == 3 and record["sessions"][0]["commit"] is None
    out = run([sys.executable, sample, "run=here/run", "n=4", "format=npz"], tmp_path, **path)
    assert (tmp_path / "here" / "run" / "samples_n4_seed0.npz").is_file(), out


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("train", ["--help"], ["autoencoder, avb, began", "wgan_gp", "max_steps"]),
        ("train", ["--list", "models"], ["arXiv:1704.00028"]),
        ("sample", ["--help"], ["run=outputs/latest"]),
    ],
)
def test_help_answers_at_once(module, arguments, words, installed, tmp_path):
    """No torch, no numpy: what takes seconds to import is imported to train, not to answer."""
    heavy = ("torch", "torchvision", "pytorch_lightning", "numpy", "sklearn", "matplotlib")
    code = (
        f"import sys; from genlab.cli.{module} import main; sys.argv = ['genlab', *{arguments}]\n"
        "try:\n    main()\n"
        f"finally:\n    print('HEAVY', [m for m in {heavy} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed), COLUMNS="200")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert out.endswith("HEAVY []\n")
    assert all(word in out for word in words), out
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    assert not list(tmp_path.iterdir())  # asking leaves no run folder
