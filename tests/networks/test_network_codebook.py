"""The codebook: nearest codes, Lloyd's step, fading, dead codes that begin anew, perplexity."""

import pytest
import torch
from torch.testing import assert_close

from genlab.errors import UserError
from genlab.networks.codebook import Codebook, perplexity
from genlab.networks.vqvae import Decoder, Encoder


def book(codes=5, dim=3, **kwargs):
    codebook = Codebook(codes, dim, **kwargs).double()
    points = torch.randn(40, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    codebook.start(points, torch.randperm(40, generator=torch.Generator().manual_seed(1)))
    return codebook, points


def test_nearest_is_the_least_distance():
    codebook, points = book()
    assert_close(codebook.nearest(points), torch.cdist(points, codebook.vectors).argmin(dim=1))
    assert_close(codebook.lookup(torch.tensor([[1, 4]])), codebook.vectors[[1, 4]][None])


def test_without_memory_it_is_a_step_of_k_means():
    codebook, points = book(decay=0.0, restart_below=0.0)
    indices = codebook.nearest(points)
    codebook.update(points, indices, torch.rand(40))
    for code in range(5):
        own = points[indices == code]
        assert_close(codebook.vectors[code], own.mean(dim=0))


def test_moving_averages_by_hand():
    codebook, points = book(decay=0.8, restart_below=0.0)
    counts, sums = codebook.counts.clone(), codebook.sums.clone()
    for part in points.split(20):
        indices = codebook.nearest(part)
        codebook.update(part, indices, torch.rand(20))
        counts = 0.8 * counts + 0.2 * torch.stack([(indices == code).sum() for code in range(5)])
        totals = torch.stack([part[indices == code].sum(dim=0) for code in range(5)])
        sums = 0.8 * sums + 0.2 * totals
        assert_close(codebook.vectors, sums / counts[:, None])


def test_an_unused_code_stays_where_it_is():
    codebook, points = book(restart_below=0.0)
    with torch.no_grad():
        codebook.vectors[2] = 100.0
        codebook.sums[2] = 100.0 * codebook.counts[2]
    for _ in range(3000):
        codebook.update(points, codebook.nearest(points), torch.rand(40))
    assert_close(codebook.vectors[2], torch.full((3,), 100.0, dtype=torch.float64))
    assert codebook.vectors.isfinite().all()


def test_a_dead_code_begins_anew_at_an_encoding_of_the_batch():
    codebook, points = book(decay=0.9, restart_below=0.1)
    with torch.no_grad():
        codebook.vectors[2] = 100.0
        codebook.sums[2] = 100.0 * codebook.counts[2]
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        codebook.update(points, codebook.nearest(points), uniform)
    used = codebook.nearest(points)
    assert perplexity(used, 5) > 3 and (used == 2).any()
    assert codebook.vectors.abs().max() < 10


def test_the_choice_of_dead_codes_is_that_of_the_random_numbers():
    """Equal numbers, equal codes: what makes resumed runs and several processes agree."""
    states = []
    for seed in (0, 0, 1):
        codebook, points = book(codes=64, decay=0.5, restart_below=0.5)
        rng = torch.Generator().manual_seed(seed)
        for _ in range(5):
            codebook.update(points, codebook.nearest(points), torch.rand(40, generator=rng))
        states.append(codebook.vectors)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_copies_of_a_batch_move_it_alike():
    """Its step does not depend on the batch's size (the averages of counts and sums grow together)."""
    once, points = book(decay=0.0, restart_below=0.0)
    thrice, _ = book(decay=0.0, restart_below=0.0)
    once.update(points, once.nearest(points), torch.rand(40))
    many = points.repeat(3, 1)
    thrice.update(many, thrice.nearest(many), torch.rand(120))
    assert_close(once.vectors, thrice.vectors)


def test_perplexity():
    assert_close(perplexity(torch.arange(8).repeat(3), 8), torch.tensor(8.0))
    assert_close(perplexity(torch.zeros(2, 3, 3, dtype=torch.long), 8), torch.tensor(1.0))
    assert_close(perplexity(torch.tensor([0, 0, 1, 1]), 500), torch.tensor(2.0))


def test_shapes_of_the_networks():
    x = torch.randn(2, 3, 16, 8)
    z = Encoder((3, 16, 8), 5, width=8, inner=4, halvings=2)(x)
    assert z.shape == (2, 5, 4, 2)
    assert Decoder((3, 16, 8), 5, width=8, inner=4, halvings=2)(z).shape == x.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Codebook(1, 4), "at least 2 codes"),
        (lambda: Codebook(4, 4, decay=1.0), "lie in \\[0, 1\\)"),
        (lambda: Encoder((1, 10, 10), 4, halvings=2), "multiples of 4"),
        (lambda: Decoder((2,), 4), "multiples of 4"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(UserError, match=words):
        make()
