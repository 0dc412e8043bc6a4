"""Dataset files for tests: ``.npz`` files, valid or not, and archives like the official cifar-10-python.tar.gz."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.images.dataset import Dataset, read_dataset
from stages.shared.errors import UserError

TRAIN, TEST, CLASSES = 6, 4, 3
HEADER = {"descr": "|u1", "fortran_order": False, "shape": (TRAIN, 5, 4, 3)}  # of x_train
RNG = np.random.default_rng(3)
ARRAYS = {  # height, width and channels differ, as do all images
    "x_train": RNG.integers(0, 256, HEADER["shape"], dtype=np.uint8),
    "y_train": np.arange(TRAIN) % CLASSES,
    "x_test": RNG.integers(0, 256, (TEST, *HEADER["shape"][1:]), dtype=np.uint8),
    "y_test": np.arange(TEST) % CLASSES,
    "class_names": np.array(["ant", "bee", "cow"]),
}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


MEMBERS = {key: npy(array) for key, array in ARRAYS.items()}


def npz(compression: int = zipfile.ZIP_STORED, **changes: bytes) -> bytes:
    """Make a dataset's .npz file with some members changed and correct checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, content in (MEMBERS | changes).items():
            archive.writestr(f"{key}.npy", content)
    return buffer.getvalue()


def call(function: Callable, *arguments: object) -> object:
    """Make an object that calls the function when it is unpickled."""
    return type("Call", (), {"__reduce__": lambda self: (function, arguments)})()


def arrays_of(dataset: Dataset) -> dict[str, object]:
    """Return the images and labels of a dataset by the names of their arrays."""
    return {f"{axis}_{name}": getattr(part, axis) for name, part in dataset.splits.items() for axis in "xy"}


def refusal(path: Path, content: bytes | None = None, read: Callable[[Path], object] = read_dataset) -> str:
    """Return the one-line error for a file, without its path; `content`, if given, is written to it first."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    return text.removeprefix(f"{path}: ")


CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
IMAGES = RNG.integers(0, 256, (len(BATCHES), 4, 32, 32, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, (len(BATCHES), 4))


def _save_as_python_2(pickler: pickle._Pickler, value: bytes | str) -> None:
    content = value if isinstance(value, bytes) else value.encode("latin-1")
    pickler.write(b"T" + len(content).to_bytes(4, "little") + content)


class _Python2Pickler(pickle._Pickler):
    """Writes texts as Python 2 did when the official batches were pickled."""

    dispatch = pickle._Pickler.dispatch | {bytes: _save_as_python_2, str: _save_as_python_2}


def batch_pickle(number: int, **changes: object) -> bytes:
    """Pickle a batch with some entries changed; an image is stored as all red values, then green, then blue."""
    rows = IMAGES[number].transpose(0, 3, 1, 2).reshape(len(IMAGES[number]), -1)
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump({"labels": LABELS[number].tolist(), "data": rows} | changes)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_archive(**changes: bytes | None) -> bytes:
    """Make the archive; `changes` replace members, None leaves one out."""
    contents = {BATCHES[i]: batch_pickle(i) for i in (3, 5, 0, 4, 2, 1)}  # the official order is arbitrary, too
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, content in (contents | {"readme.html": b""} | changes).items():
            if content is not None:
                info = tarfile.TarInfo(f"cifar-10-batches-py/{member}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
