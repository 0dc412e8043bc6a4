"""Find the most confident mistakes and explain them with heat maps: Grad-CAM (Selvaraju et al., 2017)."""

import keras
import numpy as np
import tensorflow as tf

from stages.training.freeze import cut_points, nodes, submodel

EXAMPLES = 8  # mistakes of each model


def most_confident_mistakes(log_p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the rows, int64 (n,), of the wrong predictions with the highest probability, the highest first.

    `log_p`: logarithms of the probabilities, float64 (N, classes); `y`: labels, int64 (N,).
    """
    wrong = np.flatnonzero(log_p.argmax(axis=1) != y)
    return wrong[np.argsort(-log_p[wrong].max(axis=1), kind="stable")[:EXAMPLES]]


def heat_maps(model: keras.Model, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute Grad-CAM maps of images (n, H, W, C) for labels (n,): float32 (n, h, w), from 0 to 1, the strongest.

    h and w are those of the last layer with weights and a spatial output, or of the sum that its output goes into.
    The gradient is that of log(p / (1 - p)): it differs from that of log(p) by the factor 1 - p, so the map is the
    same, but it does not vanish where p rounds to 1.
    """
    spatial_layer = [len(node.output.shape) == 4 and bool(getattr(node, "weights", ())) for node in nodes(model)]
    cut = min(i + 1 for i in cut_points(model) if not any(spatial_layer[i + 1 :]))
    below = submodel(model, 0, cut)
    if not len(x):  # TensorFlow refuses to convolve nothing
        return np.zeros((0, *below.output_shape[1:3]), np.float32)
    above = submodel(model, cut, -1)
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
