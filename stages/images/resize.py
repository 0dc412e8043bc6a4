"""Bring images to one size and to the same channels."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stages.images.dataset import Dataset
from stages.shared.errors import UserError


def crop_to_fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture's shorter side and crop the centre to the size (H, W)."""
    return ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC)


def resize_dataset(path: Path, dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """Resize all images to (H, W) with `crop_to_fit`; raises `UserError` unless they have 1, 3 or 4 channels."""
    _, *old, channels = dataset.x_train.shape
    if tuple(old) == size:
        return dataset
    if channels not in (1, 3, 4):
        raise UserError(f"{path}: images of {channels} channels, expected 1, 3 or 4 to resize them: data.image_size")

    def resize(images: np.ndarray) -> np.ndarray:
        pictures = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in images)
        return np.stack([np.asarray(crop_to_fit(picture, size)).reshape(*size, channels) for picture in pictures])

    train, test = (x.map(resize, (*size, channels)) for x in (dataset.x_train, dataset.x_test))
    note = f"resized from {old[1]}x{old[0]} to {size[1]}x{size[0]} pixels: shorter side, then centre cropped"
    return replace(dataset, x_train=train, x_test=test, notes=(*dataset.notes, note))


def to_rgb(dataset: Dataset) -> Dataset:
    """Convert grey images to RGB."""
    if dataset.x_train.shape[3] == 3:
        return dataset
    height, width, _ = dataset.x_train.shape[1:]
    repeat = functools.partial(np.repeat, repeats=3, axis=3)
    train, test = (x.map(repeat, (height, width, 3)) for x in (dataset.x_train, dataset.x_test))
    return replace(dataset, x_train=train, x_test=test, notes=(*dataset.notes, "grey made RGB"))
