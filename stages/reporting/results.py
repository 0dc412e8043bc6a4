"""What the training stages left behind, and the metrics made of it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from stages.reporting import published
from stages.reporting.statistics import accuracy_interval, balanced_accuracy, calibration_error, macro_f1, reliability
from stages.shared.errors import UserError, one_line
from stages.shared.files import artifact, check_sha256, read_sealed
from stages.shared.halves import Half, read_half
from stages.shared.npz import read_npz

MANY = 30  # classes; of more, figures and tables show some
PAIRS = 15  # of classes that are confused, shown of many


def hardest(by_class: pd.Series) -> list[str]:
    """The classes to show: all, or of more than `MANY` those with the lowest values of `by_class`, lowest first."""
    return list(by_class.index if len(by_class) <= MANY else by_class.nsmallest(MANY).index)


@dataclass(frozen=True)
class Result:
    """One trained model.

    history: one row an epoch, see ``training.loop.fit``. predictions: one row a test image, in the half's
    order, columns actual, predicted (class names), probability (of the predicted class). mistakes: the rows of the most
    confident ones, int64 (n,); heat: where the model looked there, float32 (n, h, w), see ``training.gradcam``.
    """

    stage: str
    half: Half
    history: pd.DataFrame
    predictions: pd.DataFrame
    mistakes: np.ndarray
    heat: np.ndarray
    record: dict
    train_seconds: float

    @cached_property
    def correct(self) -> np.ndarray:
        """Right or wrong, bool (test images,)."""
        return (self.predictions["actual"] == self.predictions["predicted"]).to_numpy()

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """How often the model is right by how sure it is, see `statistics.reliability`."""
        return reliability(self.predictions["probability"], self.correct)

    @property
    def microseconds(self) -> float | None:
        """Of training, per image and epoch; None after no epochs."""
        passes = len(self.history) * self.half.counts["train"]
        return 1e6 * self.train_seconds / passes if passes else None

    @property
    def kept_epoch(self) -> int | None:
        """The epoch, from 1, that early stopping kept the weights of; None without early stopping."""
        return int(self.history["kept"].argmax()) + 1 if "kept" in self.history else None

    @property
    def only_answer(self) -> str | None:
        """The class that a model takes every test image for if it learned nothing; None after no epochs."""
        answers = self.predictions["predicted"].unique()
        return str(answers[0]) if len(self.history) and len(answers) == 1 else None

    @cached_property
    def metrics(self) -> dict:
        """What ``metrics.json`` has of this model: training accuracy None after no epochs, validation if held out."""
        rows, none = self.history, {"accuracy": None, "val_accuracy": None}
        kept = rows.iloc[(self.kept_epoch or len(rows)) - 1] if len(rows) else none
        stopped = {"kept_epoch": self.kept_epoch} if self.kept_epoch else {}
        held_out = {"validation_accuracy": kept["val_accuracy"]} if self.half.counts["validation"] else {}
        answers = self.predictions["actual"], self.predictions["predicted"]
        return {
            "trainable_parameters": self.record["trainable_parameters"],
            **stopped,
            "train_accuracy": kept["accuracy"],
            **held_out,
            "test_accuracy": self.record["test_accuracy"],
            "test_loss": self.record["test_loss"],
            "balanced_accuracy": balanced_accuracy(*answers),
            "macro_f1": macro_f1(*answers),
            "calibration_error": calibration_error(self.reliability),
            "train_seconds": self.train_seconds,
        }

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """Accuracy with its 95% interval by class: columns accuracy, low, high, images; index class."""
        by_class = pd.Series(self.correct).groupby(self.predictions["actual"].to_numpy())
        rows = {name: (c.mean(), *accuracy_interval(c.to_numpy()), len(c)) for name, c in by_class}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "low", "high", "images"])
        return table.loc[self.half.class_names]

    def most_confused(self) -> pd.DataFrame:
        """The classes most often taken for another: columns actual, predicted, count (of test images)."""
        wrong = self.predictions[~self.correct]
        pairs = wrong.groupby(["actual", "predicted"], as_index=False).size()
        return pairs.rename(columns={"size": "count"}).nlargest(PAIRS, "count")


@dataclass(frozen=True)
class Results:
    """The model trained on the source classes, and those fine-tuned from it on the target classes."""

    source: Result
    tuned: list[Result]

    @property
    def all(self) -> list[Result]:
        """Every model, the source's first."""
        return [self.source, *self.tuned]

    @property
    def summary(self) -> pd.DataFrame:
        """The notebook's table, its column names."""
        metrics = [r.metrics for r in self.all]
        return pd.DataFrame(
            {
                "Model Name": [r.stage for r in self.all],
                "Number of Trainable Parameters": [m["trainable_parameters"] for m in metrics],
                "Training Time (min)": [round(m["train_seconds"] / 60, 2) for m in metrics],
                "Train Accuracy": [m["train_accuracy"] for m in metrics],
                "Test Accuracy": [m["test_accuracy"] for m in metrics],
            }
        )

    @property
    def on_the_notebooks_images(self) -> bool:
        """Whether these are CIFAR-10's classes in the notebook's halves, all their images."""
        halves = [self.source.half, self.tuned[0].half]
        all_images = all(half.counts == published.COUNTS for half in halves)
        return all_images and [half.class_names for half in halves] == published.CLASSES


def read(source: str, tuned: list[str]) -> Results:
    """Read what stages left behind, by name; raises `UserError` if something is missing, damaged or does not fit."""
    target = read_half("target")
    return Results(_read(source, read_half("source")), [_read(stage, target) for stage in tuned])


def _read(stage: str, half: Half) -> Result:
    try:
        record = read_sealed(artifact("record", stage))
        for kind, expected in record["sha256_of"].items():
            check_sha256(artifact(kind, stage), expected, artifact(kind, stage).read_bytes())
        history = pd.read_csv(artifact("history", stage), dtype=float)
        names = {"actual": str, "predicted": str}
        predictions = pd.read_csv(artifact("predictions", stage), dtype=names, na_filter=False)
        if predictions["actual"].tolist() != [half.class_names[label] for label in half.test.y]:
            raise ValueError("predictions of other images")
        looked = read_npz(artifact("gradcam", stage), ("row", "heat"))
        seconds = float(read_sealed(artifact("timing", stage))["train_seconds"])
        return Result(stage, half, history, predictions, looked["row"], looked["heat"], record, seconds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"reports of {stage}: {one_line(error)}; expected what `dvc repro {stage}` writes") from None
