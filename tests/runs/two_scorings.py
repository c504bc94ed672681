"""Run by torchrun in two processes; its arguments list as JSON first command lines of evaluate, then trainings."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from genlab.cli import evaluate
from genlab.config.composition import compose
from genlab.runs.start import train
from genlab.sharing import joined

torch.set_num_threads(1)
scorings, trainings = (json.loads(argument) for argument in sys.argv[1:])
with joined():  # once for all: torchrun's processes can meet only once
    for arguments in scorings:
        sys.argv = ["evaluate.py", *arguments]
        with suppress(SystemExit):  # of a mistake, which is looked for in what is printed
            evaluate.main()
    for overrides, folder in trainings:
        train(compose(overrides), Path(folder))
