"""The network: build it, choose what is trained, split off what can be computed once."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from stages.settings import Network
from stages.shared.errors import UserError, shown
from stages.shared.process import memory
from stages.training import backbone

NAME = "transfer"  # of every model
LARGE = 20_000_000  # weights; the notebook's network has 1.6 million, on images of 96x96 17 million


def build(
    image_shape: tuple[int, ...], classes: int, params: Network, x_train: np.ndarray, weights: Path | str = "random"
) -> keras.Model:
    """The notebook's network for images (H, W, C) and `classes` classes, with fresh weights, or one with a backbone.

    Input: raw 0-255 pixels, (N, H, W, C); output: probabilities, float32 (N, classes). If `params.rescale` is set, the
    first layer standardises each channel with mean and variance of `x_train`, so that the input stays raw.
    With ``params.backbone``, the layers from dropout1 on are above the backbone, which starts from `weights`.
    Raises `UserError` if the convolutions leave nothing to pool of images so small, or the network does not fit memory.
    """
    if params.backbone:
        image = keras.Input(image_shape, name="image")
        x = backbone.outputs(image, params.backbone, weights)
        for layer in [keras.layers.Dropout(params.dropout, name="dropout1"), *_dense_layers(classes, params)]:
            x = layer(x)
        return keras.Model(image, x, name=NAME)
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
    return keras.Sequential([*layers, *_dense_layers(classes, params)], name=NAME)


def _dense_layers(classes: int, params: Network) -> list[keras.layers.Layer]:
    layers = []
    for i, units in enumerate(params.dense_units, 1):
        layers.append(keras.layers.Dense(units, activation="relu", name=f"fc{i}"))
        layers.append(keras.layers.Dropout(params.dropout, name=f"dropout{i + 1}"))
    return [*layers, _output(classes)]


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
    """Of images uint8 (N, H, W, C). Exact in whole numbers, in batches as squares of all images would not fit."""
    pixels = x_train.size // x_train.shape[-1]
    batches = [x_train[start : start + 500] for start in range(0, len(x_train), 500)]

    def mean_of(parts: Iterable[np.ndarray]) -> np.ndarray:
        # First over images: NumPy is several times slower if one sum leaves nothing but the short axis of channels.
        return sum(part.sum(axis=0, dtype=np.int64).sum(axis=(0, 1)) for part in parts) / pixels

    mean = mean_of(batches)
    variance = mean_of(np.square(batch, dtype=np.uint16) for batch in batches) - mean**2  # 255**2 fits
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="rescale")


def _output(classes: int) -> keras.layers.Layer:
    return keras.layers.Dense(classes, activation="softmax", name="output", dtype="float32")


def with_new_output(model: keras.Model, classes: int) -> keras.Model:
    """The same layers with an output layer of fresh weights for `classes` classes."""
    if not isinstance(model, keras.Sequential):
        return keras.Model(model.input, _output(classes)(model.layers[-2].output), name=model.name)
    image = keras.Input(model.input_shape[1:], name="image")
    return keras.Sequential([image, *model.layers[:-1], _output(classes)], name=model.name)


def freeze_all_but(model: keras.Model, trainable: list[str], setting: str = "trainable") -> None:
    """Make the named layers trainable and all others not.

    A name stands for the layers whose names begin with it, up to a whole number, and `backbone` for all below the
    notebook's layers. Raises `UserError` with what there is, named after `setting`, if a name stands for no weights.
    """
    names = [layer.name for layer in model.layers]
    below = [] if isinstance(model, keras.Sequential) else names[: names.index("dropout1")]
    weighty = [layer.name for layer in model.layers if layer.weights]
    chosen = set[str]()
    for given in trainable:
        beginning = re.compile(rf"{re.escape(given)}(?!\d)")
        stands_for = below if given == "backbone" else [name for name in names if beginning.match(name)]
        if not set(stands_for) & set(weighty):
            blocks = dict.fromkeys(re.sub(r"^(\D*\d+[a-z]?)_.*", r"\1", name) for name in weighty if name in below)
            there = [*[name for name in weighty if name not in below][::-1], "backbone", *[*blocks][::-1]]
            wanted = f"expected layers, or the beginnings of their names, from the output down: {shown(there)}"
            raise UserError(f"params.yaml: {setting}: was {shown(given)}, {wanted}")
        chosen.update(stands_for)
    for layer in model.layers:
        layer.trainable = layer.name in chosen


def trainable_parameters(model: keras.Model) -> int:
    """How many numbers training may change."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def weight(model: keras.Model) -> str:
    """The network's size in words, with a warning if large images have made it a large one."""
    count = model.count_params()
    text = f"network: {count:,} weights, {4 * count / 1e6:,.1f} MB a model"
    if count > LARGE and isinstance(model, keras.Sequential):
        height, width, _ = model.input_shape[1:]
        text += f", many for images of {height}x{width}: 32 to 96 pixels and fewer model.dense_units make it smaller"
    return text


def is_random(layer: keras.layers.Layer) -> bool:
    """Whether the layer draws random numbers while training; a frozen Dropout still does, unless its rate is 0."""
    # Only `variables` has the state of random generators.
    return len(layer.variables) > len(layer.weights) and getattr(layer, "rate", None) != 0


def steps(model: keras.Model) -> list[Any]:
    """The model's layers in order and, between them, what its graph computes without a layer."""
    return model.layers if isinstance(model, keras.Sequential) else model.operations


def bottlenecks(model: keras.Model) -> list[int]:
    """The positions of the steps through whose output alone the others reach the model's output."""
    made = steps(model)
    if isinstance(model, keras.Sequential):
        return list(range(len(made)))
    position = {id(step.output): i for i, step in enumerate(made)}
    last_use = [0] * len(made)
    for i, step in enumerate(made[1:], 1):
        for tensor in keras.tree.flatten(step.input):
            last_use[position[id(tensor)]] = i
    return [i for i in range(len(made)) if max(last_use[:i], default=0) <= i]


def part(model: keras.Model, start: int, stop: int | None) -> keras.Model:
    """The steps from `start` up to `stop` as a model that shares its layers; cut at bottlenecks."""
    chosen = steps(model)[start:stop]
    if isinstance(model, keras.Sequential):
        return keras.Sequential([keras.Input(chosen[0].input.shape[1:], dtype=chosen[0].input.dtype), *chosen])
    return keras.Model(steps(model)[max(start - 1, 0)].output, chosen[-1].output)


def split_frozen(model: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """Split a model at the last bottleneck before its first layer that is random, or trainable and has weights.

    Returns the part whose output for an image never changes while training (None if no layer there has weights), and
    the rest. Both share their layers with `model`: what is trained in the rest is trained in `model`.
    """
    made = [step if isinstance(step, keras.layers.Layer) else None for step in steps(model)]
    changing = (layer and ((layer.trainable and layer.weights) or is_random(layer)) for layer in made)
    first = next(i for i, changes in enumerate(changing) if changes)
    cut = max((i + 1 for i in bottlenecks(model) if i < first), default=0)
    if not any(layer.weights for layer in made[:cut] if layer):
        return None, model
    return part(model, 0, cut), part(model, cut, None)
