"""Intervals against published values, paired tests against hand-made ones."""

import numpy as np
import pytest

from stages.reporting.statistics import accuracy_interval, mcnemar


def right(count: int, of: int) -> np.ndarray:
    return np.arange(of) < count


def pair(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [  # Newcombe, 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
    ],
)
def test_interval_is_wilsons_as_published(correct, images, low, high):
    assert accuracy_interval(right(correct, images)) == pytest.approx((low, high), abs=5e-5)
    assert accuracy_interval(~right(correct, images)) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [  # by hand: twice the binomial tail of the images that differ, and at most 1
        (2, 9, 2 * (1 + 11 + 55) / 2**11),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_exact_and_two_sided(only_first, only_second, p):
    first, second = pair(both=50, only_first=only_first, only_second=only_second, neither=30)
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(p, rel=1e-12))
    assert mcnemar(second, first) == (only_second, only_first, pytest.approx(p, rel=1e-12))
