"""Fills a small disk with a run's checkpoints, makes room, and goes on; a program of its own, in its own mounts."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from genlab.cli import train as cli


def command(*arguments):
    """`train.py` with these arguments: exit code and all that it says."""
    sys.argv, said = ["train.py", *arguments], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
    return code, said.getvalue()


def main():
    """Arguments: the mount point, and those of the run."""
    disk, *line = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    alone = command(*line, "hydra.run.dir=alone")
    full = command(*line, f"hydra.run.dir={disk}/run")
    left = sorted(p.name for p in Path(disk, "run", "checkpoints").iterdir())
    again = command(f"resume={disk}/run")  # still full
    for path in Path(disk, "run", "checkpoints").glob("step_*.ckpt"):
        path.unlink()
    made_room = command(f"resume={disk}/run", "checkpoint.keep=1")
    from tests.cli.helpers import assert_identical, weights

    assert_identical(weights("alone"), weights(Path(disk, "run")))
    json.dump({"alone": alone, "full": full, "left": left, "again": again, "made_room": made_room}, answers)
    answers.flush()


if __name__ == "__main__":
    main()
