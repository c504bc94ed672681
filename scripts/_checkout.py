"""Puts this checkout before an installed genlab, as Python does for `train.py`: scripts/ lies one folder deeper."""

import os
import sys
from pathlib import Path

root = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, root)
os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])  # of child processes
