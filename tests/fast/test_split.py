"""Splitting a dataset into two tasks, and choosing which training images are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages import prepare
from stages.images.dataset import KEYS, Dataset, validate_arrays
from stages.images.split import split
from stages.settings import Data
from stages.shared.arrays import LazyArray
from stages.shared.errors import SettingError
from stages.shared.tasks import SPLITS, Task, read_task
from tiny import CLASS_NAMES, TEST_PER_CLASS, TRAIN_PER_CLASS, tiny_arrays

X_TRAIN, Y_TRAIN, X_TEST, Y_TEST = (tiny_arrays()[key] for key in KEYS)


def dataset_of(**changes: np.ndarray) -> Dataset:
    return validate_arrays(Path("tiny.npz"), tiny_arrays() | changes)


DATASET = dataset_of()


def tasks(dataset: Dataset = DATASET, seed: int = 1, **changes) -> dict[str, Task]:
    return split(dataset, dataset, Data(**changes), seed)


def rows_of(images: LazyArray) -> list[int]:
    """Find the row of each image among the training images; noise makes every image unique."""
    row = {image.tobytes(): i for i, image in enumerate(X_TRAIN)}
    return [row[image.tobytes()] for image in np.asarray(images)]


@pytest.mark.parametrize(("side", "first"), [("source", 0), ("target", 5)])
def test_default_tasks_are_the_notebooks(side, first):
    task = tasks()[side]
    for part, x, y in ((task.train, X_TRAIN, Y_TRAIN), (task.test, X_TEST, Y_TEST)):
        chosen = (y >= first) & (y < first + 5)
        assert np.array_equal(part.x, x[chosen])
        assert np.array_equal(part.y, y[chosen] - first)
    assert task.class_names == CLASS_NAMES[first : first + 5]
    assert task.counts == {"train": 5 * TRAIN_PER_CLASS, "validation": 0, "test": 5 * TEST_PER_CLASS}
    assert task.curve_split_name == "test"


def test_labels_are_numbered_in_the_order_given():
    target = tasks(target_classes=["jay", 5, "hen"])["target"]
    assert target.class_names == ["jay", "fox", "hen"]
    assert np.array_equal(np.array([9, 5, 7])[target.train.y], Y_TRAIN[rows_of(target.train.x)])
    numbers = tasks(NUMBERS, source_classes=["1", "2"], target_classes=[20240110, 11])["target"]
    assert numbers.class_names == ["20240110", "11"]


def test_auto_is_the_first_half_and_the_rest_or_all_of_two_datasets():
    nine = dataset_of(y_train=Y_TRAIN % 9, y_test=Y_TEST % 9, class_names=np.array(CLASS_NAMES[:9]))
    halves = tasks(nine)
    assert [halves[side].class_names for side in ("source", "target")] == [CLASS_NAMES[:4], CLASS_NAMES[4:9]]
    assert halves["target"].notes[-1] == "head: auto starts a new output layer: 5 classes of the same dataset"
    assert tasks()["target"].notes == ("head: auto keeps the output layer: 5 classes of the same dataset",)
    for every in ("auto", "all"):
        other = split(nine, replace(DATASET, name="other"), Data(target_classes=every), 1)
        assert [other[side].class_names for side in ("source", "target")] == [CLASS_NAMES[:9], CLASS_NAMES]
        assert other["target"].dataset == "other"


ONE_CLASS = dataset_of(y_train=Y_TRAIN * 0, y_test=Y_TEST * 0, class_names=np.array(["ant"]))
NUMBERS = dataset_of(class_names=np.array([str(i) for i in (1, 10, 11, 12, 2, 3, 4, 5, 6, 20240110)]))
NO_TEST_GNU = dataset_of(y_test=np.where(Y_TEST == 6, 0, Y_TEST))
NO_TRAINING_GNU = dataset_of(y_train=np.where(Y_TRAIN == 6, 0, Y_TRAIN))


@pytest.mark.parametrize(
    ("dataset", "changes", "problem"),
    [
        (DATASET, {"source_classes": [0, 1, "bee"]}, r"source_classes: was \[0, 1, 'bee'\], expected each class once"),
        (DATASET, {"target_classes": ["bee", 7]}, r"target_classes: was \['bee'\], expected none of data.source_cl"),
        (DATASET, {"target_classes": ["fox", "wolf"]}, "target_classes: was 'wolf', expected a number below 10 or one"),
        (ONE_CLASS, {"source_classes": "all"}, r"source_classes: was 'all', expected at least 2 classes, .*\['ant'\]"),
        (NO_TEST_GNU, {}, r"target_classes: was \['gnu'\], expected classes with test images"),
        (NO_TRAINING_GNU, {}, "target_per_class: .* some for training, but 'gnu' has the images {'test': 10}"),
        (DATASET, {"target_per_class": 21}, "target_per_class: was 21, expected 21 for .* {'train': 20, 'test': 10}"),
        (NUMBERS, {"source_classes": [1, 2]}, 'source_classes: was 1, expected .*: write "1" in quotes for the class'),
        (ONE_CLASS, {}, "source_classes: was 'auto', expected at least 4 classes, two for each task"),
    ],
)
def test_classes_or_images_that_the_dataset_lacks_are_refused_in_one_line(dataset, changes, problem):
    with pytest.raises(SettingError, match=rf"^params\.yaml: data\.{problem}") as error:
        tasks(dataset, **changes)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("side", ["source", "target"])
def test_validation_images_are_stratified_and_taken_from_the_training_images(side):
    without, task = tasks()[side], tasks(validation_fraction=0.25)[side]
    assert np.bincount(task.validation.y).tolist() == [TRAIN_PER_CLASS // 4] * 5
    train, validation = rows_of(task.train.x), rows_of(task.validation.x)
    assert sorted(train + validation) == rows_of(without.train.x)
    assert (train, validation) == (sorted(train), sorted(validation))  # the dataset's order, if all are kept
    names = [task.class_names[label] for label in task.validation.y]
    assert names == [CLASS_NAMES[label] for label in Y_TRAIN[validation]]
    assert np.array_equal(task.test.x, without.test.x)
    assert task.curve_split_name == "validation"


def test_smaller_subset_is_the_beginning_of_a_larger_one_and_changes_nothing_else():
    few, many, everything = (tasks(target_per_class=n, validation_fraction=0.2) for n in (3, 11, None))
    small, large = few["target"].train, many["target"].train
    assert np.array_equal(small.x, np.asarray(large.x)[: 3 * 5])
    assert np.bincount(small.y).tolist() == [3] * 5
    assert set(rows_of(large.x)) < set(rows_of(everything["target"].train.x))
    assert np.array_equal(few["target"].validation.x, everything["target"].validation.x)
    assert np.array_equal(few["source"].train.x, everything["source"].train.x)


def test_prepare_writes_the_split_and_prints_the_counts(tiny, params, capsys):
    changed = params(**{"data.validation_fraction": 0.2, "data.source_per_class": 5})
    prepare.main()
    read, expected = read_task("source"), tasks(**changed.data.model_dump(), seed=changed.seed)["source"]
    assert (read.dataset, read.class_names) == ("tiny", expected.class_names)
    for part, same in ((getattr(read, name), getattr(expected, name)) for name in SPLITS):
        assert np.array_equal(part.x, same.x)
        assert np.array_equal(part.y, same.y)
    assert "\nant      5           4    10\n" in capsys.readouterr().out  # training, validation and test images
