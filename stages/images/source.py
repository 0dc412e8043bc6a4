"""Find and read the datasets that ``data.path`` and ``data.target_path`` name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stages.images.cifar10 import read_cifar10
from stages.images.dataset import Dataset, read_dataset
from stages.images.pictures import fitted, read_pictures
from stages.images.pointer import Pointer, fetch
from stages.settings import Data, read_yaml
from stages.shared.errors import UserError
from stages.shared.files import refuse_untracked

KINDS = "arrays (.npz), a folder of pictures, or a pointer (.yaml)"
Named = tuple[str, Dataset]
READERS: dict[str, Callable[[Path, list[str]], Dataset]] = {"cifar10-python": read_cifar10, "npz": read_dataset}


def find(path: Path) -> tuple[Pointer | None, Path]:
    """A dataset's file or folder, with its pointer if `path` is one, whose archive is downloaded unless it is there.

    Raises `UserError` (`DownloadError` if the archive cannot be downloaded) with what was wrong and what was expected.
    """
    if path.suffix in (".yaml", ".yml"):
        return fetch(path)
    if path.suffix == ".csv":
        raise UserError(f"{path}: expected the folder of this list and its pictures, {path.parent}: DVC tracks that")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: not a regular file, expected {KINDS}: data.path")
    if not path.exists():
        there = path.with_name(f"{path.name}.dvc").exists()
        wanted = "`dvc pull` gets it from where it was pushed to" if there else f"expected {KINDS}: data.path"
        raise UserError(f"{path}: {'not in this clone' if there else 'No such file or directory'}; {wanted}")
    refuse_untracked(path)
    return None, path


def is_same(path: Path) -> bool:
    """Whether ``data.target_path`` says: that of ``data.path``. DVC can have no null as a dependency."""
    return path.suffix == ".yaml" and read_yaml(path, f"a dataset: {KINDS}") == {"same": "data.path"}


def load(path: Path, data: Data, seed: int, size: tuple[int, int] | None = None) -> Named:
    """Read a dataset, its images brought to `size` (H, W) if given; returns its name and the dataset.

    Raises as `find` does, and for what is in the file or folder.
    """
    pointer, found = find(path)
    if found.is_dir():
        return path.name, read_pictures(found, size, data, seed)
    if pointer is None:
        name, dataset = path.stem, read_dataset(found)
    else:
        name, dataset = pointer.name, READERS[pointer.format](found, pointer.class_names)
    return name, resized(path, dataset, size) if size else dataset


def load_both(data: Data, seed: int) -> tuple[Named, Named]:
    """Read the source's and the target's dataset, which may be the same, and bring their images to one size.

    That is ``data.image_size`` or, if it is null, the size of the source's images. Grey images become RGB where the
    others are. Raises as `load` does.
    """
    path, side = Path(data.path), data.image_size
    source = load(path, data, seed, (side, side) if side else None)
    if is_same(Path(data.target_path)):
        return source, source
    if data.target_path == data.path:
        return source, (source[0], source[1])  # named twice: the halves may share classes
    height, width, channels = source[1].x_train.shape[1:]
    target = load(Path(data.target_path), data, seed, (height, width))
    if (theirs := target[1].x_train.shape[3]) == channels:
        return source, target
    if {channels, theirs} != {1, 3}:
        raise UserError(f"{data.target_path}: {theirs} channels, expected {channels}, as {path} has, or grey and RGB")
    return _rgb(source), _rgb(target)


def resized(path: Path, dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """Images brought to a size (H, W), see `pictures.fitted`; raises `UserError` for odd channels."""
    _, *old, channels = dataset.x_train.shape
    if tuple(old) == size:
        return dataset
    if channels not in (1, 3, 4):
        raise UserError(f"{path}: images of {channels} channels, expected 1, 3 or 4 to resize them: data.image_size")

    def fit(images: np.ndarray) -> np.ndarray:
        pictures = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in images)
        return np.stack([np.asarray(fitted(picture, size)).reshape(*size, channels) for picture in pictures])

    train, test = (x.changed(fit, (*size, channels)) for x in (dataset.x_train, dataset.x_test))
    note = f"resized from {old[1]}x{old[0]} to {size[1]}x{size[0]} pixels: shorter side, then centre cropped"
    return replace(dataset, x_train=train, x_test=test, notes=(*dataset.notes, note))


def _rgb(named: Named) -> Named:
    name, dataset = named
    if dataset.x_train.shape[3] == 3:
        return named
    height, width, _ = dataset.x_train.shape[1:]
    train, test = (
        x.changed(lambda images: np.repeat(images, 3, axis=3), (height, width, 3))
        for x in (dataset.x_train, dataset.x_test)
    )
    return name, replace(dataset, x_train=train, x_test=test, notes=(*dataset.notes, "grey made RGB"))
