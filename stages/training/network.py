"""The notebook's network: build it, choose what is trained, split off what can be computed once."""

import keras
import numpy as np

from stages.settings import Network
from stages.shared.errors import UserError
from stages.shared.process import memory

LARGE = 20_000_000  # weights; the notebook's network has 1.6 million, on images of 96x96 17 million


def build(image_shape: tuple[int, ...], classes: int, params: Network, x_train: np.ndarray) -> keras.Sequential:
    """The notebook's network for images (H, W, C) and `classes` classes, with fresh weights.

    Input: raw 0-255 pixels, (N, H, W, C); output: probabilities, float32 (N, classes). If `params.rescale` is set, the
    first layer standardises each channel with mean and variance of `x_train`, so that the input stays raw.
    Raises `UserError` if the convolutions leave nothing to pool of images so small, or the network does not fit memory.
    """
    height, width, _ = image_shape
    most = (min(height, width) - 2) // 2  # each takes a pixel from every side, and pooling needs two
    if len(params.conv_filters) > most:
        wanted = f"expected at most {most} layers for images of {height}x{width} pixels"
        raise UserError(f"params.yaml: model.conv_filters: was {params.conv_filters}, {wanted}")
    needed = 12 * _count_weights(image_shape, classes, params)  # bytes of weights, gradients and the optimizer's means
    if needed > memory():
        wanted = f"expected less than the memory, {memory() / 1e9:,.1f} GB: smaller images, or fewer model.dense_units"
        raise UserError(f"the network for images of {height}x{width} pixels takes {needed / 1e9:,.1f} GB, {wanted}")
    layers = [keras.Input(image_shape, name="image")]
    if params.rescale:
        layers.append(_standardise(x_train))
    for i, filters in enumerate(params.conv_filters, 1):
        layers.append(keras.layers.Conv2D(filters, 3, activation="relu", name=f"conv{i}"))
    layers.append(keras.layers.MaxPooling2D(2, name="pool"))
    layers.append(keras.layers.Dropout(params.dropout, name="dropout1"))
    layers.append(keras.layers.Flatten(name="flatten"))
    for i, units in enumerate(params.dense_units, 1):
        layers.append(keras.layers.Dense(units, activation="relu", name=f"fc{i}"))
        layers.append(keras.layers.Dropout(params.dropout, name=f"dropout{i + 1}"))
    layers.append(_output(classes))
    return keras.Sequential(layers, name="transfer")


def _count_weights(image_shape: tuple[int, ...], classes: int, params: Network) -> int:
    height, width, channels = image_shape
    count = 0
    for filters in params.conv_filters:
        count, channels = count + (9 * channels + 1) * filters, filters
    shrunk = 2 * len(params.conv_filters)
    inputs = (height - shrunk) // 2 * ((width - shrunk) // 2) * channels
    for units in (*params.dense_units, classes):
        count, inputs = count + (inputs + 1) * units, units
    return count


def _standardise(x_train: np.ndarray) -> keras.layers.Layer:
    """Exact in whole numbers, in batches as squares of all images would not fit."""
    pixels = x_train.size // x_train.shape[-1]
    batches = [x_train[start : start + 500] for start in range(0, len(x_train), 500)]
    mean = sum(batch.sum(axis=(0, 1, 2), dtype=np.int64) for batch in batches) / pixels
    square = sum(np.square(batch, dtype=np.int64).sum(axis=(0, 1, 2)) for batch in batches) / pixels
    variance = square - mean**2
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="rescale")


def _output(classes: int) -> keras.layers.Layer:
    return keras.layers.Dense(classes, activation="softmax", name="output", dtype="float32")


def with_new_output(model: keras.Sequential, classes: int) -> keras.Sequential:
    """The same layers with an output layer of fresh weights for `classes` classes."""
    image = keras.Input(model.input_shape[1:], name="image")
    return keras.Sequential([image, *model.layers[:-1], _output(classes)], name=model.name)


def freeze_all_but(model: keras.Sequential, trainable: list[str]) -> None:
    """Make the named layers trainable and all others not."""
    for layer in model.layers:
        layer.trainable = layer.name in trainable


def trainable_parameters(model: keras.Sequential) -> int:
    """How many numbers training may change."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def weight(model: keras.Sequential) -> str:
    """The network's size in words, with a warning if large images have made it a large one."""
    count = model.count_params()
    text = f"network: {count:,} weights, {4 * count / 1e6:,.1f} MB a model"
    if count > LARGE:
        height, width, _ = model.input_shape[1:]
        text += f", many for images of {height}x{width}: 32 to 96 pixels and fewer model.dense_units make it smaller"
    return text


def is_random(layer: keras.layers.Layer) -> bool:
    """Whether the layer draws random numbers while training; a frozen Dropout still does."""
    return len(layer.variables) > len(layer.weights)  # only `variables` has the state of random generators


def split_frozen(model: keras.Sequential) -> tuple[keras.Sequential | None, keras.Sequential]:
    """Split a model before its first layer that is random, or trainable and has weights.

    Returns the part whose output for an image never changes while training (None if no layer there has weights), and
    the rest. Both share their layers with `model`: what is trained in the rest is trained in `model`.
    """
    changing = ((layer.trainable and layer.weights) or is_random(layer) for layer in model.layers)
    first = next(i for i, changes in enumerate(changing) if changes)
    if not any(layer.weights for layer in model.layers[:first]):
        return None, model
    trunk = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:first]])
    return trunk, keras.Sequential([keras.Input(trunk.output_shape[1:]), *model.layers[first:]])
