"""The official ``cifar-10-python.tar.gz``, read without running code from it."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from stages.images.dataset import Dataset, checked_dataset
from stages.shared.errors import UserError, one_line


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles lists, numbers, text and numpy arrays, and refuses every other name."""

    _allowed: dict[str, Any] = {  # noqa: RUF012
        "_reconstruct": np.ndarray((0,)).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray") and name in self._allowed:
            return self._allowed[name]
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def read_cifar10(archive: Path, class_names: list[str]) -> Dataset:
    """Read the archive, whose batches are pickles; raises `UserError` if it is not laid out as documented.

    An image is a row of 3072 bytes: 1024 red, 1024 green, 1024 blue, each row by row
    (https://www.cs.toronto.edu/~kriz/cifar.html).
    """
    batches = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member)
                if file and (name.startswith("data_batch_") or name == "test_batch"):
                    batches[name] = _ArrayUnpickler(file, encoding="bytes").load()
        arrays = {"class_names": np.array(class_names)}
        for part, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
            rows = np.concatenate([batches[name][b"data"] for name in names])
            arrays[f"x_{part}"] = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            arrays[f"y_{part}"] = np.concatenate([batches[name][b"labels"] for name in names])
    except Exception as error:  # damaged archives and pickles raise nearly anything
        raise UserError(f"{archive}: no CIFAR-10 archive: {type(error).__name__}: {one_line(error)}") from None
    return checked_dataset(archive, arrays)
