"""Run by torchrun in two processes; its argument lists the trainings as JSON, [[overrides, folder, resume to], ...]."""

import json
import sys
from pathlib import Path

from genlab.cli.app import compose
from genlab.cli.running import train
from genlab.cli.runs import find_run, read_config

for overrides, folder, resume in json.loads(sys.argv[1]):
    if resume:
        _, checkpoint = find_run(folder)
        config = read_config(Path(folder))
        config["trainer"]["max_steps"] = resume
        train(config, Path(folder), resume=checkpoint)
    else:
        train(compose(overrides), Path(folder))
