"""Read the outputs of the training stages, and compute their metrics."""

from dataclasses import dataclass
from functools import cached_property

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


def hardest(by_class: pd.Series) -> list[str]:
    """Select the classes to show: all, or of more than `MANY` those with the lowest values, lowest first."""
    return list(by_class.index if len(by_class) <= MANY else by_class.nsmallest(MANY).index)


@dataclass(frozen=True)
class ModelResult:
    """The outputs of one training stage.

    history: learning curves, see ``training.fit.History``. predictions: one row a test image, in the task's order,
    columns actual, predicted (class names), probability (of the predicted class). mistakes: rows of the most confident
    ones, int64 (n,); heat: their Grad-CAM maps, float32 (n, h, w).
    """

    stage: str
    task: Task
    history: pd.DataFrame
    predictions: pd.DataFrame
    mistakes: np.ndarray
    heat: np.ndarray
    record: dict
    train_seconds: float

    @cached_property
    def correct(self) -> np.ndarray:
        """Return which predictions are correct, bool (test images,)."""
        return (self.predictions["actual"] == self.predictions["predicted"]).to_numpy()

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
        """Return the model's entry in ``metrics.json``: train_accuracy None after no epochs, validation if held out."""
        rows, none = self.history, {"accuracy": None, "val_accuracy": None}
        kept = rows.iloc[(self.kept_epoch or len(rows)) - 1] if len(rows) else none
        answers = self.predictions["actual"], self.predictions["predicted"]
        return {
            "trainable_parameters": self.record["trainable_parameters"],
            **({"kept_epoch": self.kept_epoch} if self.kept_epoch else {}),
            "train_accuracy": kept["accuracy"],
            **({"validation_accuracy": kept["val_accuracy"]} if self.task.counts["validation"] else {}),
            "test_accuracy": self.record["test_accuracy"],
            "test_loss": self.record["test_loss"],
            "balanced_accuracy": statistics.balanced_accuracy(*answers),
            "macro_f1": statistics.macro_f1(*answers),
            "calibration_error": statistics.calibration_error(self.reliability),
            "train_seconds": self.train_seconds,
        }

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
        names = {"actual": str, "predicted": str}
        predictions = pd.read_csv(folder / "predictions.csv", dtype=names, na_filter=False)
        if predictions["actual"].tolist() != [task.class_names[label] for label in task.test.y]:
            raise ValueError("predictions of other images")
        gradcam = read_npz(folder / "gradcam.npz", ("row", "heat"))
        seconds = float(read_json(timing_file(stage))["train_seconds"])
        return ModelResult(stage, task, history, predictions, gradcam["row"], gradcam["heat"], record, seconds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"reports of {stage}: {one_line(error)}; expected the outputs of `dvc repro {stage}`") from None
