"""Ways through latent space: what holds for each by its formula."""

import math

import pytest
import torch

from genlab.sampling.latents import activity, find_latents, interpolate, lerp, slerp, traverse

T = torch.linspace(0, 1, 11, dtype=torch.float64)


def pairs(n=50, z=7, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(2, n, z, generator=rng, dtype=dtype)


@pytest.mark.parametrize("way", [slerp, lerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ways_end_exactly_at_their_ends(way, dtype):
    a, b = pairs(dtype=dtype)
    z = way(a, b, T)
    assert z.dtype == dtype and z.shape == (50, 11, 7)
    assert torch.equal(z[:, 0], a)
    assert torch.equal(z[:, -1], b)


def test_slerp_of_unit_vectors_is_the_paper_s_formula_and_stays_on_the_sphere():
    a, b = (x / x.norm(dim=1, keepdim=True) for x in pairs())
    z = slerp(a, b, T)
    torch.testing.assert_close(z.norm(dim=2), torch.ones(50, 11, dtype=torch.float64))
    angle = (a * b).sum(dim=1).arccos()[:, None, None]
    t = T[None, :, None]
    wanted = ((1 - t) * angle).sin() / angle.sin() * a[:, None] + (t * angle).sin() / angle.sin() * b[:, None]
    torch.testing.assert_close(z, wanted)


def test_slerp_goes_at_one_speed():
    """Each of ten steps turns by a tenth of the angle."""
    a, b = pairs()
    z = slerp(a, b, T)
    turned = torch.cosine_similarity(z[:, 1:], z[:, :-1], dim=2).arccos()
    whole = torch.cosine_similarity(a, b, dim=1).arccos()
    torch.testing.assert_close(turned, whole[:, None].expand(50, 10) / 10)


def test_slerp_keeps_the_norm_between_those_of_its_ends():
    """Obtuse angles and unequal norms included, where the paper's formula on the vectors themselves would not."""
    a, b = pairs()
    b = 3 * b
    low, high = torch.minimum(a.norm(dim=1), b.norm(dim=1)), torch.maximum(a.norm(dim=1), b.norm(dim=1))
    norms = slerp(a, b, T).norm(dim=2)
    assert ((a * b).sum(dim=1) < 0).any()
    assert (norms >= low[:, None] - 1e-12).all() and (norms <= high[:, None] + 1e-12).all()


@pytest.mark.parametrize("gap", [0.0, 1e-300, 1e-12, 1e-9, 1e-5])
def test_slerp_of_almost_equal_ends_is_the_straight_way(gap):
    a = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    b = a + gap
    torch.testing.assert_close(slerp(a, b, T), lerp(a, b, T), rtol=0, atol=1e-9)


def test_slerp_without_an_arc_is_finite():
    """Opposite ends, a zero end, a latent of one dimension."""
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert torch.equal(slerp(a, b, T), lerp(a, b, T))
    a, b = torch.tensor([[1.0]]), torch.tensor([[-3.0]])
    assert torch.equal(slerp(a, b, T), lerp(a, b, T))


def test_the_prior_chooses_the_way():
    a, b = pairs()
    assert torch.equal(interpolate(a, b, 11, "normal"), slerp(a, b, T))
    assert torch.equal(interpolate(a, b, 11, "uniform"), lerp(a, b, T))
    with pytest.raises(ValueError, match="prior"):
        interpolate(a, b, 11, "cauchy")
    with pytest.raises(ValueError, match="a and b must be"):
        lerp(a, b[:, :3], T)


def test_a_traversal_moves_one_latent_at_a_time():
    z = torch.randn(5)
    walks = traverse(z, torch.tensor([3, 1]), 7, "normal")
    assert walks.shape == (2, 7, 5)
    torch.testing.assert_close(walks[0, :, 3], torch.linspace(-3, 3, 7))
    torch.testing.assert_close(walks[1, :, 1], torch.linspace(-3, 3, 7))
    still = [0, 1, 2, 4]
    assert torch.equal(walks[0][:, still], z[still].expand(7, 4))
    assert traverse(z, torch.tensor([0]), 3, "uniform")[0, :, 0].tolist() == [-1, 0, 1]


def test_activity_is_the_variance_of_each_code():
    codes = torch.stack([torch.arange(4.0), torch.ones(4)], dim=1)
    torch.testing.assert_close(activity(codes), torch.tensor([1.25, 0.0]))


def test_the_latent_of_a_linear_generator_is_recovered():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 24, generator=rng) / math.sqrt(6)
    truth = torch.randn(5, 6, generator=rng)

    def decode(z):
        return (z @ weight).unflatten(1, (2, 3, 4))

    x = decode(truth)
    z, distance = find_latents(decode, x, torch.randn(100, 6, generator=rng))
    assert distance.max() < 1e-3
    torch.testing.assert_close(decode(z), x, rtol=0, atol=1e-2)
    torch.testing.assert_close(z, truth, rtol=0, atol=1e-2)
    torch.testing.assert_close((decode(z) - x).abs().flatten(1).mean(dim=1), distance)


def test_each_latent_is_found_as_if_alone():
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 8, generator=rng)
    x, starts = torch.randn(4, 8, generator=rng), torch.randn(20, 3, generator=rng)
    together, _ = find_latents(lambda z: z @ weight, x, starts, steps=50)
    alone = torch.cat([find_latents(lambda z: z @ weight, each[None], starts, steps=50)[0] for each in x])
    torch.testing.assert_close(together, alone)


def test_a_bounded_search_stays_within_and_finds_the_corner():
    x = torch.full((1, 2), 5.0)
    z, distance = find_latents(lambda z: z, x, torch.zeros(1, 2), bound=1.0)
    torch.testing.assert_close(z, torch.ones(1, 2))
    torch.testing.assert_close(distance, torch.tensor([4.0]))


def test_the_search_never_ends_worse_than_it_began():
    """The best start is among the candidates, even if each step of Adam leads away."""
    start = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    z, distance = find_latents(lambda z: z, torch.full((1, 2), 0.01), start, steps=1, lr=100.0)
    torch.testing.assert_close(distance, torch.tensor([0.01]))
    torch.testing.assert_close(z, torch.zeros(1, 2))
