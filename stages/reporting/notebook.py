"""The notebook's published results, and those of its code run again."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.reporting.statistics import prediction_interval

RUNS = Path(__file__).with_name("notebook_runs.csv")  # of benchmarks/speed.py; an empty field: not fine-tuned

CLASSES = [["airplane", "automobile", "bird", "cat", "deer"], ["dog", "frog", "horse", "ship", "truck"]]
COUNTS = {"train": 25_000, "validation": 0, "test": 5_000}  # images of each task

PUBLISHED = {
    "pretrain": {"parameters": 1_633_733, "minutes": 8.37, "test_accuracy": 0.7662},
    "finetune_output": {"parameters": 325, "minutes": 4.23, "test_accuracy": 0.6060},
    "finetune_fc": {"parameters": 8_581, "minutes": 4.32, "test_accuracy": 0.6904},
}


def has_learned(accuracy: Any) -> Any:
    """Return whether the test accuracy of `pretrain`, or each of an array, is above chance.

    From raw pixels some runs learn nothing: they predict one class for all images, and so do their fine-tunings.
    """
    return np.round(accuracy, 4) > 1 / len(CLASSES[0])  # Keras gives 32 bits


def reruns() -> tuple[pd.DataFrame, int]:
    """Summarise the test accuracies of reruns that learned, and count those that did not.

    Columns: mean, sd, runs, low and high: the 95% prediction interval of one more run, if they are normally
    distributed; index: model.
    """
    runs = pd.read_csv(RUNS, comment="#")
    learned = runs[has_learned(runs["pretrain"])]
    table = learned.agg(["mean", "std", "count"]).T.set_axis(["mean", "sd", "runs"], axis=1)
    intervals = [prediction_interval(learned[model].dropna()) for model in learned]
    table[["low", "high"]] = np.clip(intervals, 0, 1)
    return table, len(runs) - len(learned)


def rerun_environment() -> str:
    """Return commit, machine and software of the reruns."""
    return RUNS.read_text().splitlines()[0].removeprefix("# ")
