"""Smoothing of the curves in curves.png and in reports."""

import math

import numpy as np
import pytest

from genlab.looks import pictures
from genlab.looks.curves import smoothed

STEPS = list(range(0, 10_000, 50))


def noisy(scale=0.3):
    trend = np.exp(-np.arange(len(STEPS)) / 60)
    return trend, trend + scale * np.random.default_rng(0).standard_normal(len(STEPS))


def test_a_noisy_curve_is_smoothed():
    """The mean over 21 points has a third of the noise or less, and keeps the trend."""
    trend, values = noisy()
    means = smoothed(values.tolist())
    assert len(means) == len(values)
    assert np.std(means - trend) < 0.4 * np.std(values - trend)
    assert means[0] == pytest.approx(values[:11].mean()) and means[100] == pytest.approx(values[90:111].mean())


def test_a_quiet_or_short_curve_is_left_alone():
    trend, _ = noisy()
    assert smoothed(trend.tolist()) is None
    assert smoothed([5.0] * 100) is None
    assert smoothed(noisy()[1][:39].tolist()) is None


def test_values_that_are_not_finite_are_passed_over():
    values = noisy()[1]
    values[50], values[60:81] = math.inf, math.nan
    means = np.array(smoothed(values.tolist()))
    assert means[45] == pytest.approx(np.delete(values[35:56], 15).mean())
    assert np.isnan(means[70]) and np.isfinite(np.delete(means, 70)).all()


def test_the_noise_stands_pale_behind_the_mean(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "to_array", lambda figure: drawn.append(figure))
    monkeypatch.setattr(pictures, "save_png", lambda path, picture: path)
    trend, values = noisy()
    pictures.curves({"train/d_loss": (STEPS, values.tolist()), "val/fid/x": (STEPS, trend.tolist())}, tmp_path / "c")
    losses, scores = drawn[0].axes
    mean, raw = losses.lines
    assert np.array_equal(raw.get_ydata(), values) and raw.get_alpha() < 0.5 and raw.get_color() == mean.get_color()
    assert np.allclose(mean.get_ydata(), smoothed(values.tolist()))
    assert len(scores.lines) == 1 and np.array_equal(scores.lines[0].get_ydata(), trend)
