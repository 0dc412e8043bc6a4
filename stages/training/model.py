"""Build the network: the notebook's, or a backbone with the notebook's dense layers as its head."""

import math
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from stages.settings import Model
from stages.shared.errors import SettingError, UserError
from stages.shared.machine import memory_limit
from stages.training.backbone import pooled_features

NAME = "transfer"  # of every model


def build_model(
    image_shape: tuple[int, ...], classes: int, params: Model, x_train: np.ndarray, weights: Path | str = "random"
) -> keras.Model:
    """Build the notebook's network with random weights for images (H, W, C), or a backbone that starts from `weights`.

    Input: raw 0-255 pixels, (N, H, W, C); output: probabilities, float32 (N, classes). With ``params.rescale`` the
    first layer standardises each channel with mean and variance of `x_train`, so the input stays raw.
    Raises `SettingError` if the convolutions shrink the images to nothing, `UserError` if memory is too small.
    """
    if params.backbone:
        image = keras.Input(image_shape, name="image")
        x = pooled_features(image, params, weights)
        for layer in [keras.layers.Dropout(params.dropout, name="dropout1"), *_dense_layers(classes, params)]:
            x = layer(x)
        return keras.Model(image, x, name=NAME)
    _check_size(image_shape, classes, params)
    layers = [keras.Input(image_shape, name="image")]
    if params.rescale:
        layers.append(_standardise(x_train))
    for i, filters in enumerate(params.conv_filters, 1):
        layers.append(keras.layers.Conv2D(filters, 3, activation="relu", name=f"conv{i}"))
    layers.append(keras.layers.MaxPooling2D(2, name="pool"))
    layers.append(keras.layers.Dropout(params.dropout, name="dropout1"))
    layers.append(keras.layers.Flatten(name="flatten"))
    return keras.Sequential([*layers, *_dense_layers(classes, params)], name=NAME)


def _dense_layers(classes: int, params: Model) -> list[keras.layers.Layer]:
    layers = []
    for i, units in enumerate(params.dense_units, 1):
        layers.append(keras.layers.Dense(units, activation="relu", name=f"fc{i}"))
        layers.append(keras.layers.Dropout(params.dropout, name=f"dropout{i + 1}"))
    return [*layers, _output_layer(classes)]


def _output_layer(classes: int) -> keras.layers.Layer:
    return keras.layers.Dense(classes, activation="softmax", name="output", dtype="float32")


def _standardise(x_train: np.ndarray) -> keras.layers.Layer:
    """Make a layer that standardises images like `x_train`, uint8 (N, H, W, C), with exact means and variances."""
    pixels = x_train.size // x_train.shape[-1]
    batches = [x_train[start : start + 500] for start in range(0, len(x_train), 500)]  # squares take memory

    def mean_of(parts: Iterable[np.ndarray]) -> np.ndarray:
        # Images first: NumPy is several times slower if one sum leaves nothing but the short axis of channels.
        return sum(part.sum(axis=0, dtype=np.int64).sum(axis=(0, 1)) for part in parts) / pixels

    mean = mean_of(batches)
    variance = mean_of(np.square(batch, dtype=np.uint16) for batch in batches) - mean**2  # 255**2 fits
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="rescale")


def _check_size(image_shape: tuple[int, ...], classes: int, params: Model) -> None:
    """Check that the convolutions leave pixels to pool, and that the network fits into memory."""
    height, width, _ = image_shape
    if len(params.conv_filters) > (most := (min(height, width) - 2) // 2):  # each takes a pixel from every side
        expected = f"at most {most} layers for images of {height}x{width} pixels"
        raise SettingError("model.conv_filters", params.conv_filters, expected)
    pooled = [(side - 2 * len(params.conv_filters)) // 2 for side in (height, width)]
    # Bytes of the first dense layer, by far the largest: weights, gradients and the optimizer's means.
    needed = 12 * math.prod(pooled) * params.conv_filters[-1] * [*params.dense_units, classes][0]
    if needed > (memory := memory_limit()):
        expected = f"less than the memory, {memory / 1e9:,.1f} GB: smaller images, or fewer model.dense_units"
        size = f"{needed / 1e9:,.1f} GB"
        raise UserError(f"the network for images of {height}x{width} pixels needs {size}, expected {expected}")


def replace_head(model: keras.Model, classes: int) -> keras.Model:
    """Replace the output layer by one with random weights for `classes` classes; all other layers are shared."""
    if not isinstance(model, keras.Sequential):
        return keras.Model(model.input, _output_layer(classes)(model.layers[-2].output), name=model.name)
    image = keras.Input(model.input_shape[1:], name="image")
    return keras.Sequential([image, *model.layers[:-1], _output_layer(classes)], name=model.name)
