"""Arrays larger than memory: lazy ones, read in batches, and temporary ones in files."""

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.shared.errors import UserError

BATCH_BYTES = 2**22  # read or written at once


@dataclass(frozen=True)
class LazyArray:
    """Images uint8 (N, H, W, C) that are computed in batches: `transform` of the chosen `rows` of a `stored` array.

    `stored`, uint8 (M, ...), may be mapped from a file; `rows`: int64 (N,).
    """

    stored: np.ndarray
    rows: np.ndarray
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, stored: np.ndarray) -> "LazyArray":
        """Wrap a whole array, uint8 (N, H, W, C) or (N, H, W)."""
        shape = (*stored.shape, 1) if stored.ndim == 3 else stored.shape
        return cls(stored, np.arange(len(stored)), shape, lambda batch: batch.reshape(len(batch), *shape[1:]))

    @property
    def dtype(self) -> np.dtype:
        """Return the type of all images, uint8."""
        return self.stored.dtype

    def take(self, rows: np.ndarray) -> "LazyArray":
        """Select images by row number."""
        return replace(self, rows=self.rows[rows], shape=(len(rows), *self.shape[1:]))

    def map(self, function: Callable[[np.ndarray], np.ndarray], image: tuple[int, int, int]) -> "LazyArray":
        """Apply a function to each batch, which makes images of shape `image`, (H, W, C)."""
        before = self.transform
        return replace(self, transform=lambda batch: function(before(batch)), shape=(len(self.rows), *image))

    def batches(self) -> Iterator[np.ndarray]:
        """Yield all images in order, some at a time."""
        size = max(1, BATCH_BYTES // max(1, math.prod(self.stored.shape[1:]), math.prod(self.shape[1:])))
        for start in range(0, len(self.rows), size):
            yield self.transform(self.stored[self.rows[start : start + size]])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.batches()])


def check_free_space(folder: Path, size: int) -> None:
    """Create the folder; raise `UserError` if its disk has less than `size` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{folder}: {size / 1e9:,.1f} GB needed, expected at most {free / 1e9:,.1f} GB, the free space")


def temporary_array(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    """Create a writable uint8 array in a nameless file in `folder`, which disappears with the process.

    Raises `UserError` if the disk has no room for it or the folder cannot be written.
    """
    size = max(1, math.prod(shape))
    try:
        check_free_space(folder, size)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # reserve the space: a disk that fills up later would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    return np.frombuffer(mapped, np.uint8, math.prod(shape)).reshape(shape)
