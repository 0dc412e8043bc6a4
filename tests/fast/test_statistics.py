"""Intervals compared with published values, everything else with values computed by hand."""

import numpy as np
import pandas as pd
import pytest

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


def test_interval_of_a_paired_difference_is_clopper_and_pearsons():
    """8 of 10: 0.4439 to 0.9748 (Clopper and Pearson, 1934, as tabulated); here of 90 images 10 differ."""
    found = statistics.paired_difference(*pair(8, 2))
    expected = [(2 * share - 1) * 10 / 90 for share in (0.4439, 0.9748)]
    assert [found.low, found.high] == pytest.approx(expected, abs=2e-5)


def test_averages_weight_every_class_equally():
    actual, predicted = pd.Series(list("aaaaaabbcc")), pd.Series(list("aaaaabbbaa"))
    assert statistics.balanced_accuracy(actual, predicted) == pytest.approx((5 / 6 + 2 / 2 + 0 / 2) / 3)
    assert statistics.macro_f1(actual, predicted) == pytest.approx((2 * 5 / (6 + 7) + 2 * 2 / (2 + 3) + 0) / 3)


def test_calibration_error_is_the_mean_gap_over_fifteen_bins():
    """A bin includes its upper edge: 0.2 is in the third, 0.21 in the fourth."""
    probability = pd.Series([0.9, 0.9, 0.9, 0.9, 0.5, 0.52, 1.0, 1.0, 0.2, 0.21])
    table = statistics.reliability_table(probability, np.array([1, 1, 0, 0, 0, 0, 1, 1, 1, 0], bool))
    assert table["probability"].tolist() == pytest.approx([0.2, 0.21, 0.51, 0.9, 1.0])
    assert table["accuracy"].tolist() == [1, 0, 0, 0.5, 1]
    assert table["images"].tolist() == [1, 1, 2, 4, 2]
    assert statistics.calibration_error(table) == pytest.approx((0.8 + 0.21 + 2 * 0.51 + 4 * 0.4 + 0) / 10)
