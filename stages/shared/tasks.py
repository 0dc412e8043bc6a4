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
    """Images `x`, uint8 (N, H, W, C), 0-255, labels `y`, int64 (N,), indices into the class names, and `names` (N,).

    An image's name is its path in the dataset's folder, or its row, such as ``x_test[17]``. Images are mapped from the
    file, so only those in use are in memory.
    """

    x: Any  # np.ndarray; while it is prepared, LazyArray
    y: np.ndarray
    names: np.ndarray


@dataclass(frozen=True)
class Task:
    """One classification task; `dataset` names the dataset.

    `notes` say how it was read, `warnings` belong at the top of a report. `fit` says how pictures were resized, see
    ``data.fit``, and `resized` has one picture in each way, uint8 (3, H, W, 3), or none, (0, H, W, 3). `one_dataset`:
    source and target task have different classes of the same dataset.
    """

    dataset: str
    class_names: list[str]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    fit: str = "crop"
    one_dataset: bool = True
    resized: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1, 3), np.uint8))

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
        arrays |= {f"x_{name}": split.x, f"y_{name}": split.y, f"names_{name}": np.asarray(split.names, np.str_)}
    arrays |= {"dataset": np.array([task.dataset, task.fit]), "one_dataset": np.array(task.one_dataset)}
    arrays["resized"] = task.resized
    arrays |= {key: np.array(getattr(task, key), np.str_) for key in ("notes", "warnings")}
    write_npz(PREPARED / f"{side}.npz", arrays)


def read_task(side: Side) -> Task:
    """Read ``data/prepared/<side>.npz``; raises `UserError` if it is missing or damaged."""
    keys = tuple(f"{kind}_{name}" for name in SPLITS for kind in ("x", "y", "names"))
    images = tuple(key for key in keys if key[0] == "x")
    others = ("class_names", "dataset", "one_dataset", "resized", "notes", "warnings")
    arrays = read_npz(PREPARED / f"{side}.npz", (*keys, *others), mapped=images)
    train, validation, test = (Split(*(arrays[f"{kind}_{name}"] for kind in ("x", "y", "names"))) for name in SPLITS)
    names, notes, warnings = (arrays[key].tolist() for key in ("class_names", "notes", "warnings"))
    dataset, fit = arrays["dataset"].tolist()
    said = tuple(notes), tuple(warnings)
    return Task(dataset, names, train, validation, test, *said, fit, bool(arrays["one_dataset"]), arrays["resized"])
