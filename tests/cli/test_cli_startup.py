"""What needs no arithmetic answers at once: it must not import torch, which takes longer than all the rest."""

import json
import subprocess
import sys

QUICK = {
    "train": [
        ["--help"],
        ["--help", "modle=gan"],
        ["--hydra-help"],
        ["--cfg", "job", "model=began"],
        ["--info", "defaults"],
        ["--list", "models"],
        ["--list", "nothing"],
        ["-sc", "install=bash"],
        ["-sc", "query=bash"],
        ["model=dcgn"],
        ["seeed=3"],
        ["seed=abc"],
        ["model=vae", "loss=hinge"],
        ["data=digits,mnist"],
        ["metrics=null"],
        ["resume=nowhere"],
        ["resume=auto"],
        ["--version"],
        ["data=folder", "data.root=nowhere"],
        ["data=cifar10", "data.root=nowhere"],
        ["init_from=nowhere"],
        ["-m", "model=gan", "seeed=1,2"],
    ],
    "sample": [["--help"], ["--version"], ["seeed=3"], ["run=nowhere"], ["run=nowhere", "sampler=drs"]],
    "evaluate": [["--help"], ["--version"], ["run=nowhere"]],
    "report": [["--help"]],
    "visualize": [["--help"], ["--version"], ["run=nowhere"]],
    "export": [["--help"], ["run=nowhere"]],
    "train_classifier": [["--help"], ["data=mnist", "data.root=nowhere"]],
}
PROGRAM = """
import importlib, json, os, sys
os.environ.update(COMP_LINE="python train.py model=", COMP_POINT="22")
_, lines, *names = sys.argv
found = {}
for command, lines in json.loads(lines).items():
    module = importlib.import_module(f"genlab.cli.{command}")
    for line in lines:
        sys.argv = [f"{command}.py", *line]
        try:
            if line != ["resume=auto"]:
                module.main()
            else:  # up to the start of a new run
                module._earlier_start(["model=gan"], None)
        except SystemExit:
            pass
        imported = [name for name in names if name in sys.modules]
        if imported and not found:
            found[" ".join([command, *line])] = imported
print("RESULT", json.dumps(found))
"""
HEAVY = ("torch", "pytorch_lightning", "torchvision", "torchmetrics")


def imported(lines, names, folder):
    """The first of the command lines that has imported one of the modules, and what it said."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    result = subprocess.run(
        [sys.executable, str(program), json.dumps(lines), *names],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout.rpartition("RESULT ")[2])


def test_what_answers_without_torch(tmp_path):
    assert imported(QUICK, HEAVY, tmp_path) == {}


def test_the_test_above_can_fail(tmp_path):
    """By another module, which a list of options is drawn with."""
    line = ["--list", "models"]
    assert imported({"train": [line]}, ["rich"], tmp_path) == {"train --list models": ["rich"]}
