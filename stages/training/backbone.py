"""The base model: a network of ``keras.applications`` up to its pooled features."""

import warnings
from pathlib import Path

import keras

from stages.shared.errors import SettingError, UserError, one_line

MIN_SIDE = 32  # pixels


def pooled_features(image: keras.KerasTensor, name: str, weights: Path | str) -> keras.KerasTensor:
    """Connect a backbone to raw 0-255 images (N, H, W, C), grey or RGB; return its pooled features, float32 (N, F).

    `weights`: ``random``, ``imagenet`` (which Keras downloads) or a file. Raises `UserError` if the images are too
    small or of another kind, or the weights are not found or do not fit.
    """
    height, width, channels = image.shape[1:]
    if min(height, width) < MIN_SIDE or channels not in (1, 3):
        expected = f"grey or RGB images of at least {MIN_SIDE}x{MIN_SIDE}, not {height}x{width}x{channels}"
        raise SettingError("model.backbone", name, f"{expected}: data.image_size")
    x = image if channels == 3 else keras.layers.Concatenate(name="rgb")([image] * 3)
    if name == "ResNet50V2":  # the others preprocess raw pixels themselves
        x = keras.layers.Rescaling(1 / 127.5, -1, name="rescale")(x)
    model = _build(name, weights, {"include_top": False, "input_tensor": x, "pooling": "avg"})
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):  # stochastic depth, which would go on while frozen
            layer.rate = 0.0
    return model.output


def _build(name: str, weights: Path | str, options: dict) -> keras.Model:
    """Build a backbone and load its weights."""
    build = getattr(keras.applications, name)
    try:
        model = build(weights="imagenet" if weights == "imagenet" else None, **options)
        if isinstance(weights, Path) and weights.suffix == ".keras":
            count = len(model.weights)  # of a model with a head, the first ones
            model.set_weights(keras.models.load_model(weights, compile=False).get_weights()[:count])
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
