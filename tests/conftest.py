"""What all tests share: few threads (the suite runs beside others), a cache of their own, the real data if at hand."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores

REPO = Path(__file__).resolve().parent.parent


LONGEST = ("runs", "cli", "faults", "packaging", "benchmarks", "metrics", "models")  # folders of long tests come first


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
