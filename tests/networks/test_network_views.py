"""What the discriminator looks through: noise and augmentations."""

import pytest
import torch
from torch.testing import assert_close

from genlab.networks.views import DiffAugment, InstanceNoise


def stream(seed=0):
    """A `rand` that notes what it is asked for."""
    rng, asked = torch.Generator().manual_seed(seed), []

    def rand(n, *shape):
        asked.append((n, *shape))
        return torch.rand(n, *shape, dtype=torch.float64, generator=rng)

    return rand, asked


def images(n=5, channels=3, size=(8, 12)):
    return torch.randn(n, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


PARTS = {
    "colour": DiffAugment(1, 0, 0),
    "translation": DiffAugment(0, 0.25, 0),
    "cutout": DiffAugment(0, 0, 0.5),
    "all": DiffAugment(),
    "noise": InstanceNoise(0.5),
}
parts = pytest.mark.parametrize("view", PARTS.values(), ids=PARTS.keys())


@parts
def test_real_and_fake_are_changed_alike_by_the_given_draws_alone(view):
    """The same draws give the same change, and torch's own random numbers are neither read nor moved."""
    before = torch.get_rng_state()
    x = images()
    assert torch.equal(view(x, stream()[0], 0.1), view(x, stream()[0], 0.1))
    assert not torch.equal(view(x, stream(1)[0], 0.1), view(x, stream()[0], 0.1))
    assert torch.equal(torch.get_rng_state(), before)


@parts
def test_each_sample_has_draws_of_its_own(view):
    """The first axis of every draw is the batch: two processes that share one stream see what one would."""
    rand, asked = stream()
    view(images(6), rand, 0.0)
    assert asked and all(shape[0] == 6 for shape in asked)
    whole = view(images(6), stream()[0], 0.0)
    halves = []
    for part in (slice(0, 3), slice(3, 6)):
        draw = stream()[0]
        halves.append(view(images(6)[part], lambda n, *s, d=draw, p=part: d(6, *s)[p], 0.0))
    assert_close(torch.cat(halves), whole, rtol=0, atol=0)


@parts
def test_gradients_reach_the_generator(view):
    x = images(2, size=(4, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: view(x, stream()[0], 0.1), (x,))
    view(x, stream()[0], 0.1).sum().backward()
    assert x.grad.abs().sum() > 0


def test_at_strength_zero_they_are_the_identity():
    for view, progress in ((DiffAugment(0, 0, 0), 0.0), (InstanceNoise(0.0), 0.0), (InstanceNoise(0.3, 0.5), 0.5)):
        rand, asked = stream()
        assert view(images(), rand, progress) is not None and torch.equal(view(images(), rand, progress), images())
        assert asked == []


# -------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("progress", "sigma"), [(0.0, 0.4), (0.25, 0.3), (0.5, 0.2), (0.9, 0.04), (1.0, 0.0)])
def test_the_noise_fades_linearly(progress, sigma):
    view = InstanceNoise(0.4, until=1.0)
    assert view.level(progress) == pytest.approx(sigma)
    x = torch.zeros(200_000, 1, dtype=torch.float64)
    noise = view(x, stream()[0], progress)
    assert_close(noise.mean().item(), 0.0, rtol=0, atol=0.005)
    assert_close(noise.std().item(), sigma, rtol=0.01, atol=0)


def test_the_noise_is_gaussian():
    noise = InstanceNoise(1.0)(torch.zeros(200_000, 1, dtype=torch.float64), stream()[0], 0.0)
    for at in (-2.0, -0.5, 0.0, 1.0, 2.5):
        expected = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(at)).item()
        assert_close((noise < at).double().mean().item(), expected, rtol=0, atol=0.004)


def test_a_uniform_draw_of_zero_is_no_infinity():
    made = InstanceNoise(1.0)(torch.zeros(2, 3), lambda n, *shape: torch.zeros(n, *shape), 0.0)
    assert made.isfinite().all()
    almost_one = 1 - torch.finfo(torch.float32).eps / 2
    made = InstanceNoise(1.0)(torch.zeros(2, 3), lambda n, *shape: torch.full((n, *shape), almost_one), 0.0)
    assert made.isfinite().all()


# ------------------------------------------------------------------------------------------------------ augmentations


def constant(*values):
    """A `rand` that gives one value after the other, whatever the shape."""
    left = list(values)
    return lambda n, *shape: torch.full((n, *shape), left.pop(0), dtype=torch.float64)


def test_the_middle_of_every_range_changes_no_colour():
    assert_close(DiffAugment(1, 0, 0)(images(), constant(0.5), 0.0), images())


@pytest.mark.parametrize("u", [0.0, 0.25, 0.999])
def test_colours(u):
    """Brightness u - 1/2, saturation 2 u, contrast u + 1/2, one after the other."""
    x = images() + (u - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + 2 * u * (x - grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    expected = mean + (u + 0.5) * (x - mean)
    assert_close(DiffAugment(1, 0, 0)(images(), constant(u), 0.0), expected)


@pytest.mark.parametrize(("u", "shift"), [(0.0, -1), (0.5, 0), (0.999, 1)])
def test_shifts(u, shift):
    """By whole pixels, up to an eighth of each side; zeros come in."""
    x = images(size=(8, 12))
    found = DiffAugment(0, 0.125, 0)(x, constant(u), 0.0)
    across = {-1: -2, 0: 0, 1: 2}[shift]  # 0.125 * 12 is rounded to 2
    expected = torch.zeros_like(x)
    rows, columns = torch.arange(8), torch.arange(12)
    for i in rows[(rows + shift >= 0) & (rows + shift < 8)]:
        for j in columns[(columns + across >= 0) & (columns + across < 12)]:
            expected[:, :, i, j] = x[:, :, i + shift, j + across]
    assert torch.equal(found, expected)


def test_all_shifts_are_equally_likely():
    x = torch.zeros(9000, 1, 8, 8, dtype=torch.float64)
    x[:, :, 4, 4] = 1
    found = DiffAugment(0, 0.125, 0)(x, stream()[0], 0.0).mean(dim=(0, 1))
    assert_close(found[3:6, 3:6], torch.full((3, 3), 1 / 9, dtype=torch.float64), rtol=0, atol=0.015)
    assert_close(found.sum().item(), 1.0)


def test_a_square_is_cut():
    """Half of each side, wholly inside for central draws; at a corner, a quarter of the square is left in."""
    ones = torch.ones(3, 2, 8, 12, dtype=torch.float64)
    found = DiffAugment(0, 0, 0.5)(ones, constant(0.5), 0.0)
    expected = ones.clone()
    expected[:, :, 2:6, 3:9] = 0
    assert torch.equal(found, expected)
    corner = DiffAugment(0, 0, 0.5)(ones, constant(0.0), 0.0)
    assert (corner == 0).sum().item() == 3 * 2 * 2 * 3 and (corner[:, :, :2, :3] == 0).all()


def test_a_draw_next_to_one_stays_inside():
    almost_one = 1 - torch.finfo(torch.float32).eps / 2
    made = DiffAugment()(images().float(), lambda n, *shape: torch.full((n, *shape), almost_one), 0.0)
    assert made.shape == images().shape and made.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DiffAugment(colour=2), r"colour must lie in \[0, 1\], got 2"),
        (lambda: InstanceNoise(-1), "sigma >= 0"),
        (lambda: InstanceNoise(1, 0), "until in"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
