"""What the README promises of two commands, at full length."""

import pytest

from genlab.config.composition import compose
from genlab.runs.start import train


@pytest.mark.long
def test_the_default_run_draws_digits(tmp_path):
    """Classifier's Inception score of at least 88 % of real test images' own, every class with at least 4 %."""
    scores = train(compose([]), tmp_path).scores
    ratio = scores["test/is/classifier-digits"] / scores["test/is_real/classifier-digits"]
    assert 0.88 <= ratio <= 1.1
    assert 0.04 <= scores["test/rarest_class/classifier-digits"] <= 0.1


@pytest.mark.long
def test_the_plain_gan_finds_modes_of_the_ring(tmp_path):
    """At least 5 of 8, seed by seed (five seeds' figures: docs/results.md); high quality below a perfect sampler's."""
    scores = train(compose(["experiment=gan_ring", "seed=1"]), tmp_path).scores
    assert 5 <= scores["test/modes"] <= 8
    assert 0.3 <= scores["test/hq"] <= 0.995
