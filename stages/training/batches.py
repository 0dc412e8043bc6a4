"""Batches of images and labels."""

import math

import keras
import numpy as np
import tensorflow as tf

EVALUATION_BATCH = 250  # images of the notebook's size or smaller
BLOCK = 2**22  # bytes of images that are read together if not all of them fit into memory


def evaluation_batch(image: tuple[int, ...]) -> int:
    """How many images of shape (H, W, C) go through a network at once where none is trained: memory bounds them."""
    return min(EVALUATION_BATCH, max(32, EVALUATION_BATCH * 32 * 32 // (image[0] * image[1])))


def in_place(x: np.ndarray) -> tf.Tensor:
    """A tensor that shares an array's memory, or the file that it is mapped from, if it is aligned for that."""
    shared = x.size and x.ctypes.data % 64 == 0 and x.flags.c_contiguous and x.flags.writeable
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__()) if shared else tf.convert_to_tensor(x)


class Order(keras.callbacks.Callback):
    """The order in which a training takes its images: a new one in every epoch, which seed and epoch alone decide.

    Images that take more bytes than `memory` are shuffled in two steps, so that a disk is read in large pieces: blocks
    of `BLOCK` bytes, then the images within as many blocks as fit into half of `memory`.
    """

    def __init__(self, x: np.ndarray | tf.Tensor, seed: int, memory: int = 2**63):
        super().__init__()
        self.count, self.seed, self.epoch = len(x), seed, 0
        of_image = math.prod(x.shape[1:]) * tf.as_dtype(x.dtype).size
        self.in_block = max(1, BLOCK // of_image) if of_image * self.count > memory else 0
        self.in_window = self.in_block * max(1, memory // 2 // BLOCK)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Note which epoch's order comes next, counted from 0."""
        self.epoch = epoch

    def rows(self) -> np.ndarray:
        """The epoch's order, int64 (count,); NumPy draws the same one on every machine."""
        random = np.random.default_rng([self.seed, self.epoch])
        if not self.in_block:
            return random.permutation(self.count)
        blocks = random.permutation(math.ceil(self.count / self.in_block))
        rows = (blocks[:, None] * self.in_block + np.arange(self.in_block)).ravel()
        rows = rows[rows < self.count]
        for start in range(0, self.count, self.in_window):
            random.shuffle(rows[start : start + self.in_window])
        return rows


def batches(x: np.ndarray | tf.Tensor, y: np.ndarray, size: int, order: Order | None = None) -> tf.data.Dataset:
    """Batches of images and labels in an order, by default as they are, without autotuning.

    With autotuning Keras now and then waits after an epoch, for as long as the epoch took: the autotuning thread may
    miss that it is to stop, and sleeps on (TensorFlow 2.21; docs/speed.md).
    """
    images, labels = in_place(x) if isinstance(x, np.ndarray) else x, tf.convert_to_tensor(y)

    def rows(_: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(order.rows, [], tf.int64) if order else tf.range(len(y), dtype=tf.int64)
        return tf.ensure_shape(found, [len(y)])

    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, rows), tf.gather(labels, rows)

    # AutoGraph would rewrite the two, which takes time, and leave what it writes in the temporary folder.
    as_it_is = tf.autograph.experimental.do_not_convert
    dataset = tf.data.Dataset.range(1).map(as_it_is(rows)).unbatch()
    dataset = dataset.batch(size).apply(tf.data.experimental.assert_cardinality(math.ceil(len(y) / size)))
    dataset = dataset.map(as_it_is(gather), num_parallel_calls=2).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # would copy the images into the graph
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
