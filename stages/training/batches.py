"""Batches of images and labels."""

import math

import numpy as np
import tensorflow as tf

EVALUATION_BATCH = 500  # images of the notebook's size or smaller
BLOCK = 2**22  # bytes of images that are read together if not all of them fit into memory


def evaluation_batch(image: tuple[int, ...]) -> int:
    """How many images of shape (H, W, C) go through a network at once where none is trained: memory bounds them."""
    return min(EVALUATION_BATCH, max(32, EVALUATION_BATCH * 32 * 32 // (image[0] * image[1])))


def in_place(x: np.ndarray) -> tf.Tensor:
    """A tensor that shares an array's memory, or the file that it is mapped from, if it is aligned for that."""
    shared = x.size and x.ctypes.data % 64 == 0 and x.flags.c_contiguous and x.flags.writeable
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__()) if shared else tf.convert_to_tensor(x)


def batches(x: np.ndarray | tf.Tensor, y: np.ndarray, size: int, shuffle: bool, memory: int = 2**63) -> tf.data.Dataset:
    """The batches that ``fit(x, y, batch_size=size, shuffle=shuffle)`` makes, in the same order, without autotuning.

    With autotuning Keras now and then waits after an epoch, for as long as the epoch took: the autotuning thread may
    miss that it is to stop, and sleeps on (TensorFlow 2.21; docs/speed.md). What takes more bytes than `memory` is
    shuffled in two steps, so that a disk is read in large pieces: blocks of `BLOCK` bytes, then the images within as
    many blocks as fit into half of `memory`.
    """
    images, labels = in_place(x) if isinstance(x, np.ndarray) else x, tf.convert_to_tensor(y)
    of_image = math.prod(x.shape[1:]) * images.dtype.size
    in_block = max(1, BLOCK // of_image) if of_image * len(y) > memory else len(y)
    blocks = math.ceil(len(y) / in_block)

    def order(_: tf.Tensor) -> tf.Tensor:
        rows = tf.range(blocks if shuffle and blocks > 1 else len(y))
        return tf.random.shuffle(rows) if shuffle else rows

    def within(chosen: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(chosen[:, None] * in_block + tf.range(in_block), [-1])
        return tf.random.shuffle(rows[rows < len(y)])

    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, rows), tf.gather(labels, rows)

    dataset = tf.data.Dataset.range(1).map(order).unbatch()
    if shuffle and blocks > 1:
        dataset = dataset.batch(max(1, memory // 2 // BLOCK)).map(within).unbatch()
    dataset = dataset.batch(size).apply(tf.data.experimental.assert_cardinality(math.ceil(len(y) / size)))
    dataset = dataset.map(gather, num_parallel_calls=2).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # would copy the images into the graph
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
