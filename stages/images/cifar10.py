"""Read the official ``cifar-10-python.tar.gz`` without running code from its pickles."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from stages.images.dataset import Dataset, validate_arrays
from stages.shared.errors import UserError, one_line

ALLOWED = ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct")


class _Unpickler(pickle.Unpickler):
    """Unpickle arrays, lists, numbers and texts; refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_cifar10(archive: Path, class_names: list[str]) -> Dataset:
    """Read the archive; raises `UserError` if it is not laid out as documented.

    An image is a row of 3072 bytes: 1024 red, 1024 green, 1024 blue, each row by row
    (https://www.cs.toronto.edu/~kriz/cifar.html).
    """
    try:
        batches = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                name, file = Path(member.name).name, tar.extractfile(member)
                if file and (name.startswith("data_batch_") or name == "test_batch"):
                    batches[name] = _Unpickler(file, encoding="bytes").load()
        arrays: dict[str, np.ndarray] = {"class_names": np.array(class_names)}
        for split, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
            rows = np.concatenate([batches[name][b"data"] for name in names]).reshape(-1, 3, 32, 32)
            arrays[f"x_{split}"] = rows.transpose(0, 2, 3, 1)
            arrays[f"y_{split}"] = np.concatenate([batches[name][b"labels"] for name in names])
    except Exception as error:  # damaged archives and pickles raise nearly anything
        raise UserError(f"{archive}: not a CIFAR-10 archive: {type(error).__name__}: {one_line(error)}") from None
    return validate_arrays(archive, arrays)
