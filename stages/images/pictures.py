"""Decode pictures: any common format, upright, as RGB."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from stages.images.resize import crop_to_fit
from stages.shared.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
ORIENTATION = 0x0112  # EXIF tag


class Picture(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), its stored size, (width, height), and the changes made to it."""

    pixels: np.ndarray
    stored: tuple[int, int]
    changes: tuple[str, ...]


def read_picture(path: Path, size: tuple[int, int] | None) -> Picture:
    """Read one picture as RGB: upright, the first of several frames, transparency on white, 16 bits as 8.

    With `size` (H, W), it is resized by `crop_to_fit`. Raises `ValueError` with a reason in one line.
    """
    changes = []
    try:
        with Image.open(path, formats=FORMATS) as file:
            stored = file.size
            if size:
                file.draft(None, (2 * max(size), 2 * max(size)))  # decodes a large JPEG smaller, which is quick
            picture: Image.Image = ImageOps.exif_transpose(file)
            if file.getexif().get(ORIENTATION) in range(2, 9):
                changes.append("turned as EXIF says")
            if picture.mode in ("I", "F"):
                raise ValueError("32-bit pixels, expected 8 or 16")
            if picture.mode.startswith("I;16"):
                changes.append("16 bit made 8")
                picture = Image.fromarray((np.asarray(picture, float) / 257).clip(0, 255).astype(np.uint8))
            rgba = picture.convert("RGBA") if picture.has_transparency_data else None
            if rgba and np.asarray(rgba)[..., 3].min() < 255:
                changes.append("transparent, put on white")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), rgba)
            if picture.mode in ("1", "L"):
                changes.append("greyscale")
            picture = picture.convert("RGB")
            if size and picture.size != size[::-1]:
                picture = crop_to_fit(picture, size)
            return Picture(np.asarray(picture), stored, tuple(changes))
    except UnidentifiedImageError:
        raise ValueError(f"none of {', '.join(FORMATS)}") from None
    except OSError as error:
        raise ValueError(error.strerror or one_line(error)) from None
    except Exception as error:  # damaged pictures raise nearly anything
        raise ValueError(one_line(error)) from None


def read_in_parallel(paths: list[Path], size: tuple[int, int] | None) -> Iterator[Picture | ValueError]:
    """Read pictures on all cores, showing progress; yields a `Picture` or a `ValueError` for each, in order."""

    def read(path: Path) -> Picture | ValueError:
        try:
            return read_picture(path, size)
        except ValueError as error:
            return error

    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), unit=" pictures", disable=None) as progress:
        for start in range(0, len(paths), 1000):  # bounds the pictures that wait in memory
            for picture in pool.map(read, paths[start : start + 1000]):
                progress.update()
                yield picture
