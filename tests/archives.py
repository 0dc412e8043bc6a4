"""Files that datasets come in: ``.npz``, sound or not, and archives laid out as the official cifar-10-python.tar.gz."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from counting import counted
from stages.images.dataset import read_dataset
from stages.shared.errors import UserError

TRAIN, TEST, CLASSES = 6, 4, 3
HEADER = {"descr": "|u1", "fortran_order": False, "shape": (TRAIN, 5, 4, 3)}  # of x_train

RNG = np.random.default_rng(3)
ARRAYS = {  # a dataset in which height, width and channels differ, as do all images
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


def npy_saying(header: dict | str, data: bytes = b"") -> bytes:
    """A .npy file whose header need not be true."""
    text = f"{header}\n".encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npz(compression: int = zipfile.ZIP_STORED, **changes: bytes) -> bytes:
    """A dataset's .npz file, some members changed; the checksums fit whatever the members hold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, content in (MEMBERS | changes).items():
            archive.writestr(f"{key}.npy", content)
    return buffer.getvalue()


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object):
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


def refusal(path: Path, content: bytes | None = None, read: Callable[[Path], object] = read_dataset) -> str:
    """The one line that refuses a file, of this content if it is given, without the path that the line starts with."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    counted["bad dataset files refused"] += 1
    return text.removeprefix(f"{path}: ")


CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
IMAGES = 4  # per batch


class _Python2Pickler(pickle._Pickler):
    """Writes texts, and the names of numpy's functions, as Python 2 did when the official batches were pickled."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, value: bytes | str) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin-1")
        size = len(content)
        self.write((b"U" + bytes([size]) if size < 256 else b"T" + size.to_bytes(4, "little")) + content)

    dispatch[bytes] = dispatch[str] = save_text


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def images_and_labels(batch: str) -> tuple[np.ndarray, list[int]]:
    """What is to be read from a batch: images uint8 (IMAGES, 32, 32, 3), and their labels."""
    rng = np.random.default_rng(BATCHES.index(batch))
    return rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, IMAGES).tolist()


def batch_pickle(batch: str, **changes: object) -> bytes:
    """One batch, some entries changed; of each image all red values are stored, then all green, then all blue."""
    images, labels = images_and_labels(batch)
    rows = np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])
    return python2_pickle({"batch_label": f"training {batch} of 5", "labels": labels, "data": rows} | changes)


def cifar_archive(**changes: bytes | None) -> bytes:
    """The archive's bytes; `changes` replace members, None leaves one out."""
    contents = {batch: batch_pickle(batch) for batch in reversed(BATCHES)}  # the official one has no order, either
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, content in (contents | {"batches.meta": b"", "readme.html": b""} | changes).items():
            if content is not None:
                info = tarfile.TarInfo(f"cifar-10-batches-py/{member}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
