"""The base model: a network of ``keras.applications``, or any ``.keras`` file, up to its pooled features."""

import warnings
from pathlib import Path

import keras
import numpy as np

from stages.settings import Model
from stages.shared.errors import SettingError, UserError, one_line

MIN_SIDE = 32  # pixels
MINUS_ONE_TO_ONE = ("MobileNetV2", "ResNet50V2")  # the pixels they want; the others preprocess raw ones themselves


def pooled_features(image: keras.KerasTensor, params: Model, weights: Path | str) -> keras.KerasTensor:
    """Connect the base to raw 0-255 images (N, H, W, C), grey or RGB; return its pooled features, float32 (N, F).

    `weights`: ``random``, ``imagenet`` (which Keras downloads) or a file; for the backbone ``file``, the base itself.
    Raises `UserError` if the images are too small or of another kind, or the weights are not found or do not fit.
    """
    height, width, channels = image.shape[1:]
    if min(height, width) < MIN_SIDE or channels not in (1, 3):
        expected = f"grey or RGB images of at least {MIN_SIDE}x{MIN_SIDE}, not {height}x{width}x{channels}"
        raise SettingError("model.backbone", params.backbone, f"{expected}: data.image_size")
    if params.backbone == "file" and not (isinstance(weights, Path) and weights.suffix == ".keras" and channels == 3):
        expected = "null, or RGB images and a .keras file as model.weights"
        raise SettingError("model.backbone", params.backbone, expected)
    x = image if channels == 3 else keras.layers.Concatenate(name="rgb")([image] * 3)
    if params.backbone in MINUS_ONE_TO_ONE:
        x = keras.layers.Rescaling(1 / 127.5, -1, name="rescale")(x)
    base = _build(x, params, weights)
    for layer in base.layers:
        if isinstance(layer, keras.layers.Dropout):  # stochastic depth, which would go on while frozen
            layer.rate = 0.0
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = weights == "random"
    if len(base.output.shape) == 4:
        pooling = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}[params.pooling]
        return pooling(name="pooled")(base.output)
    return base.output


def _build(x: keras.KerasTensor, params: Model, weights: Path | str) -> keras.Model:
    """Build the base on top of `x`, and load its weights."""
    name = str(params.backbone)
    try:
        if isinstance(weights, Path) and weights.suffix == ".keras":
            loaded = keras.models.load_model(weights, compile=False)
        if name == "file":
            if any(isinstance(layer, keras.Model) for layer in loaded.layers):
                raise ValueError("a model inside the model, expected all layers in one")
            model = keras.models.clone_model(loaded, input_tensors=x, clone_function=_clone_layer)
            model.set_weights(loaded.get_weights())
            return model
        options = {"include_top": False, "input_tensor": x, "pooling": params.pooling}
        model = getattr(keras.applications, name)(weights="imagenet" if weights == "imagenet" else None, **options)
        if isinstance(weights, Path) and weights.suffix == ".keras":
            model.set_weights(loaded.get_weights()[: len(model.weights)])  # of a model with a head, the first ones
        elif isinstance(weights, Path):
            with warnings.catch_warnings(action="ignore"):  # a long one for each layer of another network
                model.load_weights(weights)
    except Exception as error:  # urllib, h5py and Keras raise nearly anything
        problem = one_line(error)
        if weights != "imagenet":
            raise UserError(f"{weights}: no weights of {name} that Keras can load: {problem}") from None
        raise UserError(
            f"data/raw/imagenet.yaml: {name}: the weights cannot be downloaded. Keras says: {problem}\n"
            "By hand: put that file into ~/.keras/models, where Keras checks its hash, and run again."
            "\nOr name other weights: a .keras or .h5 file, or a pointer with mirrors (docs/settings.md#backbones)."
            "\nWithout any: `dvc exp run -S model.weights=data/raw/random.yaml` starts from random ones."
        ) from None
    return model


def _clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Clone a layer; TensorFlow, which exports models, takes no name that begins with an underscore."""
    name = layer.name if layer.name[0] != "_" else f"base{layer.name}"
    return type(layer).from_config(layer.get_config() | {"name": name})


def base_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """List the layers of the base: those before the first dropout, in the notebook's network, too."""
    names = [layer.name for layer in model.layers]
    return model.layers[: names.index("dropout1")] if "dropout1" in names else []


def batch_normalization(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """List the layers of batch normalisation."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def update_statistics(model: keras.Model, x: np.ndarray, batch_size: int) -> None:
    """Set the moving averages of trained batch normalisation to the averages over images (N, H, W, C).

    With Keras's momentum of 0.99 or 0.999 they may still be those of the first steps, when the weights were others.
    """
    layers = [layer for layer in batch_normalization(model) if layer.trainable]
    momentum = [layer.momentum for layer in layers]
    for count, start in enumerate(range(0, len(x) if layers else 0, batch_size)):
        for layer in layers:
            layer.momentum = count / (count + 1)  # the mean of all batches so far
        model(x[start : start + batch_size], training=True)
    for layer, given in zip(layers, momentum, strict=True):
        layer.momentum = given
