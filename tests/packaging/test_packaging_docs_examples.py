"""The examples of docs/adding-a-method.md, run from the text of the document."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import yaml

from genlab.files import run_path
from tests.cli.helpers import REPO

TEXT = (REPO / "docs" / "adding-a-method.md").read_text()
FEW = ["trainer.max_steps=3", "trainer=cpu", "threads=1", "callbacks=none", "metrics=none", "logger=none"]
COMMANDS = {"genlab-train": "genlab.cli.train", "genlab-sample": "genlab.cli.sample"}


def block(name, language):
    """The first code block after the place that names a file."""
    after = TEXT[TEXT.index(name) :]
    return re.search(rf"```{language}\n(.*?)```", after, re.DOTALL).group(1)


def commands(program, *words):
    """The arguments of the document's commands of a program that hold these words."""
    lines = [line for line in TEXT.splitlines() if line.startswith(program) and all(word in line for word in words)]
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project of a user: `mymethods` and `myconfigs` as the document tells to make them."""
    folder = tmp_path_factory.mktemp("project")
    r1_gan = block("configs/model/r1_gan.yaml`", "yaml")
    files = {
        "mymethods/r1_gan.py": block("genlab/models/r1_gan.py`", "python"),
        "mymethods/rings.py": block("mymethods/rings.py`", "python"),
        "mymethods/disco.py": block("mymethods/disco.py`", "python"),
        "myconfigs/model/r1_gan.yaml": r1_gan.replace("genlab.models.r1_gan.R1GAN", "mymethods.r1_gan.R1GAN"),
        "myconfigs/data/rings.yaml": block("myconfigs/data/rings.yaml`", "yaml"),
        "myconfigs/model/disco.yaml": block("myconfigs/model/disco.yaml`", "yaml"),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def run(program, arguments, project):
    """A command of the document in the project, where PYTHONPATH is ".", in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(REPO)]), "OMP_NUM_THREADS": "1"}
    code = f"from {COMMANDS[program]} import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=project, env=env, text=True, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "model"),
    [(["model=r1_gan"], "r1_gan"), (["model=cgan"], "cgan"), (["model=disco"], "disco")],
)
def test_an_example_of_ones_own_project_trains_and_draws(words, model, project):
    """Each training with its sampling, the document's own command lines but for the length."""
    (training,) = [c for c in commands("genlab-train", *words) if "--config-dir" in c]
    run("genlab-train", [*training, *FEW], project)
    config = yaml.safe_load(run_path(project / "outputs" / "latest" / "config.yaml").read_text())
    assert config["choices"]["model"] == model
    sampling = next(c for c in commands("genlab-sample") if any("radius" in a for a in c) == (model != "r1_gan"))
    run("genlab-sample", [*sampling, "format=npz", "out=samples.npz"], project)
    with np.load(project / "samples.npz") as found:
        assert found["x"].shape == ((64, 2) if model == "r1_gan" else (2000, 2))
        if model != "r1_gan":
            np.testing.assert_array_equal(found["radius"], np.full((2000, 1), 1.5, np.float32))


def test_the_closed_form_of_the_documents_test_holds():
    code, _, _ = block("## 3. The tests", "python").partition("def test_each_player_moves_alone")
    space = {}
    exec(code, space)
    space["test_the_penalty_of_a_linear_discriminator"]()


def test_the_rings_are_what_the_document_says(project, monkeypatch):
    """Points at their radius, give or take the noise."""
    monkeypatch.syspath_prepend(str(project))
    from mymethods.rings import Rings

    facts = yaml.safe_load(block("myconfigs/data/rings.yaml`", "yaml"))["columns"]
    data = Rings(batch_size=64, columns=facts)
    store = data.split("train")
    off = store.values("x").norm(dim=1) - store.values("radius").squeeze(1)
    assert len(store) == 8000 and 0.04 < float(off.std()) < 0.06 and abs(float(off.mean())) < 0.005
