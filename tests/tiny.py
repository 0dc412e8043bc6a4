"""A small dataset that can be learned, and settings for a small network on it."""

import numpy as np

CLASS_NAMES = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
TRAIN_PER_CLASS, TEST_PER_CLASS = 20, 10
TINY = {
    "threads": 1,
    "data.path": "data/raw/tiny.npz",
    "model.conv_filters": [4, 6],
    "model.dense_units": [12, 8],
    "model.rescale": True,
    "pretrain.epochs": 3,
    "pretrain.batch_size": 16,
    "finetune_output.epochs": 3,
    "finetune_output.batch_size": 16,
    "finetune_fc.epochs": 3,
    "finetune_fc.batch_size": 16,
}


def tiny_arrays(seed: int = 7) -> dict[str, np.ndarray]:
    """Make ten classes of 8x8x3 images, shuffled: one pattern per class, plus noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(40, 216, (len(CLASS_NAMES), 8, 8, 3))
    arrays = {"class_names": np.array(CLASS_NAMES)}
    for split, images in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        y = rng.permutation(np.repeat(np.arange(len(CLASS_NAMES)), images))
        noise = rng.normal(0, 50, (len(y), 8, 8, 3))
        arrays[f"x_{split}"] = np.clip(patterns[y] + noise, 0, 255).astype(np.uint8)
        arrays[f"y_{split}"] = y
    return arrays
