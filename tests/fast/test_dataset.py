"""Datasets: what fits is read, anything else is refused in one line that says what was found and what is expected."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from archives import ARRAYS, TEST, TRAIN, refusal
from stages.images.dataset import KEYS, MOST_CLASSES, read_dataset
from stages.images.source import find, load
from stages.settings import Data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dataset.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("dtype", "shape", "order"), [("uint8", (-1,), "C"), (">i8", (-1, 1), "F")])
def test_dataset_is_read_as_it_was_saved(path, save, dtype, shape, order):
    images = {key: np.asarray(ARRAYS[key], order=order) for key in ("x_train", "x_test")}
    labels = {key: ARRAYS[key].astype(dtype).reshape(shape) for key in ("y_train", "y_test")}
    save(path, **ARRAYS | images | labels, note=np.array("further arrays are ignored"))
    name, dataset = load(path, Data(), 1)
    for key in KEYS:
        assert np.array_equal(getattr(dataset, key), ARRAYS[key])
        assert getattr(dataset, key).dtype == (np.uint8 if key[0] == "x" else np.int64)
    assert (name, dataset.class_names) == ("dataset", ["ant", "bee", "cow"])


def test_images_without_channels_get_one_and_classes_without_names_are_called_by_their_numbers(path):
    gray = {key: ARRAYS[key][..., 0] if key[0] == "x" else ARRAYS[key] for key in KEYS}
    np.savez(path, **gray)
    dataset = read_dataset(path)
    for key in ("x_train", "x_test"):
        assert np.array_equal(getattr(dataset, key), gray[key][..., None])
    assert dataset.class_names == ["0", "1", "2"]


def test_missing_array_is_refused_and_the_present_ones_are_named(path):
    np.savez(path, x_train=ARRAYS["x_train"], y_train=ARRAYS["y_train"], images=ARRAYS["x_test"])
    assert refusal(path) == (
        "x_test, y_test: missing, expected all of ('x_train', 'y_train', 'x_test', 'y_test'); there are "
        "['images', 'x_train', 'y_train']"
    )


def test_message_names_only_some_of_many_arrays(path):
    np.savez(path, **{f"array {i}": np.zeros(1) for i in range(1000)})
    assert len(refusal(path)) < 500


@pytest.mark.parametrize(
    ("key", "array", "problem"),
    [
        ("x_train", ARRAYS["x_train"] / 255, "x_train: was float64 (6, 5, 4, 3), expected uint8"),
        ("x_train", ARRAYS["x_train"].reshape(TRAIN, -1), "x_train: was uint8 (6, 60), expected uint8 images (N, H"),
        ("x_test", ARRAYS["x_test"][..., 0], "x_test: images (5, 4, 1), expected (5, 4, 3) as in x_train"),
        ("y_train", ARRAYS["y_train"][:-1], "y_train: was int64 (5,), expected whole numbers (6,)"),
        ("y_train", ARRAYS["y_train"] - 1, "y_train: labels -1 to 1, expected 0 or more"),
        ("y_test", np.full(TEST, 2**64 - 1, dtype=np.uint64), "y_test: labels 18446744073709551615 to "),
        ("y_test", ARRAYS["y_test"] + 1, "label 3, expected less than the number of class_names, 3"),
        ("class_names", np.array(["ant", "bee", "ant"]), "class_names: was ['ant', 'bee', 'ant'], expected different"),
        ("class_names", np.array([0xD800, 98, 99], "<u4").view("<U1"), r"class_names: was '\ud800', expected"),
        ("class_names", np.array(["a", "\x1b[31m", "c"]), r"class_names: was '\x1b[31m', expected no control char"),
        ("class_names", np.array(["a", "b\n", "c"]), r"class_names: was 'b\n', expected no control characters"),
        ("class_names", np.array(["a", "\u202eb", "c"]), r"class_names: was '\u202eb', expected no control characters"),
        ("class_names", np.array(["a", "</script>", "c"]), "class_names: was '</script>', expected no tag: it would"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_array_that_does_not_fit_is_refused(path, key, array, problem):
    np.savez(path, **ARRAYS | {key: array})
    assert refusal(path).startswith(problem)


def test_huge_label_without_class_names_is_refused(path):
    np.savez(path, **{key: ARRAYS[key] for key in KEYS} | {"y_test": np.arange(TEST) + 2**40})
    assert refusal(path).startswith(f"labels up to {2**40 + 3}, expected numbers below {MOST_CLASSES}")


def test_images_with_channels_first_are_refused_with_what_turns_them(path):
    x = {"x_train": np.zeros((TRAIN, 3, 6, 5), np.uint8), "x_test": np.zeros((TEST, 3, 6, 5), np.uint8)}
    np.savez(path, **ARRAYS | x)
    advice = "x_train: was (6, 3, 6, 5), channels first; expected (N, H, W, C): x.transpose(0, 2, 3, 1)"
    assert refusal(path) == advice
    np.savez(path, **ARRAYS | {key: array.transpose(0, 2, 3, 1) for key, array in x.items()})
    assert read_dataset(path).x_train.shape == (TRAIN, 6, 5, 3)


def test_path_that_is_no_file_is_refused_with_what_to_do(tmp_path, path):
    missing = "No such file or directory, expected a pointer (.yaml), arrays (.npz) or a folder of pictures: data.path"
    assert refusal(tmp_path / "none.yaml", read=find) == missing
    os.mkfifo(tmp_path / "fifo.npz")
    for special in (tmp_path / "fifo.npz", Path("/dev/zero")):
        assert refusal(special, read=find).startswith("not a regular file, expected arrays")
    (tmp_path / "fifo.yaml").symlink_to("/dev/zero")
    assert refusal(tmp_path / "fifo.yaml", read=find).startswith("not a regular file, expected a pointer")
    path.with_name("dataset.npz.dvc").touch()
    assert refusal(path, read=find).startswith("not in this clone; `dvc pull` gets it")


def test_file_that_an_experiment_would_commit_is_refused(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    for name in ("untracked.npz", "tracked.npz", "ignored.npz", "../outside.npz"):
        np.savez(name, **ARRAYS)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "tracked.npz"], check=True)
    Path(".gitignore").write_text("/ignored.npz\n")  # as `dvc add` does
    assert "would put it into Git: `dvc add untracked.npz`, or `git" in refusal(Path("untracked.npz"), read=find)
    for name in ("tracked.npz", "ignored.npz", "../outside.npz"):
        load(Path(name), Data(), 1)
