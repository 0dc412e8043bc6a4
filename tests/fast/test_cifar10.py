"""The official CIFAR-10 archive: read pixel by pixel, refused if it is anything else, and its pickles run no code."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from archives import CLASS_NAMES, IMAGES, LABELS, arrays_of, batch_pickle, call, cifar_archive, refusal
from stages.images.cifar10 import read_cifar10


def refused(folder: Path, content: bytes) -> str:
    return refusal(folder / "a.tar.gz", content, lambda path: read_cifar10(path, CLASS_NAMES))


def test_archive_is_read_pixel_by_pixel(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(cifar_archive())
    dataset = read_cifar10(tmp_path / "a.tar.gz", CLASS_NAMES)
    arrays = [np.concatenate(IMAGES[:5]), np.concatenate(LABELS[:5]), IMAGES[5], LABELS[5]]
    assert all(map(np.array_equal, arrays_of(dataset).values(), arrays))
    assert dataset.class_names == CLASS_NAMES


@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [("posix.system", os.system, ("echo > trap",)), ("numpy.memmap", np.memmap, ("trap", "u1", "w+", 0, 9))],
)
def test_pickle_that_calls_a_function_is_refused_before_the_call(tmp_path, monkeypatch, name, function, arguments):
    monkeypatch.chdir(tmp_path)
    batch = batch_pickle(2, batch_label=call(function, *arguments))
    assert f"refused to load {name}" in refused(tmp_path, cifar_archive(data_batch_3=batch))
    assert not Path("trap").exists()
    pickle.loads(batch, encoding="latin-1")
    assert Path("trap").exists()  # the trap works


def test_archive_of_another_layout_is_refused(tmp_path):
    objects = batch_pickle(2, data=np.zeros((4, 3072), object))
    for content, problem in (
        (b"<html>not found</html>", "not a CIFAR-10 archive: ReadError"),
        (cifar_archive(data_batch_3=None), "not a CIFAR-10 archive: KeyError: 'data_batch_3'"),
        (cifar_archive(data_batch_3=objects), "x_train: was object (20, 32, 32, 3), expected uint8 images"),
    ):
        assert refused(tmp_path, content).startswith(problem)
