"""Read the outputs of the training stages, and compute their metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.reporting import notebook, statistics
from stages.shared.errors import UserError, one_line
from stages.shared.files import check_sha256, read_json, stage_folder, timing_file
from stages.shared.npz import read_npz
from stages.shared.tasks import Task, read_task

MANY = 30  # classes; of more, figures and tables show some
MAX_PAIRS = 15  # of confused classes, shown of many
SUMMARY = {
    "stage": "Model Name",
    "trainable_parameters": "Number of Trainable Parameters",
    "minutes": "Training Time (min)",
    "train_accuracy": "Train Accuracy",
    "test_accuracy": "Test Accuracy",
}


def hardest(tables: Iterable[pd.DataFrame]) -> list[str]:
    """Select the classes to show of `per_class` tables with the same classes, by their mean accuracies.

    All of them, or of more than `MANY` those with the lowest, lowest first.
    """
    by_class = pd.concat(tables).groupby(level=0, sort=False)["accuracy"].mean()
    return list(by_class.index if len(by_class) <= MANY else by_class.nsmallest(MANY).index)


@dataclass(frozen=True)
class ModelResult:
    """The outputs of one training stage.

    history: learning curves, see ``training.fit.History``. predictions: one row a test image, in the task's order,
    columns actual, predicted (class names), probability (of the predicted class). mistakes: rows of the most confident
    ones, int64 (n,); heat: their Grad-CAM maps, float32 (n, h, w). control: predictions of the control, None if it was
    not trained.
    """

    stage: str
    task: Task
    history: pd.DataFrame
    predictions: pd.DataFrame
    mistakes: np.ndarray
    heat: np.ndarray
    record: dict
    train_seconds: float
    control: pd.DataFrame | None = None

    @cached_property
    def correct(self) -> np.ndarray:
        """Return which predictions are correct, bool (test images,)."""
        return (self.predictions["actual"] == self.predictions["predicted"]).to_numpy()

    @cached_property
    def gain(self) -> statistics.PairedDifference | None:
        """Compare the model with its control: the gain of the transfer in test accuracy; None without a control."""
        if self.control is None:
            return None
        control = (self.control["actual"] == self.control["predicted"]).to_numpy()
        return statistics.paired_difference(self.correct, control)

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """Return the table of the reliability diagram, see `reliability_table`."""
        return statistics.reliability_table(self.predictions["probability"], self.correct)

    @property
    def microseconds(self) -> float | None:
        """Return the training time per image and epoch; None after no epochs."""
        passes = len(self.history) * self.task.counts["train"]
        return 1e6 * self.train_seconds / passes if passes else None

    @property
    def kept_epoch(self) -> int | None:
        """Return the epoch, from 1, whose weights early stopping kept; None without early stopping."""
        return int(self.history["kept"].argmax()) + 1 if "kept" in self.history else None

    @property
    def only_answer(self) -> str | None:
        """Return the class that a model predicts for every test image if it learned nothing; None after no epochs."""
        answers = self.predictions["predicted"].unique()
        return str(answers[0]) if len(self.history) and len(answers) == 1 else None

    @cached_property
    def metrics(self) -> dict:
        """Return the model's entry in ``metrics.json``; train_accuracy is None after no epochs."""
        of_control = {}
        if self.gain:
            of_control = {
                "control_test_accuracy": self.record["control"]["test_accuracy"],
                "transfer_gain": self.gain.difference,
            }
        return {
            "test_accuracy": self.record["test_accuracy"],
            **of_control,
            "test_loss": self.record["test_loss"],
            "train_accuracy": self._kept["accuracy"],
            "trainable_parameters": self.record["trainable_parameters"],
        }

    @property
    def details(self) -> dict:
        """Return the model's entry in ``details.json``: everything that is no metric of DVC's."""
        answers = self.predictions["actual"], self.predictions["predicted"]
        low, high = statistics.accuracy_interval(self.correct)
        return {
            "test_accuracy_interval": [low, high],
            "transfer_gain": self.gain and self.gain._asdict(),
            "balanced_accuracy": statistics.balanced_accuracy(*answers),
            "macro_f1": statistics.macro_f1(*answers),
            "calibration_error": statistics.calibration_error(self.reliability),
            "kept_epoch": self.kept_epoch,
            "validation_accuracy": self._kept["val_accuracy"] if self.task.counts["validation"] else None,
            "train_seconds": self.train_seconds,
        }

    @property
    def _kept(self) -> Any:
        """Return the row of the learning curves whose weights the model has; of None after no epochs."""
        none = dict.fromkeys(("accuracy", "val_accuracy"))
        return self.history.iloc[(self.kept_epoch or len(self.history)) - 1] if len(self.history) else none

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """Compute accuracy with its 95% interval by class: columns accuracy, low, high, images; index class."""
        by_class = pd.Series(self.correct).groupby(self.predictions["actual"].to_numpy())
        rows = {name: (c.mean(), *statistics.accuracy_interval(c.to_numpy()), len(c)) for name, c in by_class}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "low", "high", "images"])
        return table.loc[self.task.class_names]

    def most_confused(self) -> pd.DataFrame:
        """List the pairs of classes most often confused: columns actual, predicted, count (of test images)."""
        wrong = self.predictions[~self.correct]
        pairs = wrong.groupby(["actual", "predicted"], as_index=False).size()
        return pairs.rename(columns={"size": "count"}).nlargest(MAX_PAIRS, "count")


@dataclass(frozen=True)
class Results:
    """The pretrained model, and those fine-tuned from it."""

    source: ModelResult
    tuned: list[ModelResult]

    @property
    def all(self) -> list[ModelResult]:
        """Return every model, the pretrained one first."""
        return [self.source, *self.tuned]

    @property
    def summary(self) -> pd.DataFrame:
        """Make the notebook's table, with its column names."""
        rows = [{"stage": r.stage, "minutes": round(r.train_seconds / 60, 2)} | r.metrics for r in self.all]
        return pd.DataFrame(rows)[list(SUMMARY)].rename(columns=SUMMARY)

    @property
    def on_the_notebooks_images(self) -> bool:
        """Return whether the tasks are the notebook's: its classes of CIFAR-10, with all their images."""
        tasks = [self.source.task, self.tuned[0].task]
        all_images = all(task.counts == notebook.COUNTS for task in tasks)
        return all_images and [task.class_names for task in tasks] == notebook.CLASSES


def read_results(source: str, tuned: list[str]) -> Results:
    """Read the outputs of stages by name; raises `UserError` if some are missing, damaged or do not fit together."""
    target = read_task("target")
    return Results(_read(source, read_task("source")), [_read(stage, target) for stage in tuned])


def _read(stage: str, task: Task) -> ModelResult:
    folder = stage_folder(stage)
    try:
        record = read_json(folder / "record.json")
        for name, expected in record["sha256_of"].items():
            check_sha256(folder / name, expected, (folder / name).read_bytes())
        history = pd.read_csv(folder / "history.csv", dtype=float)
        predictions = _read_predictions(folder / "predictions.csv", task)
        control = _read_predictions(folder / "control_predictions.csv", task) if "control" in record else None
        gradcam = read_npz(folder / "gradcam.npz", ("row", "heat"))
        seconds = float(read_json(timing_file(stage))["train_seconds"])
        return ModelResult(stage, task, history, predictions, gradcam["row"], gradcam["heat"], record, seconds, control)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"reports of {stage}: {one_line(error)}; expected the outputs of `dvc repro {stage}`") from None


def _read_predictions(file: Path, task: Task) -> pd.DataFrame:
    predictions = pd.read_csv(file, dtype={"actual": str, "predicted": str}, na_filter=False)
    if predictions["actual"].tolist() != [task.class_names[label] for label in task.test.y]:
        raise ValueError("predictions of other images")
    return predictions
