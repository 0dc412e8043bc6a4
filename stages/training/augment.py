"""Random changes of the training images, new ones in every epoch: what an image shows stays the same."""

from collections.abc import Sequence

import keras

CHANGES: dict[str, tuple[type[keras.layers.Layer], dict]] = {  # at most: a tenth of the side, 14 degrees
    "flip": (keras.layers.RandomFlip, {"mode": "horizontal"}),
    "flip_vertical": (keras.layers.RandomFlip, {"mode": "vertical"}),
    "shift": (keras.layers.RandomTranslation, {"height_factor": 0.1, "width_factor": 0.1}),
    "rotation": (keras.layers.RandomRotation, {"factor": 0.04}),
    "zoom": (keras.layers.RandomZoom, {"height_factor": 0.1}),
    "contrast": (keras.layers.RandomContrast, {"factor": (0.2, 0.2)}),
}


def augmented(model: keras.Sequential, changes: Sequence[str]) -> keras.Sequential:
    """The model behind layers that change raw 0-255 images, (N, H, W, C), while it is trained, and only then.

    Both share their layers: what is trained in the one is trained in the other.
    """
    layers = [kind(**how, dtype="float32", name=name) for name, (kind, how) in CHANGES.items() if name in changes]
    return keras.Sequential([keras.Input(model.input_shape[1:]), *layers, model])
