"""Read the outputs of the training stages, and compute their metrics."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from stages.predictions import accuracy_by_threshold, lowest_threshold, probability_columns
from stages.reporting import statistics
from stages.shared.errors import UserError, one_line
from stages.shared.files import check_sha256, read_json, stage_folder, timing_file
from stages.shared.npz import read_npz
from stages.shared.tasks import Split, Task, read_task

MANY = 30  # classes; of more, figures and tables show some
MAX_PAIRS = 15  # of confused classes, shown of many
WANTED = 0.95  # accuracy of the answers that a threshold is chosen for
WEAK = 1.25  # times guessing: a control with less accuracy hardly does better


def is_correct(predictions: pd.DataFrame) -> np.ndarray:
    """Return which predictions are correct, bool (images,)."""
    return (predictions["actual"] == predictions["predicted"]).to_numpy()


@dataclass(frozen=True)
class ModelResult:
    """The outputs of one training stage.

    history: learning curves, see ``training.fit.History``. predictions: one row a test image, in the task's order, see
    `prediction_table`; validation: the same of the validation images, None without; control: the same of the control
    without each class's probability, None if it was not trained. mistakes: rows of the most confident ones, int64 (n,);
    heat: their Grad-CAM maps, float32 (n, h, w).
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
    validation: pd.DataFrame | None = None

    @cached_property
    def correct(self) -> np.ndarray:
        """Return which predictions are correct, bool (test images,)."""
        return is_correct(self.predictions)

    @cached_property
    def gain(self) -> statistics.PairedDifference | None:
        """Compare the model with its control: the gain of the transfer in test accuracy; None without a control."""
        if self.control is None:
            return None
        return statistics.paired_difference(self.correct, is_correct(self.control))

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
    def guessing(self) -> float:
        """Return the test accuracy of always predicting the commonest class."""
        return float(self.predictions["actual"].value_counts(normalize=True).max())

    @property
    def only_answer(self) -> str | None:
        """Return the class that a model predicts for every test image if it learned nothing; None after no epochs."""
        answers = self.predictions["predicted"].unique()
        return str(answers[0]) if len(self.history) and len(answers) == 1 else None

    @cached_property
    def metrics(self) -> dict:
        """Return the model's entry in ``metrics.json``; train_accuracy is None after no epochs."""
        metrics = {"test_accuracy": self.record["test_accuracy"]}
        if self.gain:
            metrics["control_test_accuracy"] = self.record["control"]["test_accuracy"]
            metrics["transfer_gain"] = self.gain.difference
        return metrics | {
            "test_loss": self.record["test_loss"],
            "train_accuracy": self.history["accuracy"].iloc[(self.kept_epoch or 0) - 1] if len(self.history) else None,
            "trainable_parameters": self.record["trainable_parameters"],
        }

    @cached_property
    def details(self) -> dict:
        """Return the model's entry in ``details.json``: everything that is no metric of DVC's."""
        classes, labels = self.per_class, self.task.test.y
        p = self.predictions[probability_columns(self.task.class_names)].to_numpy()
        chosen_on = self.predictions if self.validation is None else self.validation
        curve = accuracy_by_threshold(chosen_on["probability"].to_numpy(), is_correct(chosen_on))
        threshold = lowest_threshold(curve, WANTED)
        return {
            "test_accuracy_interval": statistics.accuracy_interval(self.correct),
            **{f"top_{k}_accuracy": statistics.top_k_accuracy(p, labels, k) for k in (2, 5) if k < len(classes)},
            "transfer_gain": self.gain and self.gain._asdict(),
            "balanced_accuracy": float(classes["recall"].mean()),
            "macro_f1": float(classes["f1"].mean()),
            "mean_confidence": float(self.predictions["probability"].mean()),
            "calibration_error": statistics.calibration_error(self.reliability),
            "selective": statistics.answers_above(threshold, self.predictions["probability"], self.correct),
            "kept_epoch": self.kept_epoch,
            "validation_accuracy": None if self.validation is None else float(is_correct(self.validation).mean()),
            "train_seconds": self.train_seconds,
            "classes": classes.astype(object).where(classes.notna(), None).to_dict("index"),
        }

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """Compute the scores of each class, see `class_scores`."""
        return statistics.class_scores(self.predictions["actual"], self.predictions["predicted"], self.task.class_names)

    def most_confused(self) -> pd.DataFrame:
        """List the pairs of classes most often confused: columns actual, predicted, count (of test images)."""
        wrong = self.predictions[~self.correct]
        pairs = wrong.groupby(["actual", "predicted"], as_index=False).size()
        return pairs.rename(columns={"size": "count"}).nlargest(MAX_PAIRS, "count")


def hardest(models: list[ModelResult]) -> list[str]:
    """Select the classes to show of models with the same classes.

    All of them, or of more than `MANY` those with the lowest mean recall, lowest first.
    """
    recall = pd.concat(r.per_class["recall"] for r in models).groupby(level=0, sort=False).mean()
    return list(recall.index if len(recall) <= MANY else recall.nsmallest(MANY).index)


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
        return pd.DataFrame(
            {
                "Model Name": r.stage,
                "Number of Trainable Parameters": r.metrics["trainable_parameters"],
                "Training Time (min)": round(r.train_seconds / 60, 2),
                "Train Accuracy": r.metrics["train_accuracy"],
                "Test Accuracy": r.metrics["test_accuracy"],
            }
            for r in self.all
        )


def read_results(source: str, tuned: list[str]) -> Results:
    """Read the outputs of stages by name; raises `UserError` if some are missing, damaged or do not fit together."""
    target = read_task("target")
    return Results(_read(source, read_task("source")), [_read(stage, target) for stage in tuned])


def _read(stage: str, task: Task) -> ModelResult:
    folder = stage_folder(stage)

    def read(name: str, split: Split) -> pd.DataFrame:
        texts = dict.fromkeys(("image", "actual", "predicted"), str)
        table = pd.read_csv(folder / f"{name}.csv", dtype=texts, na_filter=False)
        actual = np.array(task.class_names)[split.y]
        if table["image"].tolist() != split.names.tolist() or table["actual"].tolist() != actual.tolist():
            raise ValueError("predictions of other images")
        return table

    try:
        record = read_json(folder / "record.json")
        for name, expected in record["sha256_of"].items():
            check_sha256(folder / name, expected, (folder / name).read_bytes())
        gradcam = read_npz(folder / "gradcam.npz", ("row", "heat"))
        return ModelResult(
            stage=stage,
            task=task,
            history=pd.read_csv(folder / "history.csv", dtype=float),
            predictions=read("predictions", task.test),
            mistakes=gradcam["row"],
            heat=gradcam["heat"],
            record=record,
            train_seconds=float(read_json(timing_file(stage))["train_seconds"]),
            control=read("control_predictions", task.test) if "control" in record else None,
            validation=read("validation_predictions", task.validation) if len(task.validation.y) else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"reports of {stage}: {one_line(error)}; expected the outputs of `dvc repro {stage}`") from None
