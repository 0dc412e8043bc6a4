"""A dataset of images and labels, and the checks that make one of the arrays in a file."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from stages.shared.errors import UserError, shown
from stages.shared.npz import PIECE, Header, read_npz

KEYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 100_000
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn what follows around


@dataclass(frozen=True)
class Images:
    """Images uint8 (N, H, W, C), 0-255, of which a piece at a time is in memory.

    They are the `rows`, int64 (N,), of `stored`, uint8 (M, ...), which may be mapped from a file; `change` makes images
    of a piece of them.
    """

    stored: np.ndarray
    rows: np.ndarray
    shape: tuple[int, ...]
    change: Callable[[np.ndarray], np.ndarray]
    dtype: ClassVar = np.dtype(np.uint8)

    @classmethod
    def of(cls, stored: np.ndarray) -> "Images":
        """All of an array, uint8 (N, H, W, C) or (N, H, W)."""
        shape = stored.shape if stored.ndim == 4 else (*stored.shape, 1)
        return cls(stored, np.arange(len(stored)), shape, lambda piece: piece.reshape(len(piece), *shape[1:]))

    def take(self, rows: np.ndarray) -> "Images":
        """Some of them, by row number."""
        return replace(self, rows=self.rows[rows], shape=(len(rows), *self.shape[1:]))

    def changed(self, change: Callable[[np.ndarray], np.ndarray], image: tuple[int, int, int]) -> "Images":
        """What a function makes of each piece: images of shape `image`, (H, W, C)."""
        before = self.change
        return replace(self, change=lambda piece: change(before(piece)), shape=(len(self.rows), *image))

    def pieces(self) -> Iterator[np.ndarray]:
        """All of them, some at a time."""
        at_once = max(1, PIECE // max(1, math.prod(self.stored.shape[1:]), math.prod(self.shape[1:])))
        for start in range(0, len(self.rows), at_once):
            yield self.change(self.stored[self.rows[start : start + at_once]])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.pieces()])


@dataclass(frozen=True)
class Dataset:
    """Images and labels, int64 (N,), indices into `class_names`, in their source's order."""

    x_train: Images
    y_train: np.ndarray
    x_test: Images
    y_test: np.ndarray
    class_names: list[str]
    notes: tuple[str, ...] = ()  # on how it was read


def read_dataset(path: Path, class_names: list[str] | None = None) -> Dataset:
    """Read ``x_train y_train x_test y_test`` and, if there, ``class_names`` from an ``.npz`` file.

    Images are uint8 (N, H, W, C) or (N, H, W), labels whole numbers (N,) or (N, 1).
    Raises `UserError` with one line that names file, key, what was found and what is expected.
    """
    arrays = read_npz(
        path, KEYS, ("class_names",), lambda headers: _check_headers(path, headers), mapped=("x_train", "x_test")
    )
    if class_names is not None:
        arrays.setdefault("class_names", np.array(class_names))
    return checked_dataset(path, Images.of(arrays.pop("x_train")), Images.of(arrays.pop("x_test")), arrays)


def checked_dataset(
    path: Path, x_train: Images, x_test: Images, arrays: dict[str, np.ndarray], notes: tuple[str, ...] = ()
) -> Dataset:
    """Check what is from the file or folder `path`; `arrays` are the others of `read_dataset`."""
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
