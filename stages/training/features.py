"""What frozen layers make of an image, computed once instead of in every epoch."""

import mmap
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

from stages.shared.files import MODELS
from stages.training.batches import EVALUATION_BATCH


def features(trunk: keras.Model, x: np.ndarray, memory: int) -> tf.Tensor:
    """The trunk's output for every image, float32 (N, ...), in memory or, beyond `memory` bytes, in a temporary file.

    The tensor shares the array's memory, so that nothing is held twice.
    """
    out = _empty((len(x), *trunk.output_shape[1:]), memory)
    compute = tf.function(lambda images: trunk(images, training=False))
    for start in range(0, len(x), EVALUATION_BATCH):
        batch = slice(start, start + EVALUATION_BATCH)
        out[batch] = compute(x[batch])
    return tf.experimental.dlpack.from_dlpack(out.__dlpack__())


def _empty(shape: tuple[int, ...], memory: int) -> np.ndarray:
    """A float32 array to be filled, page-aligned; a temporary file has no name and is gone with the process."""
    size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
    if size <= memory:
        return np.frombuffer(mmap.mmap(-1, size), dtype=np.float32).reshape(shape)
    with tempfile.TemporaryFile(dir=MODELS) as file:  # /tmp may be memory itself
        # Room is taken at once if the system can: a disk that fills up later would kill the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.float32).reshape(shape)
