"""Error bars of accuracies, averages over classes, calibration, and the paired test of two models."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, t


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Wilson's 95% interval for the share of true values in `correct`, bool (N,).

    It covers the choice of test images, not the luck of a training run (Wilson, 1927).
    """
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def next_value_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95% prediction interval of one more value of the kind of `values`, float (n,), n at least 2."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) * np.sqrt(1 + 1 / len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def balanced_accuracy(actual: pd.Series, predicted: pd.Series) -> float:
    """The mean of the classes' accuracies; `actual` and `predicted` are class names, one an image."""
    return float((actual == predicted).groupby(actual).mean().mean())


def macro_f1(actual: pd.Series, predicted: pd.Series) -> float:
    """The mean of the classes' F1: of each, twice the right predictions by all images of it and all taken for it."""
    right = actual[actual == predicted].value_counts()
    both = actual.value_counts().add(predicted.value_counts(), fill_value=0)
    return float((2 * right / both).fillna(0).mean())


def reliability(probability: pd.Series, correct: np.ndarray) -> pd.DataFrame:
    """Test images by the probability of the predicted class, in 15 bins of equal width (Guo et al., 2017).

    Columns probability and accuracy (means), images; bins without images are left out.
    """
    bins = pd.cut(probability, np.linspace(0, 1, 16).tolist(), include_lowest=True)
    table = pd.DataFrame({"probability": probability, "accuracy": correct, "images": 1}).groupby(bins, observed=True)
    return table.agg({"probability": "mean", "accuracy": "mean", "images": "sum"})


def calibration_error(table: pd.DataFrame) -> float:
    """The expected calibration error: the bins' gaps between probability and accuracy, each by its share of images."""
    return float(np.average((table["probability"] - table["accuracy"]).abs(), weights=table["images"]))


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
