"""Pictures in a folder: one sub-folder per class, or a CSV file that lists them."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from stages.images.dataset import Dataset, Images, checked_dataset
from stages.settings import Data
from stages.shared.errors import UserError, one_line, shown
from stages.shared.files import PREPARED, is_ignored, temporary_array

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
PARTS = {name: part for part, names in {
    "train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing"),
}.items() for name in names}  # fmt: skip
SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
MOST_TOLD = 100  # files that cannot be read


class Picture(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), its size as stored, (width, height), and what was done to it."""

    pixels: np.ndarray
    stored: tuple[int, int]
    changes: tuple[str, ...]


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of the size (H, W): its shorter side resized to it, and the centre cropped."""
    return ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC)


def read_picture(path: Path, size: tuple[int, int] | None) -> Picture:
    """Read one picture as RGB, upright, of several frames the first, transparent parts on white, 16 bit as 8.

    If `size` (H, W) is given, it is `fitted`. Raises `ValueError` with a reason in one line if it cannot be read.
    """
    changes = []
    try:
        with Image.open(path, formats=FORMATS) as file:
            stored = file.size
            if size:
                file.draft(None, (2 * max(size), 2 * max(size)))  # a large JPEG is decoded smaller, which is quick
            picture: Image.Image = ImageOps.exif_transpose(file)
            if file.getexif().get(0x0112) in range(2, 9):
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
                picture = fitted(picture, size)
            return Picture(np.asarray(picture), stored, tuple(changes))
    except UnidentifiedImageError:
        raise ValueError(f"none of {', '.join(FORMATS)}") from None
    except OSError as error:
        raise ValueError(error.strerror or one_line(error)) from None
    except Exception as error:  # damaged pictures raise nearly anything
        raise ValueError(one_line(error)) from None


def in_parallel(paths: list[Path], size: tuple[int, int] | None) -> Iterator[Picture | ValueError]:
    """Read pictures with all cores, showing progress; yields a `Picture` or a `ValueError` for each, in their order."""

    def read(path: Path) -> Picture | ValueError:
        try:
            return read_picture(path, size)
        except ValueError as error:
            return error

    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), unit=" pictures", disable=None) as progress:
        for start in range(0, len(paths), 1000):  # what is read waits in memory
            for picture in pool.map(read, paths[start : start + 1000]):
                progress.update()
                yield picture


def read_pictures(folder: Path, size: tuple[int, int] | None, data: Data, seed: int) -> Dataset:
    """Read all pictures of a folder, in the order of their file names, brought to `size` (H, W) if it is given.

    A test part is split off if there is none. Raises `UserError` if the folder is laid out otherwise, or with a list of
    the files that cannot be read, unless ``data.unreadable`` is skip.
    """
    listed = _listed(folder)
    pixels, changes, stored, told = np.empty((0, 0, 0, 3), np.uint8), Counter[str](), set[tuple[int, int]](), []
    read = np.zeros(len(listed), bool)
    for i, picture in enumerate(in_parallel([folder / path for path in listed["path"]], size)):
        if isinstance(picture, ValueError):
            told.append(one_line(f"{listed['path'][i]}: {picture}"))
            continue
        if not read.any():
            pixels = temporary_array((len(listed), *picture.pixels.shape), np.uint8, PREPARED)
        if picture.pixels.shape != pixels.shape[1:]:
            wanted = "expected one size, or one to bring them to, say -S data.image_size=64 (32 to 96 make sense)"
            raise UserError(f"{folder}: pictures of different sizes, {wanted}")
        pixels[i], read[i] = picture.pixels, True
        changes.update(picture.changes)
        stored.add(picture.stored)
    told[MOST_TOLD:] = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    if told and (data.unreadable == "stop" or not read.any()):
        head = f"{folder}: {(~read).sum()} of {len(read)} files cannot be read:"
        raise UserError("\n  ".join([head, *told]) + "\nRemove them, or set data.unreadable=skip")
    notes = [_sizes(int(read.sum()), stored, pixels.shape[1:3])]
    notes += [f"{what}: {count}" for what, count in sorted(changes.items())] + [f"skipped: {text}" for text in told]
    images = Images.of(pixels).take(np.flatnonzero(read))
    return _in_parts(folder, listed[read], images, data.test_fraction, seed, notes)


def _listed(folder: Path) -> pd.DataFrame:
    """The folder's pictures in the order of their names: columns path (in the folder), label, part (or empty)."""
    if links := [path.name for path in folder.iterdir() if path.is_symlink() and path.is_dir()]:
        raise UserError(f"{folder}: {shown(links)}: links to folders, expected folders")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = [path for path in found if path.name not in SYSTEM_FILES and not is_ignored(path)]
    lists = [path for path in files if path.suffix.lower() == ".csv" and len(path.parts) == 1]
    if lists:
        return _by_list(folder, lists)
    tops = {path.parts[0].lower() for path in files if len(path.parts) > 1}
    level = 1 if tops and tops <= set(PARTS) else 0
    if alone := [path.as_posix() for path in files if len(path.parts) < level + 2]:
        some = f"{len(alone)} pictures in no class's folder ({', '.join(sorted(alone)[:3])})"
        raise UserError(f"{folder}: {some}, expected {folder}/CLASS/PICTURE")
    rows = [(path.as_posix(), path.parts[level], path.parts[0].lower() if level else "") for path in files]
    return _table(folder, pd.DataFrame(rows, columns=["path", "label", "part"]))


def _by_list(folder: Path, lists: list[Path]) -> pd.DataFrame:
    if len(lists) > 1:
        raise UserError(f"{folder}: {shown([str(path) for path in lists])}: expected one list of pictures (.csv)")
    path = folder / lists[0]
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {one_line(error)}, expected columns path, label and, optionally, split") from None
    if not {"path", "label"} <= set(table) <= {"path", "label", "split"}:
        raise UserError(f"{path}: columns {shown(list(table))}, expected path, label and, optionally, split")
    outside = [p for p in table["path"] if Path(p).is_absolute() or ".." in Path(p).parts]
    if outside:
        raise UserError(f"{path}: {shown(outside)}: expected paths in {folder}, which DVC tracks")
    return _table(folder, table.rename(columns={"split": "part"}) if "split" in table else table.assign(part=""))


def _table(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table with parts as PARTS names them: val is the test part if there is no other, else trained on."""
    if table.empty:
        raise UserError(f"{folder}: no pictures, expected {folder}/CLASS/PICTURE")
    given = set(table["part"])
    if given != {""} and (unknown := given - set(PARTS)):
        raise UserError(f"{folder}: split {shown(sorted(unknown))}, expected some of {list(PARTS)}, or none at all")
    parts = table["part"].map(PARTS | {"": ""})
    parts = parts.replace({"val": "train" if "test" in set(parts) else "test"})
    if given != {""} and set(parts) != {"train", "test"}:
        raise UserError(f"{folder}: parts {sorted(given)}, expected train and test (or val), or none")
    table = table.assign(part=parts, name=[Path(path).name for path in table["path"]])
    return table.sort_values(["name", "path"], ignore_index=True)


def _sizes(count: int, stored: set[tuple[int, int]], size: tuple[int, ...]) -> str:
    (least, low), (most, high) = (map(choose, zip(*stored, strict=True)) for choose in (min, max))
    sizes = f"{least}x{low}" if len(stored) == 1 else f"{least} to {most} x {low} to {high}"
    resized = "" if stored == {size[::-1]} else f", shorter side resized and centre cropped to {size[1]}x{size[0]}"
    return f"{count} pictures of {sizes} pixels{resized}"


def _in_parts(
    folder: Path, listed: pd.DataFrame, images: Images, test_fraction: float, seed: int, notes: list[str]
) -> Dataset:
    """A dataset of what was read; equal pictures, by the hash of their pixels, never stand on both sides."""
    names = sorted(set(listed["label"]))
    labels = listed["label"].map({name: i for i, name in enumerate(names)}).to_numpy()
    hashes = np.array([hashlib.sha256(image.data).hexdigest() for piece in images.pieces() for image in piece])
    _, first, same = np.unique(hashes, return_index=True, return_inverse=True)
    if (copies := len(labels) - len(first)) > 0:
        notes.append(f"exact duplicates: {copies}")
    if listed["part"].iloc[0]:
        test = (listed["part"] == "test").to_numpy()
        in_test = np.isin(same, same[test]) & ~test
        if in_test.any():
            notes.append(f"left out of the training images, as they are test images, too: {in_test.sum()}")
        train = ~test & ~in_test
    else:
        rng, in_test_group = np.random.default_rng(seed), np.zeros(len(first), bool)
        for label, name in enumerate(names):
            groups = rng.permutation(np.flatnonzero(labels[first] == label))
            if len(groups) < 2:
                wanted = "expected at least 2, one of them for testing"
                raise UserError(f"{folder}: class {shown(name)} has {len(groups)} different pictures, {wanted}")
            in_test_group[groups[: min(len(groups) - 1, max(1, round(test_fraction * len(groups))))]] = True
        test = in_test_group[same]
        train = ~test
        notes.append(f"test images split off, of all classes: {test.sum()}")
    arrays = {"y_train": labels[train], "y_test": labels[test], "class_names": np.array(names)}
    x_train, x_test = (images.take(np.flatnonzero(part)) for part in (train, test))
    return checked_dataset(folder, x_train, x_test, arrays, tuple(notes))
