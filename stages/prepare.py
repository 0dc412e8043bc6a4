"""Split a dataset into the source classes' images and the target classes': ``python -m stages.prepare``."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages import datasets, settings
from stages.arrays import Dataset, write_npz
from stages.settings import Settings, UserError, stop_on_user_error

PREPARED = Path("data/prepared")
PARTS = ("train", "validation", "test")


def chosen_labels(classes: list[int | str], names: list[str], key: str) -> list[int]:
    """Label numbers of classes given by number or by name; raises `UserError` when there is none such."""
    labels = []
    for given in classes:
        if isinstance(given, int) and given < len(names):
            labels.append(given)
        elif given in names:
            labels.append(names.index(given))
        else:
            raise UserError(
                f"params.yaml: {key}: was {given!r}, expected a number below {len(names)} or one of {names}"
            )
    if len(set(labels)) < len(labels):
        raise UserError(f"params.yaml: {key}: was {classes}, expected each class once, by number or by name")
    return labels


def held_out_and_kept(
    y: np.ndarray, names: list[str], fraction: float, per_class: int | None, rng: np.random.Generator, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Choose, class by class, the images held out for validation and those kept for training.

    Args:
        y: labels, int64 (N,), indices into `names`; others are passed over.
        fraction: share of each class to hold out; the held-out images do not depend on `per_class`.
        per_class: images to keep of each class; None: all that are not held out.

    Returns:
        Row numbers of the held-out images, in their order, and of the kept ones: in their order where all are kept,
        else one of each class in turn, so that a smaller subset is the beginning of a larger one.
    """
    held_out, kept = [], []
    for label, name in enumerate(names):
        rows = rng.permutation(np.flatnonzero(y == label))
        held = round(fraction * len(rows))
        left = len(rows) - held
        if left < (per_class or 1) or (fraction and not held):
            wanted = f"{per_class or 'some'} for training{' and some for validation' if fraction else ''}"
            raise UserError(
                f"params.yaml: {key}, data.validation_fraction: {name!r} has {len(rows)} training "
                f"images, of which {held} are held out: expected {wanted}"
            )
        held_out.append(rows[left:])
        kept.append(rows[: per_class or left])
    if per_class is None:
        return np.sort(np.concatenate(held_out)), np.sort(np.concatenate(kept))
    return np.sort(np.concatenate(held_out)), np.stack(kept, axis=1).reshape(-1)


def split(dataset: Dataset, labels: list[int], fraction: float, per_class: int | None, seed: int, key: str) -> dict:
    """The arrays of one half, its labels numbered from 0 in the order of `labels`.

    Returns x_train, x_validation, x_test: uint8 (N, H, W, C); y_…: int64 (N,); class_names: text (classes,).
    """
    new_label = np.full(len(dataset.class_names), -1)
    new_label[labels] = np.arange(len(labels))
    y_train, y_test = new_label[dataset.y_train], new_label[dataset.y_test]
    missing = sorted(set(range(len(labels))) - set(y_test.tolist()))
    if missing:
        without = [dataset.class_names[labels[i]] for i in missing]
        raise UserError(f"params.yaml: {key}: no test images of {without}, expected some of each class")
    rng = np.random.default_rng(seed)
    names = [dataset.class_names[label] for label in labels]
    held_out, kept = held_out_and_kept(y_train, names, fraction, per_class, rng, key)
    test = np.flatnonzero(y_test >= 0)
    arrays = {"class_names": np.array(names)}
    for part, x, y, rows in (
        ("train", dataset.x_train, y_train, kept),
        ("validation", dataset.x_train, y_train, held_out),
        ("test", dataset.x_test, y_test, test),
    ):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = x[rows], y[rows]
    return arrays


def table(halves: dict[str, dict]) -> pd.DataFrame:
    """How many images of each class there are, by half and part."""
    rows = [
        {"half": half, "class": name} | {part: int((arrays[f"y_{part}"] == label).sum()) for part in PARTS}
        for half, arrays in halves.items()
        for label, name in enumerate(arrays["class_names"])
    ]
    return pd.DataFrame(rows)


def prepare(params: Settings) -> dict[str, dict]:
    """Read the dataset and split it as `params` say; see `split`."""
    data = params.data
    dataset = datasets.load(Path(data.path))
    source = chosen_labels(data.source_classes, dataset.class_names, "data.source_classes")
    target = chosen_labels(data.target_classes, dataset.class_names, "data.target_classes")
    if both := sorted(set(source) & set(target)):
        names = [dataset.class_names[label] for label in both]
        raise UserError(f"params.yaml: data.target_classes: {names}, expected none of data.source_classes")
    return {
        half: split(dataset, labels, data.validation_fraction, per_class, params.seed, f"data.{half}_per_class")
        for half, labels, per_class in (
            ("source", source, data.source_per_class),
            ("target", target, data.target_per_class),
        )
    }


@stop_on_user_error
def main() -> None:
    params = settings.load()
    halves = prepare(params)
    name = datasets.dataset_name(Path(params.data.path))
    for half, arrays in halves.items():
        write_npz(PREPARED / f"{half}.npz", arrays | {"dataset": np.array([name])})
    shape = "x".join(str(n) for n in halves["source"]["x_train"].shape[1:])
    print(f"{name}: images {shape}")
    print(table(halves).to_string(index=False))


if __name__ == "__main__":
    main()
