"""Decode and resize pictures: any common format, upright, as RGB."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pi_heif
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from stages.settings import Fit
from stages.shared.errors import one_line
from stages.shared.machine import memory_limit

pi_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # the limit is memory, see `BYTES`
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF", "BMP", "TIFF")
BYTES = 12  # of memory for each pixel, while a transparent picture is put on white
LARGE = 16_000_000  # pixels; larger pictures are decoded one at a time
_one_large = threading.Lock()
HOW: dict[Fit, str] = {
    "crop": "shorter side, then centre cropped",
    "pad": "longer side, then padded",
    "stretch": "stretched",
}


class Picture(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), its stored size, (width, height), and the changes made to it."""

    pixels: np.ndarray
    stored: tuple[int, int]
    changes: tuple[str, ...]


def read_picture(path: Path, size: tuple[int, int] | None, fit: Fit = "crop") -> Picture:
    """Read one picture as RGB: upright, the first of several frames, transparency on white, 16 bits as 8.

    With `size` (H, W), it is resized by `resize`. Raises `ValueError` with a reason in one line for a missing or
    damaged file, `OSError` for one that the system cannot read, `MemoryError`.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            stored = file.size
            if size:
                file.draft(None, (2 * max(size), 2 * max(size)))  # decodes a large JPEG smaller, which is quick
            pixels = file.size[0] * file.size[1]
            if BYTES * pixels > memory_limit() // 2:
                raise ValueError(f"{pixels:,} pixels, expected fewer: it takes more than half of this machine's memory")
            with _one_large if pixels > LARGE else nullcontext():
                picture, changes = _to_rgb(file)
                if size and picture.size != size[::-1]:
                    picture = resize(picture, size, fit)
                return Picture(np.asarray(picture), stored, tuple(changes))
    except UnidentifiedImageError:
        raise ValueError(f"none of {', '.join(FORMATS)}") from None
    except FileNotFoundError as error:
        raise ValueError(error.strerror) from None
    except Exception as error:  # damaged pictures raise nearly anything
        if isinstance(error, MemoryError) or getattr(error, "errno", None):  # the system's, no property of the picture
            raise
        raise ValueError(one_line(error)) from None


def resize(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Resize a picture to the size (H, W), see `HOW`."""
    if fit == "stretch":
        return picture.resize(size[::-1], Image.Resampling.BICUBIC)
    return {"crop": ImageOps.fit, "pad": ImageOps.pad}[fit](picture, size[::-1], Image.Resampling.BICUBIC)


def _to_rgb(file: Image.Image) -> tuple[Image.Image, list[str]]:
    """Decode an open file; returns the picture as RGB, and the changes made."""
    changes = []
    try:
        changes += ["turned as EXIF says"] if file.getexif().get(ExifTags.Base.Orientation) in range(2, 9) else []
    except (SyntaxError, ValueError, TypeError, LookupError, EOFError):  # Pillow's
        changes.append("damaged EXIF data ignored")
    picture = ImageOps.exif_transpose(file)  # loads it, which turns a TIFF; ignores EXIF data that did not open
    if picture.mode in ("I", "F"):
        raise ValueError("32-bit pixels, expected 8 or 16")
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture, float)
        dark = ", nearly black: no value above 4095 of 65535, expected the full range"
        changes.append(f"16 bit made 8{dark if values.max() < 2**12 else ''}")
        picture = Image.fromarray((values / 257).astype(np.uint8))
    if picture.has_transparency_data and np.asarray(rgba := picture.convert("RGBA"))[..., 3].min() < 255:
        changes.append("transparent, put on white")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), rgba)
    if picture.mode in ("1", "L"):
        changes.append("greyscale")
    return picture.convert("RGB"), changes


def read_in_parallel(
    paths: list[Path], size: tuple[int, int] | None, fit: Fit
) -> Iterator[Picture | ValueError | OSError]:
    """Read pictures on all cores, showing progress; yields a `Picture` or its error, see `read_picture`, in order."""

    def read(path: Path) -> Picture | ValueError | OSError:
        try:
            return read_picture(path, size, fit)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), unit=" pictures", disable=None) as progress:
        for start in range(0, len(paths), 1000):  # bounds the pictures that wait in memory
            for picture in pool.map(read, paths[start : start + 1000]):
                progress.update()
                yield picture
