"""The table of predictions that stages and ``predict.py`` write, and thresholds below which a model does not answer."""

import numpy as np
import pandas as pd

FORMAT = "%.6g"  # of probabilities in CSV files: six digits of small ones, too, so that they keep their order
POINTS = 101  # thresholds at most


def prediction_table(images: np.ndarray, p: np.ndarray, class_names: list[str], labels: np.ndarray) -> pd.DataFrame:
    """Make a table with a row for each image.

    Columns: image (its name), actual, predicted, probability (of the predicted class), and each class's probability,
    ``p: CLASS``. `images`: text (N,); `p`: float (N, classes); `labels`: int (N,).
    """
    names = np.array(class_names)
    table = pd.DataFrame({"image": images, "actual": names[labels], "predicted": names[p.argmax(axis=1)]})
    table["probability"] = p.max(axis=1)
    return table.join(pd.DataFrame(p, columns=probability_columns(class_names)))


def probability_columns(class_names: list[str]) -> list[str]:
    """Name the columns of the classes' probabilities, in the classes' order."""
    return [f"p: {name}" for name in class_names]


def accuracy_by_threshold(probability: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    """Compute the accuracy on the images whose predicted class has at least a threshold's probability.

    `probability`: float (N,), of the predicted class, N at least 1; `correct`: bool (N,). Returns lists under
    `threshold` (from 0 up, `POINTS` at most, each answering about 1% of the images fewer), `accuracy`, and `answered`
    (the share of such images).
    """
    order = np.argsort(probability, kind="stable")
    p, n = np.round(probability, 6)[order], len(order)
    rows = np.unique(np.linspace(0, n - 1, POINTS).astype(int))
    thresholds = np.unique([0.0, *p[rows[1:]]])
    below = np.searchsorted(p, thresholds)
    hits = np.cumsum(correct[order][::-1])[::-1]
    columns = {"threshold": thresholds, "accuracy": hits[below] / (n - below), "answered": 1 - below / n}
    return {name: values.tolist() for name, values in columns.items()}


def lowest_threshold(curve: dict[str, list[float]], accuracy: float) -> float | None:
    """Return the lowest threshold of `accuracy_by_threshold` that reaches an accuracy; None if none does."""
    thresholds = zip(curve["threshold"], curve["accuracy"], strict=True)
    return next((threshold for threshold, reached in thresholds if reached >= accuracy), None)
