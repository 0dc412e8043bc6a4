"""Find and read the datasets that ``data.path`` and ``data.target_path`` name."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from stages.download import Pointer, fetch
from stages.images.cifar10 import read_cifar10
from stages.images.classes import check_class_names, choose_classes
from stages.images.dataset import Dataset, read_dataset, resize_dataset, to_rgb
from stages.images.folders import read_folder
from stages.settings import Data
from stages.shared.errors import SettingError, UserError
from stages.shared.inputs import refuse_untracked
from stages.shared.tasks import Side
from stages.shared.yaml_files import read_yaml

SIDES: tuple[Side, ...] = get_args(Side)
EXPECTED = "arrays (.npz), a folder of pictures, or a pointer (.yaml): data.path"
READERS: dict[str, Callable[[Path, list[str]], Dataset]] = {"cifar10-python": read_cifar10, "npz": read_dataset}


class DatasetPointer(Pointer):
    """A dataset's archive, its format, and its classes."""

    example: ClassVar = "data/raw/cifar10.yaml"
    keras_folder: ClassVar = "datasets"
    alternative: ClassVar = "`dvc exp run -S data.path=data/raw/mnist.npz` runs on the built-in images of MNIST."
    format: Literal["cifar10-python", "npz"]
    class_names: Annotated[list[str], AfterValidator(check_class_names)] = Field(min_length=2)


def is_same(path: Path) -> bool:
    """Return whether ``data.target_path`` stands for ``data.path``; DVC has no null dependency."""
    return path.suffix == ".yaml" and read_yaml(path, EXPECTED) == {"same": "data.path"}


def dataset_paths(data: Data) -> tuple[Path, Path]:
    """Return the paths of the source's and the target's dataset."""
    path, target_path = Path(data.path), Path(data.target_path)
    return path, path if is_same(target_path) else target_path


def check_settings(data: Data) -> None:
    """Raise `SettingError` for an invalid pattern or, of a pointer, invalid classes, before anything is downloaded."""
    try:
        groups = re.compile(data.groups or "()").groups
    except re.error:
        groups = 0
    if groups != 1:
        raise SettingError("data.groups", data.groups, "a pattern with one group, such as (patient[0-9]+)")
    one_dataset = is_same(Path(data.target_path))
    for side, path in zip(SIDES, dataset_paths(data), strict=True):
        if pointer := _read_pointer(path):
            choose_classes(data, side, pointer.class_names, one_dataset)


def _read_pointer(path: Path) -> DatasetPointer | None:
    return DatasetPointer.read(path, EXPECTED) if path.suffix in (".yaml", ".yml") else None


def find(path: Path) -> tuple[DatasetPointer | None, Path]:
    """Return the pointer at `path`, if it is one, and the dataset's file or folder, downloaded if necessary.

    Raises `UserError` (`DownloadError` if the archive cannot be downloaded) with what was wrong and what was expected.
    """
    if pointer := _read_pointer(path):
        return pointer, fetch(path, pointer)
    if path.suffix == ".csv":
        raise UserError(f"{path}: expected the folder of this list and its pictures, {path.parent}: DVC tracks that")
    if not path.exists() and path.with_name(f"{path.name}.dvc").exists():
        raise UserError(f"{path}: not in this clone; `dvc pull` gets it from where it was pushed to")
    if not (path.is_file() or path.is_dir()):
        problem = "not a regular file" if path.exists() else "No such file or directory"
        shown = path if str(path) == str(path).strip() else repr(str(path))  # a space before it cannot be seen
        raise UserError(f"{shown}: {problem}, expected {EXPECTED}")
    refuse_untracked(path)
    return None, path


def load(path: Path, data: Data, sides: tuple[Side, ...], size: tuple[int, int] | None = None) -> Dataset:
    """Read the dataset of one or both tasks, and resize its images to `size` (H, W) if given.

    Of a folder, only pictures of the chosen classes are read. Raises as `find` does, and for invalid content of the
    file or folder.
    """
    pointer, found = find(path)
    if found.is_dir():
        return read_folder(found, size, data, sides)
    if pointer:
        dataset = replace(READERS[pointer.format](found, pointer.class_names), name=pointer.name)
    else:
        dataset = read_dataset(found)
    return resize_dataset(path, dataset, size, data.fit) if size else dataset


def load_datasets(data: Data) -> tuple[Dataset, Dataset]:
    """Read the source's and the target's dataset, which may be the same object, with images of one size.

    The size is ``data.image_size``, or that of the source's images. Grey images become RGB if the others are. Raises
    as `load` does.
    """
    path, target_path, side = Path(data.path), Path(data.target_path), data.image_size
    size = (side, side) if side else None
    if is_same(target_path):
        dataset = load(path, data, SIDES, size)
        return dataset, dataset
    source = load(path, data, ("source",), size)
    height, width, channels = source.splits["train"].x.shape[1:]
    target = load(target_path, data, ("target",), (height, width))
    if (others := target.splits["train"].x.shape[3]) == channels:
        return source, target
    if {channels, others} != {1, 3}:
        raise UserError(f"{target_path}: {others} channels, expected {channels}, as {path} has, or grey and RGB")
    return to_rgb(source), to_rgb(target)
