"""The source task and the target task: images and labels as `prepare` writes them and all other stages read them."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stages.shared.arrays import LazyArray
from stages.shared.files import PREPARED
from stages.shared.npz import read_npz, write_npz

SPLITS = ("train", "validation", "test")
Side = Literal["source", "target"]


@dataclass(frozen=True)
class Split:
    """Images `x`, uint8 (N, H, W, C), 0-255, labels `y`, int64 (N,), indices into the task's class names, and `names`.

    A name, text (N,), is the picture's path in its dataset's folder, or its row of an array: ``x_train[17]``.
    Images are mapped from the file, so only those in use are in memory.
    """

    x: Any  # np.ndarray; while it is prepared, LazyArray
    y: np.ndarray
    names: np.ndarray = field(default_factory=lambda: np.array([], str))


@dataclass(frozen=True)
class Task:
    """One classification task; `dataset` names the dataset, `notes` say how it was read."""

    dataset: str
    class_names: list[str]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Count the images of each split."""
        return {name: len(getattr(self, name).y) for name in SPLITS}

    @property
    def curve_split_name(self) -> Literal["validation", "test"]:
        """Name the split used for learning curves: the test images, as in the notebook, if none are held out."""
        return "validation" if len(self.validation.y) else "test"

    @property
    def curve_split(self) -> Split:
        """Return the split used for learning curves."""
        return self.validation if len(self.validation.y) else self.test


def write_task(side: Side, task: Task) -> None:
    """Write ``data/prepared/<side>.npz``; raises `UserError` if that fails."""
    arrays: dict[str, np.ndarray | LazyArray] = {"class_names": np.array(task.class_names)}
    for name in SPLITS:
        split = getattr(task, name)
        arrays |= {f"x_{name}": split.x, f"y_{name}": split.y, f"names_{name}": split.names}
    arrays["dataset"] = np.array([task.dataset])
    if task.notes:
        arrays["notes"] = np.array(task.notes)
    write_npz(PREPARED / f"{side}.npz", arrays)


def read_task(side: Side) -> Task:
    """Read ``data/prepared/<side>.npz``; raises `UserError` if it is missing or damaged."""
    keys = tuple(f"{axis}_{name}" for name in SPLITS for axis in ("x", "y", "names"))
    images = tuple(key for key in keys if key[0] == "x")
    arrays = read_npz(PREPARED / f"{side}.npz", (*keys, "class_names", "dataset"), ("notes",), mapped=images)
    train, validation, test = (
        Split(arrays[f"x_{name}"], arrays[f"y_{name}"], arrays[f"names_{name}"]) for name in SPLITS
    )
    notes = tuple(arrays["notes"].tolist()) if "notes" in arrays else ()
    return Task(str(arrays["dataset"][0]), arrays["class_names"].tolist(), train, validation, test, notes)
