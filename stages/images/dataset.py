"""A dataset of images and labels, and the validation of the arrays it is made of."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.shared.arrays import LazyArray
from stages.shared.errors import UserError, short_repr
from stages.shared.npz import Header, read_npz

KEYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CLASSES = 100_000
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # control characters that reverse text


@dataclass(frozen=True)
class Dataset:
    """Images, uint8 (N, H, W, C), and labels, int64 (N,), indices into `class_names`; `notes` say how it was read."""

    name: str
    x_train: LazyArray
    y_train: np.ndarray
    x_test: LazyArray
    y_test: np.ndarray
    class_names: list[str]
    notes: tuple[str, ...] = ()


def read_dataset(path: Path, class_names: list[str] | None = None) -> Dataset:
    """Read ``x_train y_train x_test y_test`` and, if present, ``class_names`` from an ``.npz`` file.

    Images are uint8 (N, H, W, C) or (N, H, W), labels whole numbers (N,) or (N, 1).
    Raises `UserError` with one line that names file and key, with the value found and the value expected.
    """
    arrays = read_npz(
        path, KEYS, ("class_names",), lambda headers: _check_headers(path, headers), mapped=("x_train", "x_test")
    )
    if class_names is not None:
        arrays.setdefault("class_names", np.array(class_names))
    return validate_dataset(path, LazyArray.of(arrays.pop("x_train")), LazyArray.of(arrays.pop("x_test")), arrays)


def validate_dataset(
    path: Path, x_train: LazyArray, x_test: LazyArray, arrays: dict[str, np.ndarray], notes: tuple[str, ...] = ()
) -> Dataset:
    """Validate the content of the file or folder `path`; `arrays` holds labels and class names, see `read_dataset`."""
    headers = {key: Header(array.shape, array.dtype) for key, array in arrays.items()}
    headers |= {key: Header(x.shape, x.dtype) for key, x in (("x_train", x_train), ("x_test", x_test))}
    _check_headers(path, headers)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(f"{path}: x_test: images {x_test.shape[1:]}, expected {x_train.shape[1:]} as in x_train")
    for key in ("y_train", "y_test"):
        lowest, highest = arrays[key].min(), arrays[key].max()
        if lowest < 0 or highest > np.iinfo(np.int64).max:
            raise UserError(f"{path}: {key}: labels {lowest} to {highest}, expected 0 or more")
    y_train, y_test = (arrays[key].reshape(-1).astype(np.int64) for key in ("y_train", "y_test"))
    names = _class_names(path, arrays.get("class_names"), int(max(y_train.max(), y_test.max())))
    return Dataset(path.stem, x_train, y_train, x_test, y_test, names, notes)


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
    except (ValueError, SystemError) as error:  # SystemError: numbers that are not characters
        problem = error if isinstance(error, ValueError) else "different texts (classes,)"
        shown = short_repr(names.tolist()) if isinstance(error, ValueError) else f"{names.dtype} {names.shape}"
        raise UserError(f"{path}: class_names: was {shown}, expected {problem}") from None
    if largest >= len(texts):
        raise UserError(f"{path}: label {largest}, expected less than the number of class_names, {len(texts)}")
    return texts


def check_class_names(names: list[str]) -> list[str]:
    """Return class names that tables, pages and terminals can show; raises `ValueError` that says what is expected."""
    if len(set(names) - {""}) < len(names):
        raise ValueError("different texts")
    for name in names:
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDIRECTIONAL for c in name):
            raise ValueError(f"no control characters as in {short_repr(name)}")
        if re.search(r"<[a-zA-Z/!?]", name):  # `dvc plots` does not escape it
            raise ValueError(f"no tag as in {short_repr(name)}: it would become part of the page of `dvc plots`")
    return names
