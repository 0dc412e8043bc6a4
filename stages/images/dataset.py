"""A dataset of images and labels, and the checks that make one of the arrays in a file."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.shared.errors import UserError, shown
from stages.shared.npz import Header, read_npz

KEYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 100_000
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn what follows around


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, H, W, C), 0-255, and labels int64 (N,), indices into `class_names`, in their source's order."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]
    notes: tuple[str, ...] = ()  # on how it was read


def read_dataset(path: Path, class_names: list[str] | None = None) -> Dataset:
    """Read ``x_train y_train x_test y_test`` and, if there, ``class_names`` from an ``.npz`` file.

    Images are uint8 (N, H, W, C) or (N, H, W), labels whole numbers (N,) or (N, 1).
    Raises `UserError` with one line that names file, key, what was found and what is expected.
    """
    arrays = read_npz(path, KEYS, ("class_names",), lambda headers: _check_headers(path, headers))
    if class_names is not None:
        arrays.setdefault("class_names", np.array(class_names))
    return checked_dataset(path, arrays)


def checked_dataset(path: Path, arrays: dict[str, np.ndarray], notes: tuple[str, ...] = ()) -> Dataset:
    """Check arrays from the file or folder `path` and bring them into one shape; see `read_dataset`."""
    _check_headers(path, {key: Header(array.shape, array.dtype) for key, array in arrays.items()})
    x_train, x_test = (x if x.ndim == 4 else x[..., None] for x in (arrays["x_train"], arrays["x_test"]))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(f"{path}: x_test: images {x_test.shape[1:]}, expected {x_train.shape[1:]} as in x_train")
    for key in ("y_train", "y_test"):
        lowest, highest = arrays[key].min(), arrays[key].max()
        if lowest < 0 or highest > np.iinfo(np.int64).max:
            raise UserError(f"{path}: {key}: labels {lowest} to {highest}, expected 0 or more")
    y_train, y_test = (arrays[key].reshape(-1).astype(np.int64) for key in ("y_train", "y_test"))
    names = _class_names(path, arrays.get("class_names"), int(max(y_train.max(), y_test.max())))
    return Dataset(x_train, y_train, x_test, y_test, names, notes)


def _check_headers(path: Path, headers: dict[str, Header]) -> None:
    """Check types and shapes, which needs no array in memory."""
    for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
        shape, dtype = headers[x]
        if dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
            raise UserError(f"{path}: {x}: was {dtype} {shape}, expected uint8 images (N, H, W, C) or (N, H, W)")
        if len(shape) == 4 and shape[1] <= 4 < min(shape[2:]):
            raise UserError(f"{path}: {x}: was {shape}, channels first; expected (N, H, W, C): x.transpose(0, 2, 3, 1)")
        images, (shape, dtype) = shape[0], headers[y]
        if dtype.kind not in "iu" or shape not in ((images,), (images, 1)):
            raise UserError(f"{path}: {y}: was {dtype} {shape}, expected whole numbers ({images},), one per image")
    shape, dtype = headers.get("class_names", Header((0,), np.dtype(str)))
    if dtype.kind != "U" or len(shape) != 1 or shape[0] > MOST_CLASSES:
        raise UserError(f"{path}: class_names: was {dtype} {shape}, expected different texts (classes,)")


def _class_names(path: Path, names: np.ndarray | None, largest: int) -> list[str]:
    if names is None:
        if largest >= MOST_CLASSES:
            raise UserError(f"{path}: labels up to {largest}, expected numbers below {MOST_CLASSES}, or class_names")
        return [str(label) for label in range(largest + 1)]
    try:
        texts = names.tolist()
        problem = problem_of_names(texts)
    except (ValueError, SystemError):  # numbers that are not characters
        problem = f"was {names.dtype} {names.shape}, expected different texts (classes,)"
    if problem:
        raise UserError(f"{path}: class_names: {problem}")
    if largest >= len(texts):
        raise UserError(f"{path}: label {largest}, expected less than the number of class_names, {len(texts)}")
    return texts


def problem_of_names(names: list[str]) -> str | None:
    """What keeps class names from being shown in tables, pages and terminals, or None."""
    if len(set(names) - {""}) < len(names):
        return f"was {shown(names)}, expected different texts"
    for name in names:
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDIRECTIONAL for c in name):
            return f"was {shown(name)}, expected no control characters"
        if re.search(r"<[a-zA-Z/!?]", name):  # `dvc plots` does not escape it
            return f"was {shown(name)}, expected no tag: it would become part of the page of `dvc plots`"
    return None
