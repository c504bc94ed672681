"""Random Inception weights in the published layout, and the digits; pytest's stand-ins for what is not at hand."""

import pytest
import torch

from genlab.metrics.classifier import ClassifierData
from genlab.metrics.inception import published_layout


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)  # the suite has one core a worker: two threads would wait for each other


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """He-initialised weights: with torch's default initial values the activations die out and features are constant."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_layout().items():
        if name.endswith("conv.weight"):
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[name] = torch.randn(shape, generator=generator) * (0.02 if name == "fc.weight" else 0.1)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def digits() -> ClassifierData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy((bunch.images * 255 / 16).round()).to(torch.uint8)[:, None]
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    x, y = x[order], y[order]
    return ClassifierData(x[:1437], y[:1437], x[1437:], y[1437:], num_classes=10)


@pytest.fixture
def rng_untouched():
    """Fails the test if it moves the global random stream of torch, numpy or Python."""
    import random

    import numpy as np

    def states():
        name, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), (name, keys.tolist(), *rest), random.getstate()

    before = states()
    yield
    assert states() == before
