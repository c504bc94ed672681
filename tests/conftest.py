"""What all tests share: few threads (the suite runs beside others), a cache of their own, the real data if at hand."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores

REPO = Path(__file__).resolve().parent.parent


# Folders of long tests come first.
LONGEST = (
    "runs",
    "cli",
    "faults",
    "packaging",
    "benchmarks",
    "metrics",
    "extractors",
    "models",
)  # folders of long tests come first


def pytest_collection_modifyitems(items):
    """Files of few long tests are not left to the end, where one worker would wait for the other."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Trained classifiers and prepared data sets go to a folder of the test session."""
    os.environ["GENLAB_CACHE"] = str(tmp_path_factory.mktemp("genlab_cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, or $GENLAB_TEST_DATA; tests that want it skip without it."""
    path = Path(os.environ.get("GENLAB_TEST_DATA", REPO.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found in {path}")
    return path


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """He-initialised weights: with torch's default initial values the activations die out and features are constant."""
    import torch

    from genlab.networks.inception import published_layout

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
def digits():
    """scikit-learn's digits as the data of a classifier."""
    import torch
    from sklearn.datasets import load_digits

    from genlab.extractors.classifier import ClassifierData

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
    import torch

    def states():
        name, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), (name, keys.tolist(), *rest), random.getstate()

    before = states()
    yield
    assert states() == before
