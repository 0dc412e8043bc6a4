"""What frozen layers make of an image, computed once instead of in every epoch."""

import math
import mmap
import shutil
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from stages.settings import Settings
from stages.shared.files import MODELS, temporary_array
from stages.shared.process import memory
from stages.training.batches import evaluation_batch

Place = Literal["memory", "disk"]


def place(trunk: keras.Model, images: int, params: Settings) -> tuple[Place | None, str]:
    """Where to keep the trunk's output for so many images, None if nowhere, and a line that says so and why."""
    of_memory, of_disk = params.feature_memory, params.feature_disk
    size = images * math.prod(trunk.output_shape[1:]) * _dtype(trunk).size
    MODELS.mkdir(exist_ok=True)
    free = shutil.disk_usage(MODELS).free
    said = f"what frozen layers make of {images:,} images, {_gb(size)}, is computed"
    if size <= min(of_memory, memory() // 2):
        return "memory", f"{said} once and kept in memory"
    because = f"more than feature_memory, {_gb(of_memory)}, or half of the memory, {_gb(memory())}"
    if size <= min(of_disk, free):
        return "disk", f"{said} once and kept in a temporary file in {MODELS}/: {because}"
    because += f"; and than feature_disk, {_gb(of_disk)}, or what is free, {_gb(free)}"
    return None, f"{said} again in every epoch, which takes many times as long: {because}"


def features(trunk: keras.Model, x: np.ndarray, where: Place) -> tf.Tensor:
    """The trunk's output for every image, (N, ...), in memory or in a temporary file, in the type that it computes in.

    The tensor shares the array's memory, so that nothing is held twice.
    """
    shape, dtype = (len(x), *trunk.output_shape[1:]), _dtype(trunk)
    bits = np.dtype(f"u{dtype.size}")  # NumPy shares no bfloat16 with others
    if where == "disk":
        out = temporary_array(shape, bits, MODELS)
    else:
        out = np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.size), bits).reshape(shape)  # aligned
    compute = tf.function(lambda images: trunk(images, training=False), autograph=False)
    size = evaluation_batch(x.shape[1:])
    for start in tqdm(range(0, len(x), size), "frozen layers", disable=None, leave=False):
        batch = slice(start, start + size)
        out[batch] = compute(x[batch]).numpy().view(bits)
    with tf.device("CPU"):  # a GPU would take a copy of all of it
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(out.__dlpack__()), dtype)


def _dtype(trunk: keras.Model) -> tf.DType:
    return tf.as_dtype(trunk.outputs[0].dtype)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
