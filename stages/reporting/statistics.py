"""Intervals of accuracies, the paired test of two models, scores of classes, and calibration."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, t


def wilson_interval(hits: Any, images: Any) -> np.ndarray:
    """Compute Wilson's 95% intervals of the shares `hits` of `images` (Wilson, 1927): low and high, float (2, ...).

    They cover the choice of test images, not the randomness of training. The share of no images is in 0 to 1.
    """
    z = norm.ppf(0.975)
    centre = (hits + z**2 / 2) / (images + z**2)
    half = z * np.sqrt(hits * (images - hits) / np.maximum(images, 1) + z**2 / 4) / (images + z**2)
    return np.clip([centre - half, centre + half], 0, 1)


def accuracy_interval(correct: np.ndarray) -> list[float]:
    """Compute Wilson's 95% interval of the share of true values in `correct`, bool (N,)."""
    return wilson_interval(int(correct.sum()), len(correct)).tolist()


def prediction_interval(values: np.ndarray) -> tuple[float, float]:
    """Compute Student's 95% prediction interval of one more value like `values`, float (n,), n at least 2."""
    spread = np.std(values, ddof=1) * np.sqrt(1 + 1 / len(values))
    return t.interval(0.95, len(values) - 1, np.mean(values), spread)


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


def class_scores(actual: pd.Series, predicted: pd.Series, class_names: list[str]) -> pd.DataFrame:
    """Compute precision, recall and F1 of each class, with 95% intervals; index class.

    Columns: images (of the class), then ``precision precision_low precision_high``, and so for recall and f1. The
    precision of a class that is never predicted is NaN. Intervals are Wilson's: F1 is 2J / (1 + J), which grows with J,
    the share of hits among the images that are of the class or predicted as it, so F1's interval follows from J's.
    """
    hits = actual[actual == predicted].value_counts().reindex(class_names, fill_value=0)
    images, taken = (labels.value_counts().reindex(class_names, fill_value=0) for labels in (actual, predicted))
    table = pd.DataFrame({"images": images})
    for score, of in (("precision", taken), ("recall", images), ("f1", images + taken - hits)):
        shares = np.column_stack([hits / of, *wilson_interval(hits, of)])
        table[[score, f"{score}_low", f"{score}_high"]] = 2 * shares / (1 + shares) if score == "f1" else shares
    return table


def top_k_accuracy(p: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Compute the share of images whose class, int (N,), is among the `k` most probable; `p`: float (N, classes)."""
    return float(((p > np.take_along_axis(p, labels[:, None], axis=1)).sum(axis=1) < k).mean())


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


def answers_above(threshold: float | None, probability: pd.Series, correct: np.ndarray) -> dict[str, Any]:
    """Evaluate a model that answers only with at least a threshold's probability; None: never."""
    right = correct[probability >= (np.inf if threshold is None else threshold)]
    accuracy = float(right.mean()) if len(right) else None
    answered = {"threshold": threshold, "answered": len(right) / len(correct), "accuracy": accuracy}
    return answered | {"interval": accuracy_interval(right)}
