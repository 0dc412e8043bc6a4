"""Datasets: valid files are read, others refused in one line with the value found and the value expected."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from archives import ARRAYS, TEST, TRAIN, arrays_of, refusal
from stages.images.dataset import KEYS, MAX_CLASSES, read_dataset
from stages.images.loading import find, load
from stages.settings import Data
from stages.shared.errors import UserError


@pytest.mark.parametrize(("dtype", "shape", "order"), [("uint8", (-1,), "C"), (">i8", (-1, 1), "F")])
def test_dataset_is_read_as_it_was_saved(path, dtype, shape, order):
    images = {key: np.asarray(ARRAYS[key], order=order) for key in ("x_train", "x_test")}
    labels = {key: ARRAYS[key].astype(dtype).reshape(shape) for key in ("y_train", "y_test")}
    np.savez(path, **ARRAYS | images | labels, note=np.array("further arrays are ignored"))
    dataset = load(path, Data(), ("source",))
    for key in KEYS:
        assert np.array_equal(arrays_of(dataset)[key], ARRAYS[key])
        assert arrays_of(dataset)[key].dtype == (np.uint8 if key[0] == "x" else np.int64)
    assert (dataset.name, dataset.class_names) == ("dataset", ["ant", "bee", "cow"])


def test_grey_images_get_one_channel_and_unnamed_classes_their_numbers_as_names(path):
    gray = {key: ARRAYS[key][..., 0] if key[0] == "x" else ARRAYS[key] for key in KEYS}
    np.savez(path, **gray)
    dataset = read_dataset(path)
    for key in ("x_train", "x_test"):
        assert np.array_equal(arrays_of(dataset)[key], gray[key][..., None])
    assert dataset.class_names == ["0", "1", "2"]
    np.savez(path, **gray | {"y_test": gray["y_test"] + 2**40})
    assert refusal(path).startswith(f"labels up to {2**40 + 2}, expected numbers below {MAX_CLASSES}, or class_names")


def test_missing_array_is_refused_and_the_existing_ones_are_listed(path):
    np.savez(path, x_train=ARRAYS["x_train"], y_train=ARRAYS["y_train"], images=ARRAYS["x_test"])
    assert refusal(path) == f"x_test, y_test: missing, expected all of {KEYS}; has ['images', 'x_train', 'y_train']"


@pytest.mark.parametrize(
    ("key", "array", "problem"),
    [
        ("x_train", ARRAYS["x_train"] / 255, "x_train: was float64 (6, 5, 4, 3), expected uint8"),
        ("x_train", np.zeros((TRAIN, 3, 6, 5), "u1"), "x_train: was (6, 3, 6, 5), channels first; expected (N, H"),
        ("x_test", ARRAYS["x_test"][..., 0], "x_test: images (5, 4, 1), expected (5, 4, 3) as in x_train"),
        ("y_train", ARRAYS["y_train"][:-1], "y_train: was int64 (5,), expected whole numbers (6,)"),
        ("y_train", ARRAYS["y_train"] - 1, "y_train: labels -1 to 1, expected 0 or more"),
        ("y_test", np.full(TEST, 2**64 - 1, dtype=np.uint64), "y_test: labels 18446744073709551615 to "),
        ("y_test", ARRAYS["y_test"] + 1, "label 3, expected less than the number of class_names, 3"),
        ("class_names", np.array(["ant", "bee", "ant"]), "class_names: was ['ant', 'bee', 'ant'], expected different"),
    ],
)
def test_invalid_array_is_refused(path, key, array, problem):
    np.savez(path, **ARRAYS | {key: array})
    assert refusal(path).startswith(problem)


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31m", "b\n", "\u202eb", "</script>"])
def test_class_name_with_control_characters_or_tags_is_refused(path, name):
    codes = np.array([[ord(c) for c in text.ljust(9, "\0")] for text in ("ant", name, "cow")], "<u4")
    np.savez(path, **ARRAYS | {"class_names": codes.view("<U9")[:, 0]})
    problem = "no tag" if ">" in name else "no control characters"
    assert refusal(path).startswith(f"class_names: was {['ant', name, 'cow']}, expected {problem} as in {name!r}")


def test_path_without_a_regular_file_is_refused_with_what_was_expected(tmp_path, path):
    expected = "expected arrays (.npz), a folder of pictures, or a pointer (.yaml): data.path"
    assert refusal(tmp_path / "none.yaml", read=find) == f"No such file or directory, {expected}"
    with pytest.raises(UserError, match=r"^' none': No such file"):  # a space that nobody sees
        find(Path(" none"))
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    for special in (tmp_path / "fifo.npz", Path("/dev/zero"), tmp_path / "device.yaml"):
        assert refusal(special, read=find) == f"not a regular file, {expected}"
    path.with_name("dataset.npz.dvc").touch()
    assert refusal(path, read=find).startswith("not in this clone; `dvc pull` gets it")


def test_file_that_an_experiment_would_commit_is_refused(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    for name in ("Käse.npz", "tracked.npz", "ignored.npz", "../outside.npz"):
        np.savez(name, **ARRAYS)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "tracked.npz"], check=True)
    Path(".gitignore").write_text("/ignored.npz\n")  # as `dvc add` does
    advice = "`dvc add 'Käse.npz'`, or `git add 'Käse.npz'` if Git has the others"
    assert refusal(Path("Käse.npz"), read=find).endswith(advice)
    for name in ("tracked.npz", "ignored.npz", "../outside.npz"):
        find(Path(name))
