"""Batches of images and labels."""

import numpy as np
import tensorflow as tf

EVALUATION_BATCH = 500  # images


def batches(x: np.ndarray | tf.Tensor, y: np.ndarray, size: int, shuffle: bool) -> tf.data.Dataset:
    """The batches that ``fit(x, y, batch_size=size, shuffle=shuffle)`` makes, in the same order, without autotuning.

    With autotuning Keras now and then waits after an epoch, for as long as the epoch took: the autotuning thread may
    miss that it is to stop, and sleeps on (TensorFlow 2.21; docs/speed.md).
    """
    images, labels = tf.convert_to_tensor(x), tf.convert_to_tensor(y)

    def order(_: tf.Tensor) -> tf.Tensor:
        rows = tf.range(len(y))
        return tf.random.shuffle(rows) if shuffle else rows

    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, rows), tf.gather(labels, rows)

    dataset = tf.data.Dataset.range(1).map(order).unbatch().batch(size).map(gather, num_parallel_calls=2).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # would copy the images into the graph
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
