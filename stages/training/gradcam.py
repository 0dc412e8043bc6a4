"""Where a model looks when it is most confidently wrong: Grad-CAM (Selvaraju et al., 2017)."""

import keras
import numpy as np
import tensorflow as tf

from stages.training import network

EXAMPLES = 8  # mistakes of each model


def most_confident_mistakes(log_p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rows, int64 (n,), of the wrong predictions with the highest probability, the highest first.

    `log_p` are the logarithms of the probabilities, float64 (N, classes), `y` the labels, int64 (N,).
    """
    wrong = np.flatnonzero(log_p.argmax(axis=1) != y)
    return wrong[np.argsort(-log_p[wrong].max(axis=1), kind="stable")[:EXAMPLES]]


def heat_maps(model: keras.Model, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What in each image (n, H, W, C) spoke for its label (n,): float32 (n, h, w), 1 where most did, 0 where nothing.

    h and w are those of the last layer with weights whose output is spatial, or of the sum that its output goes into.
    The gradient is that of log(p / (1 - p)): it gives the same map as that of log(p), as it differs by the factor
    1 - p, but does not vanish where p rounds to 1.
    """
    is_map = [len(step.output.shape) == 4 and bool(getattr(step, "weights", ())) for step in network.steps(model)]
    cut = min(i + 1 for i in network.bottlenecks(model) if not any(is_map[i + 1 :]))
    below = network.part(model, 0, cut)
    if not len(x):  # TensorFlow refuses to convolve nothing
        return np.zeros((0, *below.output_shape[1:3]), np.float32)
    above = network.part(model, cut, -1)
    kernel, bias = model.layers[-1].weights
    chosen = tf.one_hot(labels, model.output_shape[-1], on_value=True, off_value=False)
    spatial = tf.cast(below(x, training=False), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(spatial)
        logits = tf.cast(above(spatial, training=False), tf.float32) @ kernel + bias
        odds = tf.boolean_mask(logits, chosen) - tf.reduce_logsumexp(tf.where(chosen, -np.inf, logits), axis=1)
    channels = tf.reduce_mean(tape.gradient(odds, spatial), axis=(1, 2), keepdims=True)
    maps = tf.nn.relu(tf.reduce_sum(channels * spatial, axis=-1)).numpy()
    strongest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(strongest > 0, strongest, 1)
