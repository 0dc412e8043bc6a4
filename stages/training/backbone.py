"""A network of ``keras.applications`` up to its pooled features, and the weights that it starts from."""

from pathlib import Path

import keras

from stages.shared.errors import UserError, one_line

SMALLEST = 32  # pixels a side


def outputs(image: keras.KerasTensor, name: str, weights: Path | str) -> keras.KerasTensor:
    """The features, pooled, float32 (N, F), that a backbone makes of raw 0-255 images (N, H, W, C), grey or RGB.

    `weights` are `random`, `imagenet` (which Keras downloads) or a file. Raises `UserError` if the images are too small
    or of another kind, or the weights cannot be had or do not fit.
    """
    height, width, channels = image.shape[1:]
    if min(height, width) < SMALLEST or channels not in (1, 3):
        wanted = f"expected grey or RGB ones of at least {SMALLEST}x{SMALLEST}: data.image_size"
        raise UserError(f"params.yaml: model.backbone: images of {height}x{width}x{channels}, {wanted}")
    x = image if channels == 3 else keras.layers.Concatenate(name="rgb")([image] * 3)
    if name == "ResNet50V2":  # the others prepare raw pixels themselves
        x = keras.layers.Rescaling(1 / 127.5, -1, name="rescale")(x)
    model = _with_weights(name, weights, {"include_top": False, "input_tensor": x, "pooling": "avg"})
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):  # of whole branches, which would go on while frozen
            layer.rate = 0.0
    return model.output


def _with_weights(name: str, weights: Path | str, options: dict) -> keras.Model:
    build = getattr(keras.applications, name)
    try:
        model = build(weights="imagenet" if weights == "imagenet" else None, **options)
        if isinstance(weights, Path) and weights.suffix == ".keras":
            count = len(model.weights)  # of a model with a top, the first ones
            model.set_weights(keras.models.load_model(weights, compile=False).get_weights()[:count])
        elif isinstance(weights, Path):
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
