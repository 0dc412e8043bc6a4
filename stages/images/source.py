"""Find and read the dataset that ``data.path`` names."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from stages.images.cifar10 import read_cifar10
from stages.images.dataset import Dataset, read_dataset
from stages.images.pointer import Pointer, fetch
from stages.shared.errors import UserError

READERS: dict[str, Callable[[Path, list[str]], Dataset]] = {"cifar10-python": read_cifar10, "npz": read_dataset}


def find(path: Path) -> tuple[Pointer | None, Path]:
    """The file of a dataset, with its pointer if `path` is one, whose archive is then downloaded unless it is there.

    Raises `UserError` (`DownloadError` if the archive cannot be downloaded) with what was wrong and what was expected.
    """
    if path.suffix in (".yaml", ".yml"):
        return fetch(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected arrays (.npz) or a pointer (.yaml): data.path")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file, expected arrays (.npz) or a pointer (.yaml): data.path")
    if not path.exists() and path.with_name(f"{path.name}.dvc").exists():
        raise UserError(f"{path}: not in this clone; `dvc pull` gets it from where it was pushed to")
    if not path.exists():
        raise UserError(f"{path}: No such file or directory, expected arrays (.npz) or a pointer (.yaml): data.path")
    if _untracked(path):
        raise UserError(f"{path}: not under version control, and an experiment would put it into Git: `dvc add {path}`")
    return None, path


def load(path: Path) -> tuple[str, Dataset]:
    """Read a dataset; returns its name and the dataset. Raises as `find` does, and for what is in the file."""
    pointer, file = find(path)
    if pointer is None:
        return path.stem, read_dataset(file)
    return pointer.name, READERS[pointer.format](file, pointer.class_names)


def _untracked(path: Path) -> bool:
    """Whether Git sees the file but does not have it; `dvc add` makes Git ignore it."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", str(path)]
    try:
        return bool(subprocess.run(command, capture_output=True, check=False).stdout)
    except (OSError, ValueError):  # no Git here, or no file name
        return False
