"""Intervals of accuracies, the paired test of two models, averages over classes, and calibration."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, t


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Compute Wilson's 95% interval of the share of true values in `correct`, bool (N,) (Wilson, 1927).

    It covers the choice of test images, not the randomness of training.
    """
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def prediction_interval(values: np.ndarray) -> tuple[float, float]:
    """Compute Student's 95% prediction interval of one more value like `values`, float (n,), n at least 2."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) * np.sqrt(1 + 1 / len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


class PairedDifference(NamedTuple):
    """The difference of two accuracies on the same images, its 95% interval and McNemar's exact p."""

    difference: float
    low: float
    high: float
    p: float
    only_first: int
    only_second: int


def paired_difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """Compare two models, each bool (N,), correct or not on the same images: accuracy of the first minus the second.

    Test and interval (Clopper-Pearson) are exact, given the number of images that only one classifies correctly
    (McNemar, 1947); p is 1 if there are none.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if not (differ := only_first + only_second):
        return PairedDifference(0.0, 0.0, 0.0, 1.0, 0, 0)
    test = binomtest(only_first, differ)
    low, high = (float(2 * share - 1) * differ / len(first) for share in test.proportion_ci(0.95))
    difference = (only_first - only_second) / len(first)
    return PairedDifference(difference, low, high, float(test.pvalue), only_first, only_second)


def balanced_accuracy(actual: pd.Series, predicted: pd.Series) -> float:
    """Average the accuracies of the classes; `actual` and `predicted` are class names, one an image."""
    return float((actual == predicted).groupby(actual).mean().mean())


def macro_f1(actual: pd.Series, predicted: pd.Series) -> float:
    """Average the F1 of the classes: twice the correct predictions, by all images plus all predictions of the class."""
    correct = actual[actual == predicted].value_counts()
    both = actual.value_counts().add(predicted.value_counts(), fill_value=0)
    return float((2 * correct / both).fillna(0).mean())


def reliability_table(probability: pd.Series, correct: np.ndarray) -> pd.DataFrame:
    """Bin test images by the probability of the predicted class, in 15 bins of equal width (Guo et al., 2017).

    Columns probability and accuracy (means), images; empty bins are left out.
    """
    bins = pd.cut(probability, np.linspace(0, 1, 16).tolist(), include_lowest=True)
    table = pd.DataFrame({"probability": probability, "accuracy": correct, "images": 1}).groupby(bins, observed=True)
    return table.agg({"probability": "mean", "accuracy": "mean", "images": "sum"})


def calibration_error(table: pd.DataFrame) -> float:
    """Compute the expected calibration error of a `reliability_table`: the bins' mean gap, weighted by images."""
    return float(np.average((table["probability"] - table["accuracy"]).abs(), weights=table["images"]))
