"""The official ``cifar-10-python.tar.gz``, read without running code from it."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stages.images.dataset import Dataset, Images, checked_dataset
from stages.shared.errors import UserError, one_line

LARGEST_BATCH = 32_000_000  # bytes; 10,000 images with labels and file names have 31 million
LARGEST_CONTENT = 200_000_000  # bytes of all files
PIXELS = 3 * 32 * 32


class _Stand:
    """Stands in for an array or a type of numpy's while a batch is unpickled; numpy itself builds nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def rows(self) -> np.ndarray:
        """The array that this stands for, uint8 (N, 3072); raises `ValueError` if it is another one."""
        _, shape, dtype, fortran, content = self.state
        if dtype.arguments[0] not in (b"u1", "u1") or fortran or len(shape) != 2 or shape[1] != PIXELS:
            raise ValueError(f"data of another type or shape, expected uint8 (N, {PIXELS})")
        return np.frombuffer(content, np.uint8).reshape(shape)


class _BatchUnpickler(pickle._Unpickler):
    """Unpickles lists, numbers, text and stand-ins for arrays, and refuses every other name.

    In Python, whose memo is a dictionary: that of the C version takes as much memory as a pickle asks for, and so does
    the opcode for a bytearray.
    """

    dispatch: ClassVar = {k: load for k, load in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")):
            return _Stand
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


class _BoundedGzip(gzip.GzipFile):
    """Unpacks, and ends in an error after `LARGEST_CONTENT` bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > LARGEST_CONTENT:
            raise ValueError(f"unpacks to more than {LARGEST_CONTENT} bytes")
        return super().read(size)


def _batch(name: str, file: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of one batch, uint8 (N, 3072), and labels, uint8 (N,)."""
    if size > LARGEST_BATCH:
        raise ValueError(f"{name}: {size} bytes, expected at most {LARGEST_BATCH}")
    batch = _BatchUnpickler(io.BytesIO(file.read()), encoding="bytes").load()
    labels = batch[b"labels"]
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise ValueError(f"{name}: labels are not a list of numbers below 256")
    return batch[b"data"].rows(), np.array(labels, np.uint8)


def read_cifar10(archive: Path, class_names: list[str]) -> Dataset:
    """Read the archive, whose batches are pickles; raises `UserError` if it is not laid out as documented.

    An image is a row of 3072 bytes: 1024 red, 1024 green, 1024 blue, each row by row
    (https://www.cs.toronto.edu/~kriz/cifar.html).
    """
    batches = {}
    try:
        with _BoundedGzip(archive) as content, tarfile.open(fileobj=content, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member)
                if file and (name.startswith("data_batch_") or name == "test_batch"):
                    batches[name] = _batch(name, file, member.size)
        arrays, images = {"class_names": np.array(class_names)}, {}
        for part, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
            rows = np.concatenate([batches[name][0] for name in names])
            images[part] = Images.of(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            arrays[f"y_{part}"] = np.concatenate([batches[name][1] for name in names])
    except Exception as error:  # damaged archives and pickles raise nearly anything
        raise UserError(f"{archive}: not a CIFAR-10 archive: {type(error).__name__}: {one_line(error)}") from None
    return checked_dataset(archive, images["train"], images["test"], arrays)
