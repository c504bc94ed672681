"""Run by torchrun in two processes; its argument is a file of jobs as JSON: [[kind, what, folder], ...]."""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from genlab.config.composition import compose
from genlab.launch import stamp
from genlab.runs.folder import find_run, read_config
from genlab.runs.running import build, make_trainer
from genlab.runs.start import train


def last_iteration(config):
    """Trains a config of a few iterations; all gradients of the last one, and the weights and buffers after it."""
    parts = build(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(parts, Path(folder))
        trainer.fit(parts.model, datamodule=parts.data)
    gradients = {name: p.grad for name, p in parts.model.named_parameters() if p.grad is not None}
    return gradients, {name: value.clone() for name, value in parts.model.state_dict().items()}


def run(kind, what, folder):
    if kind == "train":  # overrides
        train(compose(what), Path(folder))
    elif kind == "resume":  # to so many iterations
        _, checkpoint = find_run(folder)
        config = read_config(Path(folder))
        config["trainer"]["max_steps"] = what
        train(config, Path(folder), resume=checkpoint)
    elif kind == "stamp":
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / os.environ["RANK"]).write_text(stamp())
    else:  # a resolved config
        found = last_iteration(what)
        if torch.distributed.get_rank() == 0:
            torch.save(found, folder)


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            run(*job)
        except Exception:  # the other jobs go on; the test of this one misses its file
            Path(f"{job[-1]}.failed").write_text(traceback.format_exc())
