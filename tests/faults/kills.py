"""Kills `train.py` at chosen points and goes on with it, once per line of standard input; a program of its own.

Everything is imported once and each command runs in a forked child, since imports take longer than these runs. A point
is a call of something that trains or writes, counted from the start of the command: which call that is depends on
nothing but the command, so the same number is the same point each time.
"""

import io
import json
import os
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from hydra.core import utils

from genlab import files
from genlab.callbacks import checkpoints
from genlab.cli import train as cli
from genlab.config import composition
from genlab.data import images, toy  # noqa: F401  (what the children would import each)
from genlab.models import base
from genlab.runs import folder as runs
from genlab.runs import running, summary

TRAINING, WRITING, SETUP = "training", "writing", "set-up"


class Points:
    """Counts the points, and kills this process at one of them."""

    def __init__(self, kill_at=None):
        self.kill_at, self.kinds = kill_at, []

    def come_to(self, kind):
        self.kinds.append(kind)
        if len(self.kinds) - 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name, kind):
        """Makes a point before and after each call of a function."""
        call = getattr(owner, name)

        def watched(*args, **kwargs):
            self.come_to(kind)
            result = call(*args, **kwargs)
            self.come_to(kind)
            return result

        setattr(owner, name, watched)

    def install(self, links):
        """Watches set-up, iterations, optimizer steps, and every step of a write, half of a file's bytes included."""
        save = torch.save

        def save_in_halves(content, file):
            buffer = io.BytesIO()
            save(content, buffer)
            written = buffer.getvalue()
            file.write(written[: len(written) // 2])
            file.flush()
            self.come_to(WRITING)
            file.write(written[len(written) // 2 :])

        torch.save = save_in_halves
        self.watch(utils, "_save_config", SETUP)
        self.watch(utils.OmegaConf, "to_yaml", SETUP)
        self.watch(composition, "resolve", SETUP)
        self.watch(running, "build", SETUP)
        self.watch(running, "_prepare_data", SETUP)
        self.watch(base.GenerativeModel, "end_iteration", TRAINING)
        self.watch(torch.optim.Adam, "step", TRAINING)
        self.watch(files.os, "fsync", WRITING)
        self.watch(files.os, "replace", WRITING)
        self.watch(files.tempfile, "mkstemp", WRITING)
        self.watch(checkpoints.Path, "unlink", WRITING)
        if links:
            self.watch(files.os, "link", WRITING)
        else:  # a file system without hard links

            def no_link(*_):
                raise OSError(1, "Operation not permitted")

            files.os.link = no_link
        self.watch(runs, "write_config", WRITING)


def forked(arguments, output, kill_at=None, links=True):
    """Runs a command in a child.

    Args:
        arguments: What is typed behind `train.py`.
        output: Where its output goes.
        kill_at: The number of the point that kills it, None to let it live.
        links: Whether the file system has hard links.

    Returns:
        Its exit code (-9 when it was killed), and the kinds of the points that it came to if it lived to tell.
    """
    told = output.with_suffix(".points")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        kinds = json.loads(told.read_text()) if told.is_file() else []
        told.unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status), kinds
    code = 99
    try:
        with output.open("a") as file, redirect_stdout(file), redirect_stderr(file):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            points = Points(kill_at)
            points.install(links)
            sys.argv = ["train.py", *arguments]
            try:
                cli.main()
                code = 0
            except SystemExit as stopped:
                code = stopped.code or 0
            except BaseException:
                traceback.print_exc()
            told.write_text(json.dumps(points.kinds))
    finally:
        os._exit(code)


def main():
    """Reads jobs ({folder, arguments}, maybe kill_at and links), answers each with {code, points, log} on a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    torch.set_num_threads(1)
    summary.write_pictures = lambda *_: None  # no part of what is compared, and half of the time
    parts = running.build(composition.compose(["data=ring", "callbacks=none", "logger=csv", "metrics=none"]))
    running.make_trainer(parts, Path("nowhere"))  # what it imports, each child has
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job["folder"])
        output = folder.with_suffix(".log")
        output.unlink(missing_ok=True)
        code, kinds = forked(job["arguments"], output, job.get("kill_at"), job.get("links", True))
        answers.write(json.dumps({"code": code, "points": kinds, "log": output.read_text()}) + "\n")


if __name__ == "__main__":
    main()
