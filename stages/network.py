"""The notebook's network: build it, choose what is trained, split off what can be computed once, save it."""

import json
import re
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from stages import chatter_kept_back
from stages.arrays import write_whole
from stages.settings import Model, UserError

with chatter_kept_back():
    import keras


def build(image_shape: tuple[int, int, int], classes: int, params: Model, x_train: np.ndarray) -> keras.Sequential:
    """The notebook's network for images (H, W, C) and `classes` classes, with fresh weights.

    Input: raw 0-255 pixels, (N, H, W, C); output: probabilities, float32 (N, classes). Where `params.rescale` is set,
    the first layer standardises each channel with mean and variance of `x_train`, so that the input stays raw.
    Raises `UserError` where the convolutions leave nothing to pool of images so small.
    """
    height, width, _ = image_shape
    most = (min(height, width) - 2) // 2  # each takes a pixel from every side, and pooling needs two
    if len(params.conv_filters) > most:
        wanted = f"expected at most {most} layers for images of {height}x{width} pixels"
        raise UserError(f"params.yaml: model.conv_filters: was {params.conv_filters}, {wanted}")
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


def _standardise(x_train: np.ndarray) -> keras.layers.Layer:
    pixels = x_train.size // x_train.shape[-1]
    batches = [x_train[start : start + 500] for start in range(0, len(x_train), 500)]
    mean = sum(batch.sum(axis=(0, 1, 2), dtype=np.int64) for batch in batches) / pixels
    square = sum(np.square(batch, dtype=np.int64).sum(axis=(0, 1, 2)) for batch in batches) / pixels
    variance = square - mean**2
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="rescale")


def _output(classes: int) -> keras.layers.Layer:
    return keras.layers.Dense(classes, activation="softmax", name="output", dtype="float32")


def load(path: Path) -> keras.Sequential:
    """Load a saved model without its loss, to be trained further; raises `UserError` when the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # from Python 3.13 on Keras reads weights whose checksum is wrong
                raise ValueError(f"{damaged}: wrong checksum")
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # a damaged file makes zipfile, h5py or Keras raise nearly anything
        problem = " ".join(str(error).split())
        raise UserError(
            f"{path}: no model that Keras can load: {problem}; `chmod -R u+w .dvc/cache/files` makes DVC look at its "
            "copies, then `dvc repro`"
        ) from None


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


def is_random(layer: keras.layers.Layer) -> bool:
    """Whether the layer draws random numbers while training; a frozen Dropout still does."""
    return len(layer.variables) > len(layer.weights)  # `variables` has the state of random generators, `weights` not


def split_frozen(model: keras.Sequential) -> tuple[keras.Sequential | None, keras.Sequential]:
    """Split a model before its first layer that is trainable, weights of any kind, or random.

    Returns the part whose output for an image never changes while training (None where no layer there has weights), and
    the rest. Both share their layers with `model`: what is trained in the rest is trained in `model`.
    """
    changing = ((layer.trainable and layer.weights) or is_random(layer) for layer in model.layers)
    first = next(i for i, changes in enumerate(changing) if changes)
    if not any(layer.weights for layer in model.layers[:first]):
        return None, model
    trunk = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:first]])
    return trunk, keras.Sequential([keras.Input(trunk.output_shape[1:]), *model.layers[first:]])


def log_probabilities(model: keras.Sequential, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Logarithms of the model's probabilities for images (N, H, W, C): float64 (N, classes).

    From the inputs of the softmax, as Keras's loss is: a probability that float32 rounds to 0 has a logarithm still.
    """
    hidden = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:-1]])
    kernel, bias = (weight.astype(np.float64) for weight in model.layers[-1].get_weights())
    starts = range(0, len(x), batch_size)
    last = np.concatenate([hidden.predict_on_batch(x[start : start + batch_size]) for start in starts])
    return log_softmax(last.astype(np.float64) @ kernel + bias, axis=1)


def save(model: keras.Sequential, path: Path) -> None:
    """Save a model for plain ``keras.models.load_model``; equal models make equal files.

    A ``.keras`` file is a zip of its configuration, its weights and the date. Dates and the memory addresses that
    Keras puts in as ``shared_object_id`` are replaced, all else stays. The file has loss and metric, so that
    ``evaluate`` works where it is loaded, and, to be half as large, no state of the optimiser that trained it.
    """
    stateless = keras.optimizers.SGD(name="sgd")
    model.compile(stateless, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    rewritten = BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / path.name
        model.save(saved)
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(rewritten, "w") as new:
            for name in sorted(old.namelist()):
                new.writestr(zipfile.ZipInfo(name), _without_accidents(name, old.read(name)))
    write_whole(path, rewritten.getbuffer())


def _without_accidents(name: str, content: bytes) -> bytes:
    if name == "metadata.json":
        return json.dumps(json.loads(content) | {"date_saved": "1980-01-01@00:00:00"}).encode()
    if name == "config.json":
        number = {}
        return re.sub(
            rb'("shared_object_id": )(\d+)',
            lambda found: found[1] + str(number.setdefault(found[2], len(number))).encode(),
            content,
        )
    return content
