"""Error bars of accuracies and the paired test of two models on the same test images."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Wilson's 95% interval for the share of true values in `correct`, bool (N,).

    It covers the choice of test images, not the luck of a training run (Wilson, 1927).
    """
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


class PairedTest(NamedTuple):
    """Images that only the first, or only the second model gets right, and the p-value of McNemar's exact test."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """McNemar's exact two-sided test of two models, each bool (N,): right or wrong on the same images (McNemar, 1947).

    p is 1 if the models never differ.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differ = only_first + only_second
    return PairedTest(only_first, only_second, float(binomtest(only_first, differ).pvalue) if differ else 1.0)
