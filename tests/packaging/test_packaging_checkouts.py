"""Checkouts: one installed in place beside the folder that holds it, and a second one on the same environment."""

import os
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_packaging import REPO, SOURCES, copied, run

BUILD = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
WHERE = "import genlab; from genlab.config.shipped import config_dir; print(genlab.__file__, config_dir())"
CHILD = f"""import subprocess, sys
def main():
    subprocess.run([sys.executable, "-c", {WHERE!r}])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The clone `genlab`, installed in place into `env`, and beside it another checkout, `second`, that differs."""
    folder = tmp_path_factory.mktemp("checkouts")
    for name in ("genlab", "second"):
        copied(folder / name, [*SOURCES, "train.py", "scripts"])
    second = folder / "second"
    (second / "configs" / "model" / "mine.yaml").write_text("# Of the second checkout\ndefaults: [gan]\n")
    (second / "genlab" / "cli" / "report.py").write_text(CHILD)
    run([sys.executable, "-c", BUILD, str(folder)], folder / "genlab", PYTHONPATH="")
    venv.create(folder / "env", with_pip=False, symlinks=os.name != "nt")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(packages(folder))
    (packages(folder) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def packages(place):
    """The folder of the environment's packages."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(place / "env")}))


def python(place, *arguments, cwd="."):
    """Runs the environment's Python in a folder of `place`; its output."""
    scripts = sysconfig.get_path("scripts", "venv", {"base": str(place / "env")})
    return run([str(Path(scripts) / "python"), *arguments], place / cwd, PYTHONPATH="")


def test_an_editable_install_is_a_plain_path(place):
    """An import hook is asked after all folders of `sys.path`, one of which may hold a folder `genlab`."""
    (path,) = (p for p in packages(place).glob("*.pth") if "genlab" in p.name)
    assert Path(path.read_text().strip()).samefile(place / "genlab")
    assert not list(packages(place).glob("*finder*")) and not (packages(place) / "genlab").exists()


@pytest.mark.parametrize("cwd", [".", "genlab", "env"])
def test_the_installed_checkout_is_found_from_every_folder(place, cwd):
    """Also from the folder that holds the clone, whose name is the package's."""
    found = [Path(path) for path in python(place, "-c", WHERE, cwd=cwd).split()]
    assert found == [place / "genlab" / "genlab" / "__init__.py", place / "genlab" / "configs"]


def test_a_second_checkout_runs_its_own_code_with_its_own_configs(place):
    """Its lists, its composition under Hydra, its scripts, which lie one folder deeper, and their child processes."""
    assert "Of the second checkout" in python(place, "second/train.py", "--list", "models")
    assert "GAN" in python(place, "second/train.py", "model=mine", "--cfg", "job", "-p", "model")
    found = [Path(path) for path in python(place, "second/scripts/report.py").split()]
    assert found == [place / "second" / "genlab" / "__init__.py", place / "second" / "configs"]


def test_configs_that_are_missing_are_a_sentence(tmp_path):
    """A package without either folder of configs; the one beside it belongs to something else."""
    for name in ("__init__.py", "errors.py", "config/__init__.py", "config/shipped.py"):
        (tmp_path / "genlab" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / "genlab" / name, tmp_path / "genlab" / name)
    (tmp_path / "configs").mkdir()
    code = "from genlab.config.shipped import *\ntry:\n    config_dir()\nexcept UserError as error:\n    print(error)"
    assert "genlab's configs are missing" in run([sys.executable, "-c", code], tmp_path, PYTHONPATH="")
