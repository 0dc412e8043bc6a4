"""Shuffle and batch images and labels."""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

EVALUATION_BATCH = 250  # images of the notebook's size or smaller


def evaluation_batch_size(image: tuple[int, ...]) -> int:
    """Choose the batch size for evaluation with images (H, W, C), bounded by memory."""
    return min(EVALUATION_BATCH, max(32, EVALUATION_BATCH * 32 * 32 // (image[0] * image[1])))


class ShuffleOrder(keras.callbacks.Callback):
    """The order of the training images: a new one in every epoch, determined by seed and epoch."""

    def __init__(self, count: int, seed: int):
        super().__init__()
        self.count, self.seed, self.epoch = count, seed, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Note the epoch whose order comes next, counted from 0."""
        self.epoch = epoch

    def rows(self) -> np.ndarray:
        """Draw the epoch's order, int64 (count,); NumPy draws the same one on every machine."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.count)


def make_dataset(
    x: np.ndarray | tf.Tensor,
    y: np.ndarray,
    batch_size: int,
    order: ShuffleOrder | None = None,
    change: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> tf.data.Dataset:
    """Make batches of images and labels, shuffled by `order`, then changed, if given, without tf.data's autotuning.

    With autotuning Keras now and then waits after an epoch, as long as the epoch took: the autotuning thread may miss
    its stop signal and sleep on (TensorFlow 2.21; docs/architecture.md).
    """
    images, labels = _share_memory(x) if isinstance(x, np.ndarray) else x, tf.convert_to_tensor(y)

    def rows(_: tf.Tensor) -> tf.Tensor:
        drawn = tf.numpy_function(order.rows, [], tf.int64) if order else tf.range(len(y), dtype=tf.int64)
        return tf.ensure_shape(drawn, [len(y)])

    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, rows), tf.gather(labels, rows)

    # AutoGraph would take time to rewrite the two, and leave files in the temporary folder.
    plain = tf.autograph.experimental.do_not_convert
    dataset = tf.data.Dataset.range(1).map(plain(rows)).unbatch()
    dataset = dataset.batch(batch_size).apply(tf.data.experimental.assert_cardinality(math.ceil(len(y) / batch_size)))
    dataset = dataset.map(plain(gather), num_parallel_calls=2)
    dataset = (dataset.map(plain(change)) if change else dataset).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # would copy the images into the graph
    return dataset.with_options(options)


def _share_memory(x: np.ndarray) -> tf.Tensor:
    """Make a tensor that shares an array's memory, or its mapped file, if it is aligned for that."""
    shared = x.size and x.ctypes.data % 64 == 0 and x.flags.c_contiguous and x.flags.writeable
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__()) if shared else tf.convert_to_tensor(x)
