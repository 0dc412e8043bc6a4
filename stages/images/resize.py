"""Bring images to one size and to the same channels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from stages.images.dataset import Dataset
from stages.shared.errors import UserError

Fit = Literal["crop", "pad", "stretch"]
HOW: dict[Fit, str] = {
    "crop": "shorter side, then centre cropped",
    "pad": "longer side, then padded",
    "stretch": "stretched",
}


def resize(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Resize a picture to the size (H, W), see `HOW`."""
    if fit == "stretch":
        return picture.resize(size[::-1], Image.Resampling.BICUBIC)
    return {"crop": ImageOps.fit, "pad": ImageOps.pad}[fit](picture, size[::-1], Image.Resampling.BICUBIC)


def resize_dataset(path: Path, dataset: Dataset, size: tuple[int, int], fit: Fit) -> Dataset:
    """Resize all images to (H, W); raises `UserError` unless they have 1, 3 or 4 channels."""
    _, *old, channels = dataset.splits["train"].x.shape
    if tuple(old) == size:
        return dataset
    if channels not in (1, 3, 4):
        raise UserError(f"{path}: images of {channels} channels, expected 1, 3 or 4 to resize them: data.image_size")

    def resize_all(images: np.ndarray) -> np.ndarray:
        pictures = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in images)
        return np.stack([np.asarray(resize(picture, size, fit)).reshape(*size, channels) for picture in pictures])

    note = f"resized from {old[1]}x{old[0]} to {size[1]}x{size[0]} pixels: {HOW[fit]}"
    return _map(dataset, resize_all, (*size, channels), note)


def to_rgb(dataset: Dataset) -> Dataset:
    """Convert grey images to RGB."""
    height, width, channels = dataset.splits["train"].x.shape[1:]
    if channels == 3:
        return dataset
    return _map(dataset, lambda images: images.repeat(3, axis=3), (height, width, 3), "grey made RGB")


def _map(
    dataset: Dataset, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int], note: str
) -> Dataset:
    """Apply a function to all images, which makes images of `shape`."""
    splits = {name: replace(split, x=split.x.map(function, shape)) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits, notes=(*dataset.notes, note))
