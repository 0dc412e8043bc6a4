"""A dataset of images and labels, and the validation of the arrays it is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.images.classes import check_class_names
from stages.images.pictures import HOW, resize
from stages.settings import Fit
from stages.shared.arrays import LazyArray
from stages.shared.errors import UserError, short_repr
from stages.shared.npz import Header, read_npz
from stages.shared.tasks import Split

KEYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Dataset:
    """Images and labels by split: train, and validation and test where the dataset has them.

    `notes` say how it was read. `groups`: for some images, by name, the patient, video or burst they belong to.
    `resized`: see `shared.tasks.Task`.
    """

    name: str
    class_names: list[str]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    resized: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1, 3), np.uint8))

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int], note: str) -> "Dataset":
        """Apply a function to all images, which makes images of `shape`, (H, W, C)."""
        splits = {name: replace(split, x=split.x.map(function, shape)) for name, split in self.splits.items()}
        return replace(self, splits=splits, notes=(*self.notes, note))


def read_dataset(path: Path, class_names: list[str] | None = None) -> Dataset:
    """Read ``x_train y_train x_test y_test`` and, if present, ``class_names`` from an ``.npz`` file.

    Images are uint8 (N, H, W, C) or (N, H, W), labels whole numbers (N,) or (N, 1).
    Raises `UserError` with one line that names file and key, with the value found and the value expected.
    """
    arrays: dict[str, Any] = read_npz(
        path, KEYS, ("class_names",), lambda headers: _check_headers(path, headers), mapped=("x_train", "x_test")
    )
    if class_names is not None:
        arrays.setdefault("class_names", np.array(class_names))
    return validate_arrays(path, arrays)


def validate_arrays(path: Path, arrays: dict[str, Any]) -> Dataset:
    """Validate the arrays of the file `path`, see `read_dataset`."""
    _check_headers(path, {key: Header(array.shape, array.dtype) for key, array in arrays.items()})
    splits = {}
    for name in ("train", "test"):
        x, y = LazyArray.of(arrays[f"x_{name}"]), arrays[f"y_{name}"].reshape(-1)
        if y.min() < 0 or y.max() > np.iinfo(np.int64).max:
            raise UserError(f"{path}: y_{name}: labels {y.min()} to {y.max()}, expected 0 or more")
        splits[name] = Split(x, y.astype(np.int64), np.array([f"x_{name}[{row}]" for row in range(len(y))]))
    shape, other = (split.x.shape[1:] for split in splits.values())
    if shape != other:
        raise UserError(f"{path}: x_test: images {other}, expected {shape} as in x_train")
    largest = max(int(split.y.max()) for split in splits.values())
    return Dataset(path.stem, _class_names(path, arrays.get("class_names"), largest), splits)


def _check_headers(path: Path, headers: dict[str, Header]) -> None:
    """Check types and shapes, which takes no memory."""
    for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
        shape, dtype, _ = headers[x]
        if dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
            raise UserError(f"{path}: {x}: was {dtype} {shape}, expected uint8 images (N, H, W, C) or (N, H, W)")
        if len(shape) == 4 and shape[1] <= 4 < min(shape[2:]):
            raise UserError(f"{path}: {x}: was {shape}, channels first; expected (N, H, W, C): x.transpose(0, 2, 3, 1)")
        images, (shape, dtype, _) = shape[0], headers[y]
        if dtype.kind not in "iu" or shape not in ((images,), (images, 1)):
            raise UserError(f"{path}: {y}: was {dtype} {shape}, expected whole numbers ({images},), one per image")
    shape, dtype, _ = headers.get("class_names", Header((0,), np.dtype(str)))
    if dtype.kind != "U" or len(shape) != 1 or shape[0] > MAX_CLASSES:
        raise UserError(f"{path}: class_names: was {dtype} {shape}, expected different texts (classes,)")


def _class_names(path: Path, names: np.ndarray | None, largest: int) -> list[str]:
    """Return the class names, the label numbers if there are none."""
    if names is None:
        if largest >= MAX_CLASSES:
            raise UserError(f"{path}: labels up to {largest}, expected numbers below {MAX_CLASSES}, or class_names")
        return [str(label) for label in range(largest + 1)]
    try:
        texts = check_class_names(names.tolist())
    except SystemError:
        raise UserError(f"{path}: class_names: numbers that are not characters, expected texts") from None
    except ValueError as error:
        raise UserError(f"{path}: class_names: was {short_repr(names.tolist())}, expected {error}") from None
    if largest >= len(texts):
        raise UserError(f"{path}: label {largest}, expected less than the number of class_names, {len(texts)}")
    return texts


def resize_dataset(path: Path, dataset: Dataset, size: tuple[int, int], fit: Fit) -> Dataset:
    """Resize all images to (H, W); raises `UserError` unless they have 1, 3 or 4 channels."""
    _, *old, channels = dataset.splits["train"].x.shape
    if tuple(old) == size:
        return dataset
    if channels not in (1, 3, 4):
        raise UserError(f"{path}: images of {channels} channels, expected 1, 3 or 4 to resize them: data.image_size")

    def resize_all(images: np.ndarray) -> np.ndarray:
        pictures = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in images)
        return np.stack([np.asarray(resize(picture, size, fit)).reshape(*size, channels) for picture in pictures])

    note = f"resized from {old[1]}x{old[0]} to {size[1]}x{size[0]} pixels: {HOW[fit]}"
    return dataset.map(resize_all, (*size, channels), note)


def to_rgb(dataset: Dataset) -> Dataset:
    """Convert grey images to RGB."""
    height, width, channels = dataset.splits["train"].x.shape[1:]
    if channels == 3:
        return dataset
    return dataset.map(lambda images: images.repeat(3, axis=3), (height, width, 3), "grey made RGB")
