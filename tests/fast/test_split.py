"""Splitting a dataset in two halves, and choosing which training images are kept."""

from dataclasses import replace

import numpy as np
import pytest

from stages import prepare
from stages.images.dataset import KEYS, Dataset, Images
from stages.images.split import split
from stages.settings import Data
from stages.shared.errors import UserError
from stages.shared.halves import PARTS, Half, read_half
from tiny import CLASS_NAMES, TEST_PER_CLASS, TRAIN_PER_CLASS, tiny_arrays

X_TRAIN, Y_TRAIN, X_TEST, Y_TEST = (tiny_arrays()[key] for key in KEYS)
DATASET = Dataset(Images.of(X_TRAIN), Y_TRAIN, Images.of(X_TEST), Y_TEST, CLASS_NAMES)


def halves(dataset: Dataset = DATASET, seed: int = 1, **changes) -> dict[str, Half]:
    source = ("tiny", dataset)
    return split(source, source, Data(**changes), seed)


def rows_of(images: np.ndarray, among: np.ndarray) -> list[int]:
    """Where each image stands in the dataset; the noise makes every image unique."""
    row = {image.tobytes(): i for i, image in enumerate(np.asarray(among))}
    return [row[image.tobytes()] for image in np.asarray(images)]


def test_default_halves_are_the_notebooks():
    for side, first in (("source", 0), ("target", 5)):
        half = halves()[side]
        for part, x, y in (("train", DATASET.x_train, DATASET.y_train), ("test", DATASET.x_test, DATASET.y_test)):
            chosen = (y >= first) & (y < first + 5)
            assert np.array_equal(getattr(half, part).x, np.asarray(x)[chosen])
            assert np.array_equal(getattr(half, part).y, y[chosen] - first)
        assert half.class_names == CLASS_NAMES[first : first + 5]
        assert half.counts == {"train": 5 * TRAIN_PER_CLASS, "validation": 0, "test": 5 * TEST_PER_CLASS}
        assert half.curves_part == "test"


def test_labels_are_numbered_in_the_order_given():
    target = halves(target_classes=["jay", 5, "hen"])["target"]
    assert target.class_names == ["jay", "fox", "hen"]
    old = DATASET.y_train[rows_of(target.train.x, DATASET.x_train)]
    assert np.array_equal(np.array([9, 5, 7])[target.train.y], old)
    assert len(old) == 3 * TRAIN_PER_CLASS


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ({"source_classes": [0, 1, "bee"]}, "data.source_classes: was [0, 1, 'bee'], expected each class once"),
        ({"target_classes": ["bee", 7]}, "data.target_classes: ['bee'], expected none of data.source_classes"),
        ({"target_classes": ["fox", "wolf"]}, "data.target_classes: was 'wolf', expected a number below 10 or one of"),
    ],
)
def test_classes_that_do_not_fit_are_refused_in_one_line(classes, problem):
    with pytest.raises(UserError) as error:
        halves(**classes)
    assert str(error.value).startswith(f"params.yaml: {problem}")
    assert str(error.value).isprintable()


def test_two_datasets_may_have_classes_of_the_same_name_and_all_means_all():
    target = split(("tiny", DATASET), ("other", DATASET), Data(target_classes="all"), 1)["target"]
    assert (target.dataset, target.class_names) == ("other", CLASS_NAMES)
    one = replace(DATASET, y_train=DATASET.y_train * 0, y_test=DATASET.y_test * 0, class_names=["ant"])
    with pytest.raises(UserError, match=r"data\.target_classes: was all, of which there is \['ant'\], expected at"):
        split(("tiny", DATASET), ("one", one), Data(target_classes="all"), 1)


def test_a_class_without_images_is_refused_by_name():
    """Lacking test images are blamed on the choice of classes, lacking training images on how many are to be kept."""
    train, test = DATASET.y_train != 6, DATASET.y_test != 6
    with pytest.raises(UserError, match=r"^params\.yaml: data\.target_classes: no test images of \['gnu'\]"):
        halves(replace(DATASET, x_test=DATASET.x_test.take(np.flatnonzero(test)), y_test=DATASET.y_test[test]))
    with pytest.raises(UserError, match=r"^params\.yaml: data\.target_per_class, .*'gnu' has 0 training images"):
        halves(replace(DATASET, x_train=DATASET.x_train.take(np.flatnonzero(train)), y_train=DATASET.y_train[train]))


def test_validation_images_are_stratified_and_taken_from_the_training_images():
    for side, without in halves().items():
        half = halves(validation_fraction=0.25)[side]
        assert np.bincount(half.validation.y).tolist() == [TRAIN_PER_CLASS // 4] * 5
        train, validation = (rows_of(part.x, DATASET.x_train) for part in (half.train, half.validation))
        assert sorted(train + validation) == rows_of(without.train.x, DATASET.x_train)
        assert (train, validation) == (sorted(train), sorted(validation))  # the dataset's order, if all are kept
        names = [half.class_names[label] for label in half.validation.y]
        assert names == [CLASS_NAMES[label] for label in DATASET.y_train[validation]]
        assert np.array_equal(half.test.x, without.test.x)
        assert half.curves_part == "validation"


def test_a_smaller_subset_is_the_beginning_of_a_larger_one():
    """What is held out does not depend on it, nor does the other half."""
    few, many, all_images = (halves(target_per_class=n, validation_fraction=0.2) for n in (3, 11, None))
    small, large = few["target"].train, many["target"].train
    assert np.array_equal(small.x, np.asarray(large.x)[: 3 * 5])
    assert np.bincount(small.y).tolist() == [3] * 5
    assert np.bincount(large.y).tolist() == [11] * 5
    assert set(rows_of(large.x, DATASET.x_train)) < set(rows_of(all_images["target"].train.x, DATASET.x_train))
    assert np.array_equal(few["target"].validation.x, all_images["target"].validation.x)
    assert np.array_equal(few["source"].train.x, all_images["source"].train.x)


def test_seed_chooses_the_images():
    first, other = (halves(seed=seed, source_per_class=5, validation_fraction=0.2)["source"] for seed in (1, 2))
    assert not np.array_equal(first.train.x, other.train.x)
    assert not np.array_equal(first.validation.x, other.validation.x)


@pytest.mark.parametrize(
    "changes", [{"validation_fraction": 0.1, "target_per_class": TRAIN_PER_CLASS}, {"validation_fraction": 0.01}]
)
def test_more_images_than_there_are_is_refused_in_one_line(changes):
    with pytest.raises(UserError, match=rf"^params\.yaml: [^\n]*has {TRAIN_PER_CLASS} training images[^\n]*$") as error:
        halves(**changes)
    assert all(f"data.{key}" in str(error.value) for key in changes)


def test_what_is_written_is_the_split_and_equal_in_two_runs(tiny, params, workspace, capsys):
    changed = params(**{"data.validation_fraction": 0.2, "data.source_per_class": 5})
    prepare.main()
    files = {path: path.read_bytes() for path in workspace.glob("data/prepared/*.npz")}
    prepare.main()
    assert {path: path.read_bytes() for path in workspace.glob("data/prepared/*.npz")} == files
    read = read_half("source")
    expected = halves(seed=changed.seed, validation_fraction=0.2, source_per_class=5)["source"]
    assert (read.dataset, read.class_names) == ("tiny", expected.class_names)
    for part in PARTS:
        for axis, dtype in (("x", np.uint8), ("y", np.int64)):
            array = getattr(getattr(read, part), axis)
            assert np.array_equal(array, getattr(getattr(expected, part), axis))
            assert array.dtype == dtype
    assert "\nant      5           4    10\n" in capsys.readouterr().out  # training, validation and test images
