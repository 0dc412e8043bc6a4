"""Data augmentation: random changes of the training images, new ones in every epoch."""

from collections.abc import Sequence

import keras
import tensorflow as tf

LAYERS: dict[str, tuple[type[keras.layers.Layer], dict]] = {  # at most: a tenth of the side, 14 degrees
    "flip": (keras.layers.RandomFlip, {"mode": "horizontal"}),
    "flip_vertical": (keras.layers.RandomFlip, {"mode": "vertical"}),
    "shift": (keras.layers.RandomTranslation, {"height_factor": 0.1, "width_factor": 0.1}),
    "rotation": (keras.layers.RandomRotation, {"factor": 0.04}),
    "zoom": (keras.layers.RandomZoom, {"height_factor": 0.1}),
    "contrast": (keras.layers.RandomContrast, {"factor": (0.2, 0.2)}),
    "colour": (keras.layers.RandomColorJitter, dict.fromkeys(("brightness_factor", "saturation_factor"), 0.2)),
    "erasing": (keras.layers.RandomErasing, {"factor": 0.5}),
    "rand_augment": (keras.layers.RandAugment, {}),
}
MIXING: dict[str, type[keras.layers.Layer]] = {"mixup": keras.layers.MixUp, "cutmix": keras.layers.CutMix}


def with_augmentation(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Prepend augmentation layers to a model, which change raw 0-255 images (N, H, W, C) in training only.

    Without names of such layers it is the model itself. Both share their layers: training the one trains the other.
    """
    if not set(names) & set(LAYERS):
        return model
    layers = [kind(**options, dtype="float32", name=name) for name, (kind, options) in LAYERS.items() if name in names]
    return keras.Sequential([keras.Input(model.input_shape[1:]), *layers, model])


class Mixing(keras.callbacks.Callback):
    """Mix the images of a batch, and their labels alike: MixUp, CutMix; in an order determined by seed and epoch."""

    def __init__(self, names: Sequence[str], seed: int):
        super().__init__()
        self.seed, self.layers = seed, [MIXING[name](dtype="float32") for name in names if name in MIXING]

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the epoch's random numbers, counted from 0, as a resumed training does."""
        for layer in self.layers:
            layer.generator.state.assign([self.seed, epoch])

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mix images, (N, H, W, C), and one-hot labels, float32 (N, classes)."""
        batch = {"images": tf.cast(images, tf.float32), "labels": labels}
        for layer in self.layers:
            batch = layer(batch, training=True)
        return batch["images"], batch["labels"]
