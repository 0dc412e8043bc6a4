"""Cache the outputs of the frozen body, so that each image passes through it once instead of once an epoch."""

import math
import mmap
import shutil
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from stages.settings import Recipe, Settings
from stages.shared.arrays import temporary_array
from stages.shared.files import MODELS
from stages.shared.machine import memory_limit
from stages.training.input_pipeline import evaluation_batch_size

Location = Literal["memory", "disk"]


def choose_location(body: keras.Model, images: int, recipe: Recipe, params: Settings) -> tuple[Location | None, str]:
    """Decide where to cache the features of so many images, None for nowhere, and explain the choice in one line."""
    if recipe.augment:
        return None, "augmentation changes every image, so features cannot be cached"
    size = images * math.prod(body.output_shape[1:]) * tf.as_dtype(body.outputs[0].dtype).size
    features = f"features of {images:,} images ({size / 1e6:,.0f} MB)"
    if size <= min(params.feature_memory, memory_limit() // 2):
        return "memory", f"caching {features} in memory"
    MODELS.mkdir(exist_ok=True)
    if size <= min(params.feature_disk, shutil.disk_usage(MODELS).free):
        return (
            "disk",
            f"caching {features} in a temporary file in {MODELS}/: more than feature_memory or half of memory",
        )
    return None, f"computing {features} in every epoch, which is slow: more than feature_disk or the free disk space"


def compute(body: keras.Model, x: np.ndarray, location: Location) -> tf.Tensor:
    """Compute the body's output for every image, (N, ...), in the body's type; the tensor shares the cache's memory."""
    shape, dtype = (len(x), *body.output_shape[1:]), tf.as_dtype(body.outputs[0].dtype)
    bits = np.dtype(f"u{dtype.size}")  # NumPy shares no bfloat16 with others
    if location == "disk":
        out = temporary_array(shape, bits, MODELS)
    else:
        out = np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.size), bits).reshape(shape)  # aligned
    compute = tf.function(lambda images: body(images, training=False), autograph=False)
    size = evaluation_batch_size(x.shape[1:])
    for start in tqdm(range(0, len(x), size), "features", disable=None, leave=False):
        batch = slice(start, start + size)
        out[batch] = compute(x[batch]).numpy().view(bits)
    with tf.device("CPU"):  # a GPU would take a copy of all of it
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(out.__dlpack__()), dtype)
