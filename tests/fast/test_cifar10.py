"""The official archive: read pixel by pixel, refused if it is anything else, and no code is run from its pickles."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from archives import BATCHES, CLASS_NAMES, Call, batch_pickle, cifar_archive, images_and_labels, refusal
from stages.images.cifar10 import LARGEST_BATCH, LARGEST_CONTENT, read_cifar10

GOOD = cifar_archive()
BATCH = "data_batch_3"


@pytest.fixture
def refused(tmp_path):
    return lambda content: refusal(tmp_path / "a.tar.gz", content, lambda path: read_cifar10(path, CLASS_NAMES))


def test_archive_is_read_pixel_by_pixel(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(GOOD)
    dataset = read_cifar10(tmp_path / "a.tar.gz", CLASS_NAMES)
    train, (x_test, y_test) = [images_and_labels(batch) for batch in BATCHES[:-1]], images_and_labels("test_batch")
    assert np.array_equal(dataset.x_train, np.concatenate([x for x, _ in train]))
    assert np.array_equal(dataset.x_test, x_test)
    assert dataset.y_train.tolist() == [label for _, y in train for label in y]
    assert dataset.y_test.tolist() == y_test
    assert dataset.class_names == CLASS_NAMES


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("posix.system", lambda trap: Call(os.system, f'echo > "{trap}"')),
        ("__builtin__.eval", lambda trap: Call(eval, f'open("{trap}", "w")')),
        ("numpy.memmap", lambda trap: Call(np.memmap, str(trap), "u1", "w+", 0, 9)),
    ],
)
def test_batch_that_would_act_is_refused_and_does_not(tmp_path, refused, name, call):
    trap = tmp_path / "sprung"
    batch = batch_pickle(BATCH, batch_label=call(trap))
    assert f"refused to load {name}" in refused(cifar_archive(data_batch_3=batch))
    assert not trap.exists()
    pickle.loads(batch, encoding="latin-1")
    assert trap.exists()  # the trap works


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>not found</html>", "not a CIFAR-10 archive: BadGzipFile"),
        (GOOD[: len(GOOD) // 2], "not a CIFAR-10 archive: "),
        (cifar_archive(data_batch_3=None), "not a CIFAR-10 archive: KeyError: 'data_batch_3'"),
        (cifar_archive(data_batch_3=batch_pickle(BATCH)[:-500]), "not a CIFAR-10 archive: "),
        ({"data": np.zeros((4, 1024), np.uint8)}, "not a CIFAR-10 archive: ValueError: data of another type or shape"),
        ({"data": np.zeros((4, 3072), object)}, "not a CIFAR-10 archive: ValueError: data of another type or shape"),
        ({"data": np.zeros((4, 3072), ">f8")}, "not a CIFAR-10 archive: ValueError: data of another type or shape"),
        ({"labels": [[1]] * 4}, "not a CIFAR-10 archive: ValueError: data_batch_3: labels are not a list of"),
        ({"labels": [10] * 4}, "label 10, expected less than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_archive_that_is_laid_out_otherwise_is_refused(refused, content, problem):
    if isinstance(content, dict):
        content = cifar_archive(data_batch_3=batch_pickle(BATCH, **content))
    assert refused(content).startswith(problem)


HUGE_ARRAY = b"\x80\x05\x96\x00\x00\x00\xc0\x00\x00\x00\x00."  # a bytearray of 3 GB
HUGE_MEMO = b"\x80\x02K\x01r\xff\xff\xff\x7f."  # puts 1 at place 2**31 - 1 of the memo


@pytest.mark.parametrize(
    ("member", "content", "problem"),
    [
        (BATCH, HUGE_MEMO, "TypeError"),
        (BATCH, HUGE_ARRAY, "KeyError"),
        (BATCH, bytes(LARGEST_BATCH + 1), "ValueError: data_batch_3: 32000001 bytes, expected at most"),
        ("readme.html", bytes(LARGEST_CONTENT), "ValueError: unpacks to more than"),
    ],
)
def test_memory_stays_small_while_a_bomb_is_refused(refused, member, content, problem):
    bomb = cifar_archive(**{member: content})
    tracemalloc.start()
    try:
        assert f"not a CIFAR-10 archive: {problem}" in refused(bomb)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
