"""Nearest neighbours in a large set, part by part."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from genlab.metrics.neighbours import nearest


@pytest.fixture
def images():
    return torch.randint(0, 256, (300, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_planted_copies_are_found_at_distance_zero(images):
    queries = torch.randint(0, 256, (100, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    planted = torch.arange(0, 100, 10)
    queries[planted] = images[200 + planted // 10]
    places, distance = nearest(queries, images.split(64), k=3)
    assert places[planted, 0].tolist() == [200 + i for i in range(10)]
    assert torch.equal(distance[planted, 0], torch.zeros(10, dtype=torch.float64))
    assert int((distance[:, 0] == 0).sum()) == 10


def test_it_agrees_with_sklearn_however_the_set_is_cut(images):
    queries = images[:20].float() + 0.25
    judge = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(images.flatten(1).double().numpy())
    wanted, rows = judge.kneighbors(queries.flatten(1).double().numpy())
    for size in (7, 300):
        places, distance = nearest(queries, images.split(size), k=5)
        assert places.tolist() == rows.tolist()
        torch.testing.assert_close(distance, torch.from_numpy(wanted))


def test_small_and_empty_sets(images):
    places, _ = nearest(images[:2], [images[:1], images[1:3]], k=9)
    assert places.shape == (2, 3)
    with pytest.raises(ValueError, match="is empty"):
        nearest(images[:2], [])
