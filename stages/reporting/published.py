"""What the notebook that this pipeline reproduces used and published, and what its code gives when it runs again."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.reporting.statistics import next_value_interval

RUNS = Path(__file__).with_name("notebook_runs.csv")  # of benchmarks/speed.py; no number: not fine-tuned

CLASSES = [["airplane", "automobile", "bird", "cat", "deer"], ["dog", "frog", "horse", "ship", "truck"]]
COUNTS = {"train": 25_000, "validation": 0, "test": 5_000}  # images of each half

TABLE = {
    "pretrain": {"parameters": 1_633_733, "minutes": 8.37, "train_accuracy": 0.8472, "test_accuracy": 0.7662},
    "finetune_output": {"parameters": 325, "minutes": 4.23, "train_accuracy": 0.57032, "test_accuracy": 0.6060},
    "finetune_fc": {"parameters": 8_581, "minutes": 4.32, "train_accuracy": 0.66004, "test_accuracy": 0.6904},
}


def learned(accuracy: Any) -> Any:
    """Whether a run on the notebook's images learned anything, by the test accuracy of its `pretrain`; arrays, too.

    From raw pixels some do not: they end with one answer for all images, and the two fine-tunings with them.
    """
    return np.round(accuracy, 4) > 1 / len(CLASSES[0])  # Keras gives 32 bits


def rerun() -> tuple[pd.DataFrame, int]:
    """Test accuracies of the notebook's code, run again without a seed; and how many of the runs learned nothing.

    Columns: mean, sd, runs, low and high, of the runs that learned; index: model. `low` and `high`: the 95% prediction
    interval of one more, if they are normally distributed.
    """
    runs = pd.read_csv(RUNS, comment="#")
    told = runs[learned(runs["pretrain"])]
    rows = {
        model: [found.mean(), found.std(), len(found), *next_value_interval(found.to_numpy())]
        for model, found in ((model, accuracies.dropna()) for model, accuracies in told.items())
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd", "runs", "low", "high"])
    return table.assign(low=table["low"].clip(lower=0), high=table["high"].clip(upper=1)), len(runs) - len(told)


def rerun_where() -> str:
    """Which commit, machine and software `rerun` is of."""
    return RUNS.read_text().splitlines()[0].removeprefix("# ")
