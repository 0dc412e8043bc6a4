"""Data augmentation: random changes of the training images, new ones in every epoch."""

from collections.abc import Sequence

import keras

LAYERS: dict[str, tuple[type[keras.layers.Layer], dict]] = {  # at most: a tenth of the side, 14 degrees
    "flip": (keras.layers.RandomFlip, {"mode": "horizontal"}),
    "flip_vertical": (keras.layers.RandomFlip, {"mode": "vertical"}),
    "shift": (keras.layers.RandomTranslation, {"height_factor": 0.1, "width_factor": 0.1}),
    "rotation": (keras.layers.RandomRotation, {"factor": 0.04}),
    "zoom": (keras.layers.RandomZoom, {"height_factor": 0.1}),
    "contrast": (keras.layers.RandomContrast, {"factor": (0.2, 0.2)}),
}


def with_augmentation(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Prepend augmentation layers to a model, which change raw 0-255 images (N, H, W, C) in training only.

    Without names it is the model itself. Both share their layers: training the one trains the other.
    """
    if not names:
        return model
    layers = [kind(**options, dtype="float32", name=name) for name, (kind, options) in LAYERS.items() if name in names]
    return keras.Sequential([keras.Input(model.input_shape[1:]), *layers, model])
