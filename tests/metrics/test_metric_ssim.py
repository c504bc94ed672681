"""SSIM and MS-SSIM against scipy's valid convolutions, written out in numpy."""

import gzip

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from genlab.metrics.diversity import ms_ssim_diversity
from genlab.metrics.reconstruction import reconstruction_scores
from genlab.metrics.ssim import BETAS, ms_ssim, ssim

pytestmark = pytest.mark.usefixtures("rng_untouched")


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def terms(a, b, window, sigma):
    """Mean SSIM and mean contrast-structure of two arrays [H, W] in [0, 1]."""
    place = np.arange(window) - (window - 1) / 2
    kernel = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()

    def mean(v):
        return convolve2d(v, kernel, mode="valid")

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    structure = (2 * vab + 0.03**2) / (va + vb + 0.03**2)
    light = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
    return (light * structure).mean(), structure.mean()


def halved(a):
    h, w = a.shape[0] // 2 * 2, a.shape[1] // 2 * 2
    return a[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))


@pytest.mark.parametrize(("shape", "window"), [((1, 28, 28), 11), ((3, 32, 20), 11), ((1, 8, 8), 7), ((3, 3, 5), 3)])
def test_ssim_is_that_of_valid_windows(shape, window):
    x, y = pair(shape)
    sigma = 1.5 * window / 11
    for i, value in enumerate(ssim(x, y, window, sigma)):
        channels = [terms(x[i, c].numpy(), y[i, c].numpy(), window, sigma)[0] for c in range(shape[0])]
        assert value.item() == pytest.approx(np.mean(channels), abs=1e-12)
    assert torch.equal(ssim(x, x, window, sigma), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shape", "scales", "window"),
    [((1, 176, 180), 5, 11), ((3, 32, 32), 3, 7), ((1, 28, 37), 2, 11), ((1, 8, 8), 1, 7)],
)
def test_ms_ssim_is_that_of_valid_windows(shape, scales, window):
    x, y = pair(shape, seed=1)
    sigma = 1.5 * window / 11
    betas = np.array(BETAS[:scales]) / sum(BETAS[:scales])
    for i, value in enumerate(ms_ssim(x, y, scales, window, sigma)):
        planes = [(x[i, c].numpy(), y[i, c].numpy()) for c in range(shape[0])]
        expected = 1.0
        for scale in range(scales):
            found = np.mean([terms(a, b, window, sigma) for a, b in planes], axis=0)
            expected *= max(found[0] if scale == scales - 1 else found[1], 0) ** betas[scale]
            planes = [(halved(a), halved(b)) for a, b in planes]
        assert value.item() == pytest.approx(expected, abs=1e-12)


def test_scores_are_taken_with_valid_windows():
    """Reconstructions in [-1, 1], and pairs of bytes: the two places that ask."""
    x, y = pair((1, 16, 16), seed=2)
    scores = reconstruction_scores([(2 * x - 1, 2 * y - 1)])
    expected = np.mean([terms(a[0].numpy(), b[0].numpy(), 11, 1.5)[0] for a, b in zip(x, y, strict=True)])
    assert scores["recon_ssim"] == pytest.approx(expected, abs=1e-6)
    images = (torch.stack([x[0], y[0]]) * 255).round().to(torch.uint8)
    both = ms_ssim_diversity(images, pairs=4)
    a, b = images.double() / 255
    window, sigma = both.card["ms_ssim_window"], both.card["ms_ssim_sigma"]
    fine = terms(a[0].numpy(), b[0].numpy(), window, sigma)[1]
    coarse = terms(halved(a[0].numpy()), halved(b[0].numpy()), window, sigma)[0]
    expected = fine ** (BETAS[0] / sum(BETAS[:2])) * coarse ** (BETAS[1] / sum(BETAS[:2]))
    assert both["ms_ssim_diversity"] == pytest.approx(1 - expected, abs=1e-6)


def test_the_border_does_not_decide_between_blur_and_noise(shared_data):
    """MNIST's border is black: reflected, it makes blurred digits look right and noisy ones wrong."""
    raw = gzip.decompress((shared_data / "mnist-t10k-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 200 * 784]
    x = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(200, 1, 28, 28) / 255)
    blurred = torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 0.9, 0.9)))
    noisy = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)).clamp(0, 1)
    assert ssim(blurred, x).mean().item() == pytest.approx(0.829, abs=0.002)  # 0.872 with a reflected border
    assert ssim(noisy, x).mean().item() == pytest.approx(0.843, abs=0.002)  # 0.550


@pytest.mark.parametrize(("window", "words"), [(4, "odd"), (9, "at most 8"), (13, "at most 8")])
def test_a_window_that_does_not_fit_is_refused(window, words):
    x, y = pair((1, 16, 16))
    with pytest.raises(ValueError, match=words):
        ms_ssim(x, y, 2, window)
    with pytest.raises(ValueError, match="one shape"):
        ssim(x, y[:1])
    with pytest.raises(ValueError, match="1 to 5"):
        ms_ssim(x, y, 6)
