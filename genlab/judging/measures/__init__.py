"""One file for each family of scores; each file found here is part of training, `genlab-evaluate` and reports.

The files are read by `--help`, so they import torch in `take` only.
"""
