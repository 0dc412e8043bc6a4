"""Intervals compared with published values, tests and thresholds with values computed by hand.

``tests/slow/test_report_numbers.py`` compares the others with scikit-learn.
"""

import numpy as np
import pytest

from stages.predictions import accuracy_by_threshold, lowest_threshold
from stages.reporting import statistics


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [  # Newcombe, 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0000, 0.1611),
    ],
)
def test_accuracy_interval_is_wilsons_as_published(correct, images, low, high):
    assert statistics.accuracy_interval(np.arange(images) < correct) == pytest.approx((low, high), abs=5e-5)


def test_prediction_interval_is_students():
    """With two degrees of freedom, t is 4.302653 for 95% (any table); here the standard deviation is 1."""
    half = 4.302653 * (4 / 3) ** 0.5
    assert statistics.prediction_interval(np.array([3.0, 5.0, 4.0])) == pytest.approx((4 - half, 4 + half), rel=1e-6)


def pair(only_first: int, only_second: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (50, only_first, only_second, 30)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(2, 9, 2 * (1 + 11 + 55) / 2**11), (0, 0, 1.0)],  # twice the binomial tail of the images that differ
)
def test_mcnemar_is_exact_and_two_sided(only_first, only_second, p):
    first, second = pair(only_first, only_second)
    found, swapped = statistics.paired_difference(first, second), statistics.paired_difference(second, first)
    assert (found.p, found.only_first, found.only_second) == (pytest.approx(p, rel=1e-12), only_first, only_second)
    assert found.difference == pytest.approx(first.mean() - second.mean()) == -swapped.difference
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low))


def test_lowest_threshold_reaches_the_accuracy_on_the_images_above_it():
    probability, correct = np.array([0.9, 0.5, 0.8, 0.6, 0.7, 0.7]), np.array([1, 0, 0, 1, 1, 1], bool)
    curve = accuracy_by_threshold(probability, correct)
    assert curve["threshold"] == [0, 0.6, 0.7, 0.8, 0.9]  # 0: every image is answered
    assert curve["accuracy"] == pytest.approx([4 / 6, 4 / 5, 3 / 4, 1 / 2, 1])
    assert curve["answered"] == pytest.approx([1, 5 / 6, 4 / 6, 2 / 6, 1 / 6])
    assert [lowest_threshold(curve, wanted) for wanted in (0.5, 0.8, 0.81, 1.01)] == [0, 0.6, 0.9, None]
    many = accuracy_by_threshold(np.linspace(0.2, 1, 12345), np.ones(12345, bool))
    assert len(many["threshold"]) == 101
    assert np.allclose(np.diff(many["answered"]), -0.01, atol=2e-4)
