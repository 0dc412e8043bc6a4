"""Cache the outputs of the frozen body, so that each image passes through it once instead of once an epoch."""

import math
import mmap

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from stages.settings import Recipe
from stages.shared.machine import memory_limit
from stages.training.input_pipeline import evaluation_batch_size


def check_size(body: keras.Model, images: int, recipe: Recipe) -> tuple[bool, str]:
    """Return whether the features of so many images can be cached, and the reason in one line."""
    if recipe.augment:
        return False, "augmentation changes every image, so features cannot be cached"
    size = images * math.prod(body.output_shape[1:]) * tf.as_dtype(body.outputs[0].dtype).size
    features = f"features of {images:,} images ({size / 1e6:,.0f} MB)"
    if size <= memory_limit() // 2:
        return True, f"caching {features}"
    return False, f"computing {features} in every epoch, which is slow: more than half of memory"


def compute(body: keras.Model, x: np.ndarray) -> tf.Tensor:
    """Compute the body's output for every image, (N, ...), in the body's type; the tensor shares the cache's memory."""
    shape, dtype = (len(x), *body.output_shape[1:]), tf.as_dtype(body.outputs[0].dtype)
    bits = np.dtype(f"u{dtype.size}")  # NumPy shares no bfloat16 with others
    out = np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.size), bits).reshape(shape)  # aligned
    compute = tf.function(lambda images: body(images, training=False), autograph=False)
    size = evaluation_batch_size(x.shape[1:])
    for start in tqdm(range(0, len(x), size), "features", disable=None, leave=False):
        batch = slice(start, start + size)
        out[batch] = compute(x[batch]).numpy().view(bits)
    with tf.device("CPU"):  # a GPU would take a copy of all of it
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(out.__dlpack__()), dtype)
