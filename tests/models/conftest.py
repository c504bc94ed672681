"""Fixtures of the model tests."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Tiny networks on one thread, and the former number afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
