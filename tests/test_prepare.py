"""Splitting a dataset in two halves, and choosing which training images are kept."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages import prepare
from stages.arrays import read_npz
from stages.settings import UserError

PER_CLASS = 20  # training images in tiny_dataset
KEYS = tuple(f"{axis}_{part}" for part in prepare.PARTS for axis in "xy")


def rows_of(images: np.ndarray, among: np.ndarray) -> list[int]:
    """Where each image stands in the dataset; the noise makes every image unique."""
    row = {image.tobytes(): i for i, image in enumerate(among)}
    assert len(row) == len(among)
    return [row[image.tobytes()] for image in images]


@pytest.fixture
def halves(tiny, params):
    """Prepare the tiny dataset with some settings changed."""
    params(**{"finetune_output.head": "reset", "finetune_fc.head": "reset"})  # so that class counts may differ
    return lambda **changes: prepare.prepare(params(**{f"data.{key}": value for key, value in changes.items()}))


def test_default_halves_are_the_notebooks(halves, tiny_dataset):
    result = halves()
    for half, chosen in (("source", tiny_dataset["y_train"] < 5), ("target", tiny_dataset["y_train"] >= 5)):
        first = 0 if half == "source" else 5
        assert np.array_equal(result[half]["x_train"], tiny_dataset["x_train"][chosen])
        assert np.array_equal(result[half]["y_train"], tiny_dataset["y_train"][chosen] - first)
        chosen = (tiny_dataset["y_test"] < 5) == (half == "source")
        assert np.array_equal(result[half]["x_test"], tiny_dataset["x_test"][chosen])
        assert np.array_equal(result[half]["y_test"], tiny_dataset["y_test"][chosen] - first)
        assert result[half]["class_names"].tolist() == tiny_dataset["class_names"][first : first + 5].tolist()
        assert len(result[half]["x_validation"]) == len(result[half]["y_validation"]) == 0


@pytest.mark.parametrize("classes", [[9, 5, 7], ["jay", "fox", "hen"], ["jay", 5, "hen"]])
def test_labels_are_numbered_in_the_order_given(halves, tiny_dataset, classes):
    target = halves(target_classes=classes)["target"]
    assert target["class_names"].tolist() == ["jay", "fox", "hen"]
    for part in ("train", "test"):
        old = tiny_dataset[f"y_{part}"][rows_of(target[f"x_{part}"], tiny_dataset[f"x_{part}"])]
        assert np.array_equal(np.array([9, 5, 7])[target[f"y_{part}"]], old)
        assert sorted(set(old)) == [5, 7, 9]


def test_images_and_labels_keep_their_types(halves):
    for arrays in halves(validation_fraction=0.1, target_per_class=3).values():
        assert {arrays[f"x_{part}"].dtype for part in prepare.PARTS} == {np.dtype(np.uint8)}
        assert {arrays[f"y_{part}"].dtype for part in prepare.PARTS} == {np.dtype(np.int64)}
        assert {arrays[f"x_{part}"].shape[1:] for part in prepare.PARTS} == {(8, 8, 3)}


def test_order_is_the_datasets_where_all_images_are_kept(halves, tiny_dataset):
    source = halves(validation_fraction=0.25)["source"]
    for part in ("train", "validation"):
        rows = rows_of(source[f"x_{part}"], tiny_dataset["x_train"])
        assert rows == sorted(rows)


@pytest.mark.parametrize(
    ("source", "target", "problem"),
    [
        ([0, 1], ["bee", 7], "'bee'"),
        (["ant", "bee"], [1, 7], "'bee'"),
        ([0, 1, "bee"], [7, 8], "each class once"),
        ([0, 10], [7, 8], "10, expected a number below 10"),
        ([0, 1], ["fox", "wolf"], "'wolf'"),
    ],
)
def test_classes_that_do_not_fit_are_refused_in_one_line(halves, source, target, problem):
    with pytest.raises(UserError, match=problem) as error:
        halves(source_classes=source, target_classes=target)
    assert "\n" not in str(error.value)
    assert "params.yaml: data." in str(error.value)


def test_unknown_class_is_answered_with_the_known_ones(halves, tiny_dataset):
    with pytest.raises(UserError) as error:
        halves(source_classes=["ant", "unicorn"])
    assert all(name in str(error.value) for name in tiny_dataset["class_names"])
    assert "data.source_classes" in str(error.value)


def test_validation_images_are_stratified_and_taken_from_the_training_images(halves, tiny_dataset):
    without, with_some = halves(), halves(validation_fraction=0.25)
    for half in ("source", "target"):
        arrays = with_some[half]
        assert np.bincount(arrays["y_validation"]).tolist() == [PER_CLASS // 4] * 5
        assert np.bincount(arrays["y_train"]).tolist() == [PER_CLASS - PER_CLASS // 4] * 5
        train, validation = (rows_of(arrays[f"x_{p}"], tiny_dataset["x_train"]) for p in ("train", "validation"))
        assert sorted(train + validation) == sorted(rows_of(without[half]["x_train"], tiny_dataset["x_train"]))
        names = arrays["class_names"][arrays["y_validation"]]
        assert names.tolist() == tiny_dataset["class_names"][tiny_dataset["y_train"][validation]].tolist()
        for key in ("x_test", "y_test"):
            assert np.array_equal(arrays[key], without[half][key])


def test_validation_images_do_not_depend_on_the_subset(halves):
    everything = halves(validation_fraction=0.2)["source"]
    few = halves(validation_fraction=0.2, source_per_class=2)["source"]
    for key in ("x_validation", "y_validation"):
        assert np.array_equal(everything[key], few[key])
    assert len(few["y_train"]) == 10


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_a_smaller_subset_is_the_beginning_of_a_larger_one(halves, fraction):
    small, large, all_images = (
        halves(target_per_class=per_class, validation_fraction=fraction)["target"] for per_class in (3, 11, None)
    )
    for key in ("x_train", "y_train"):
        assert np.array_equal(small[key], large[key][: 3 * 5])
    assert np.bincount(small["y_train"]).tolist() == [3] * 5
    assert np.bincount(large["y_train"]).tolist() == [11] * 5
    assert set(rows_of(large["x_train"], all_images["x_train"])) < set(range(len(all_images["x_train"])))


def test_subset_is_of_the_half_that_was_asked(halves):
    result = halves(source_per_class=4)
    assert [len(result[half]["y_train"]) for half in ("source", "target")] == [4 * 5, PER_CLASS * 5]


def test_seed_chooses_the_images(halves, params):
    def chosen(seed):
        params(seed=seed)
        arrays = halves(source_per_class=5, validation_fraction=0.2)["source"]
        return arrays["x_train"].tobytes(), arrays["x_validation"].tobytes()

    first, again, other = chosen(1), chosen(1), chosen(2)
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source_per_class": PER_CLASS + 1}, "data.source_per_class"),
        ({"target_per_class": PER_CLASS, "validation_fraction": 0.1}, "data.target_per_class"),
        ({"validation_fraction": 0.99}, "data.validation_fraction"),
        ({"validation_fraction": 0.01}, "data.validation_fraction"),
    ],
)
def test_more_images_than_there_are_is_refused_in_one_line(halves, changes, key):
    with pytest.raises(UserError, match=f"{PER_CLASS} training images") as error:
        halves(**changes)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_without_images_is_refused_by_name(halves, tiny_dataset, part):
    keep = tiny_dataset[f"y_{part}"] != 6
    arrays = tiny_dataset | {f"{axis}_{part}": tiny_dataset[f"{axis}_{part}"][keep] for axis in "xy"}
    np.savez("data/raw/tiny.npz", **arrays)
    with pytest.raises(UserError, match="gnu") as error:
        halves()
    assert "\n" not in str(error.value)


def test_grey_images_get_a_channel(halves, tiny_dataset):
    grey = {key: tiny_dataset[key][..., 0] for key in ("x_train", "x_test")}
    np.savez("data/raw/tiny.npz", **(tiny_dataset | grey))
    source = halves()["source"]
    assert source["x_train"].shape == (PER_CLASS * 5, 8, 8, 1)
    assert np.array_equal(source["x_train"][..., 0], grey["x_train"][tiny_dataset["y_train"] < 5])


def test_two_runs_write_equal_files(tiny, params, workspace, capsys):
    params(**{"data.validation_fraction": 0.2, "data.source_per_class": 5})
    files = [workspace / "data/prepared" / f"{half}.npz" for half in ("source", "target")]
    prepare.main()
    first = [file.read_bytes() for file in files]
    prepare.main()
    assert [file.read_bytes() for file in files] == first
    source = read_npz(files[0], (*KEYS, "class_names", "dataset"))
    assert source["dataset"].tolist() == ["tiny"]
    assert len(source["y_train"]) == 25
    assert "tiny: images 8x8x3" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["stages.prepare", "stages.report"])
def test_light_stages_do_not_import_tensorflow(module):
    check = f"import sys, {module}; print({{'tensorflow', 'keras', 'jax', 'torch'}} & set(sys.modules))"
    root = Path(prepare.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", check], cwd=root, text=True).strip() == "set()"
