"""Split datasets into the source task and the target task, and each task into train, validation and test."""

import numpy as np

from stages.images.dataset import Dataset
from stages.settings import Data
from stages.shared.errors import SettingError, short_repr
from stages.shared.tasks import Side, Split, Task


def split(source: Dataset, target: Dataset, data: Data, seed: int) -> dict[Side, Task]:
    """Make the two tasks of two datasets, which may be the same object.

    Raises `SettingError` if they lack the classes or images that `data` asks for.
    """
    labels = label_numbers(data.source_classes, source.class_names, "data.source_classes")
    target_labels = label_numbers(data.target_classes, target.class_names, "data.target_classes")
    if target is source and (both := [source.class_names[label] for label in target_labels if label in labels]):
        raise SettingError("data.target_classes", both, "none of data.source_classes")
    return {
        "source": _task(source, labels, data, data.source_per_class, seed, "source"),
        "target": _task(target, target_labels, data, data.target_per_class, seed, "target"),
    }


def label_numbers(classes: list[int | str], names: list[str], key: str) -> list[int]:
    """Convert classes given by number or name to label numbers; raises `SettingError` for unknown or repeated ones."""
    if classes == ["all"]:
        if len(names) < 2:
            raise SettingError(key, "all", f"at least 2 classes, but the dataset has {short_repr(names)}")
        return list(range(len(names)))
    labels = []
    for given in classes:
        if given not in names and not (isinstance(given, int) and given < len(names)):
            raise SettingError(key, given, f"a number below {len(names)} or one of {short_repr(names)}")
        labels.append(given if isinstance(given, int) else names.index(given))
    if len(set(labels)) < len(labels):
        raise SettingError(key, classes, "each class once, by number or by name")
    return labels


def _task(dataset: Dataset, labels: list[int], data: Data, per_class: int | None, seed: int, side: Side) -> Task:
    """Select a task's images; its labels are numbered from 0 in the order of `labels`."""
    new_label = np.full(len(dataset.class_names), -1)
    new_label[labels] = np.arange(len(labels))
    y_train, y_test = new_label[dataset.y_train], new_label[dataset.y_test]
    names = [dataset.class_names[label] for label in labels]
    if missing := [names[label] for label in range(len(labels)) if label not in y_test]:
        raise SettingError(f"data.{side}_classes", missing, "classes with test images")
    key = f"data.{side}_per_class"
    held_out, kept = _hold_out(y_train, names, data.validation_fraction, per_class, seed, key)
    train, validation = (
        Split(dataset.x_train.take(rows), y_train[rows], _row_names("x_train", rows)) for rows in (kept, held_out)
    )
    rows = np.flatnonzero(y_test >= 0)
    test = Split(dataset.x_test.take(rows), y_test[rows], _row_names("x_test", rows))
    return Task(dataset.name, names, train, validation, test, dataset.notes)


def _row_names(array: str, rows: np.ndarray) -> np.ndarray:
    return np.array([f"{array}[{row}]" for row in rows], str)


def _hold_out(
    y: np.ndarray, names: list[str], fraction: float, per_class: int | None, seed: int, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the rows held out for validation, and those kept for training, class by class.

    `y`: labels, int64 (N,), indices into `names`; others are ignored. The rows held out do not depend on `per_class`,
    and a smaller `per_class` keeps the beginning of a larger one: one image of each class in turn. If all are kept,
    they stay in order.
    """
    rng = np.random.default_rng(seed)
    held_out, kept = [], []
    for label, name in enumerate(names):
        rows = rng.permutation(np.flatnonzero(y == label))
        held = round(fraction * len(rows))
        left = len(rows) - held
        if left < (per_class or 1) or (fraction and not held):
            wanted = f"{per_class or 'some'} for training" + (" and some held out" if fraction else "")
            has = f"{name!r} has {len(rows)} training images, of which data.validation_fraction holds out {held}"
            raise SettingError(key, per_class, f"{wanted}, but {has}")
        held_out.append(rows[left:])
        kept.append(rows[: per_class or left])
    all_kept = np.sort(np.concatenate(kept)) if per_class is None else np.stack(kept, axis=1).reshape(-1)
    return np.sort(np.concatenate(held_out)), all_kept
