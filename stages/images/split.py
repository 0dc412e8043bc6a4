"""Split a dataset into the source classes' half and the target classes', and each into parts."""

import numpy as np

from stages.images.dataset import Dataset
from stages.settings import Data
from stages.shared.errors import UserError, shown
from stages.shared.halves import Half, Part, Side


def split(source: tuple[str, Dataset], target: tuple[str, Dataset], data: Data, seed: int) -> dict[Side, Half]:
    """The source's and the target's half of two datasets with their names, which may be one and the same.

    Raises `UserError` if they lack what `data` asks for.
    """
    (name, dataset), (target_name, target_dataset) = source, target
    labels = _labels(data.source_classes, dataset.class_names, "data.source_classes")
    target_labels = _labels(data.target_classes, target_dataset.class_names, "data.target_classes")
    if target is source and (both := [dataset.class_names[label] for label in target_labels if label in labels]):
        raise UserError(f"params.yaml: data.target_classes: {shown(both)}, expected none of data.source_classes")
    return {
        "source": _half(name, dataset, labels, data, data.source_per_class, seed, "source"),
        "target": _half(target_name, target_dataset, target_labels, data, data.target_per_class, seed, "target"),
    }


def _labels(classes: list[int | str], names: list[str], key: str) -> list[int]:
    """Label numbers of classes given by number or by name."""
    if classes == ["all"]:
        if len(names) < 2:
            raise UserError(f"params.yaml: {key}: was all, of which there is {shown(names)}, expected at least 2")
        return list(range(len(names)))
    labels = []
    for given in classes:
        if given not in names and not (isinstance(given, int) and given < len(names)):
            wanted = f"a number below {len(names)} or one of {shown(names)}"
            raise UserError(f"params.yaml: {key}: was {shown(given)}, expected {wanted}")
        labels.append(given if isinstance(given, int) else names.index(given))
    if len(set(labels)) < len(labels):
        raise UserError(f"params.yaml: {key}: was {shown(classes)}, expected each class once, by number or by name")
    return labels


def _half(
    name: str, dataset: Dataset, labels: list[int], data: Data, per_class: int | None, seed: int, side: Side
) -> Half:
    """One half, its labels numbered from 0 in the order of `labels`."""
    new_label = np.full(len(dataset.class_names), -1)
    new_label[labels] = np.arange(len(labels))
    y_train, y_test = new_label[dataset.y_train], new_label[dataset.y_test]
    names = [dataset.class_names[label] for label in labels]
    if missing := [names[label] for label in range(len(labels)) if label not in y_test]:
        raise UserError(f"params.yaml: data.{side}_classes: no test images of {shown(missing)}, expected some")
    key = f"data.{side}_per_class"
    held_out, kept = _held_out_and_kept(y_train, names, data.validation_fraction, per_class, seed, key)
    train, validation = (Part(dataset.x_train.take(rows), y_train[rows]) for rows in (kept, held_out))
    test = np.flatnonzero(y_test >= 0)
    return Half(name, names, train, validation, Part(dataset.x_test.take(test), y_test[test]), dataset.notes)


def _held_out_and_kept(
    y: np.ndarray, names: list[str], fraction: float, per_class: int | None, seed: int, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the images held out for validation, and of those kept for training, chosen class by class.

    `y` holds labels, int64 (N,), indices into `names`; others are passed over. What is held out does not depend on
    `per_class`, and a smaller `per_class` keeps the beginning of what a larger one keeps: one image of each class in
    turn. If all are kept, they stay in their order.
    """
    rng = np.random.default_rng(seed)
    held_out, kept = [], []
    for label, name in enumerate(names):
        rows = rng.permutation(np.flatnonzero(y == label))
        held = round(fraction * len(rows))
        left = len(rows) - held
        if left < (per_class or 1) or (fraction and not held):
            wanted = f"{per_class or 'some'} for training" + (" and some held out" if fraction else "")
            raise UserError(
                f"params.yaml: {key}, data.validation_fraction: {name!r} has {len(rows)} training images, of which "
                f"{held} are held out: expected {wanted}"
            )
        held_out.append(rows[left:])
        kept.append(rows[: per_class or left])
    all_kept = np.sort(np.concatenate(kept)) if per_class is None else np.stack(kept, axis=1).reshape(-1)
    return np.sort(np.concatenate(held_out)), all_kept
