"""One thread for all tests of scores."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)  # the suite has one core a worker: two threads would wait for each other
