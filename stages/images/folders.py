"""Read a folder of pictures."""

from collections import Counter
from pathlib import Path

import numpy as np

from stages.images.classes import check_class_names, choose_classes
from stages.images.dataset import Dataset
from stages.images.listing import list_pictures
from stages.images.pictures import HOW, read_in_parallel, read_picture
from stages.settings import MAX_SIDE, Data, Fit
from stages.shared.arrays import LazyArray, temporary_array
from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import PREPARED
from stages.shared.tasks import Side, Split

MAX_LISTED = 100  # unreadable files


def read_folder(folder: Path, size: tuple[int, int] | None, data: Data, sides: tuple[Side, ...]) -> Dataset:
    """Read the pictures of the classes chosen for `sides`, by file name, resized to `size` (H, W) if given.

    Raises `UserError` if the folder is laid out otherwise, or with a list of the unreadable files, unless
    ``data.unreadable`` is skip; and if a class has none but these.
    """
    table = list_pictures(folder)
    try:
        names = check_class_names(sorted(set(table["label"])))
    except ValueError as error:
        raise UserError(f"{folder}: names of classes: {error}") from None
    label = {name: i for i, name in enumerate(names)}
    chosen = [names[i] for side in sides for i in choose_classes(data, side, names, one_dataset=len(sides) > 1)]
    unused = [f"column of the list that is not used: {heading}" for heading in table.attrs.get("unused", ())]
    table = table[table["label"].isin(chosen)].reset_index(drop=True)
    pixels, read, notes, resized = _read_pixels(folder, table["path"].tolist(), size, data)
    if lost := set(table["label"]) - set(table["label"][read]):
        raise UserError(f"{folder}: classes {short_repr(sorted(lost))}: none of their files can be read")
    table["name"] = [one_line(path) for path in table["path"]]  # printable
    table, images, splits = table[read], LazyArray.of(pixels), {}
    for split, part in table.groupby("split"):
        y = part["label"].map(label).to_numpy()
        splits[str(split or "train")] = Split(images.take(part.index.to_numpy()), y, part["name"].to_numpy())
    groups = {name: group for name, group in zip(table["name"], table["group"], strict=True) if group}
    return Dataset(folder.name, names, splits, (*notes, *unused), groups=groups, resized=resized)


def _read_pixels(
    folder: Path, paths: list[str], size: tuple[int, int] | None, data: Data
) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Read pictures: uint8 (N, H, W, 3), which of them could be read, bool (N,), notes, and one resized in each way."""
    pixels, read = np.empty((0, 0, 0, 3), np.uint8), np.zeros(len(paths), bool)
    stored = np.zeros((len(paths), 2), int)  # sizes, (width, height)
    changes, failed = Counter[str](), list[str]()
    for i, picture in enumerate(read_in_parallel([folder / path for path in paths], size, data.fit)):
        if isinstance(picture, OSError):
            raise UserError(f"{folder / paths[i]}: {picture.strerror}, expected a file that can be read")
        if isinstance(picture, ValueError):
            failed.append(one_line(f"{paths[i]}: {picture}"))
            continue
        shape = picture.pixels.shape
        if not pixels.size and max(shape[:2]) <= MAX_SIDE:
            pixels = temporary_array((len(paths), *shape), PREPARED)
        if shape != pixels.shape[1:]:
            problem = "different sizes" if pixels.size else f"{shape[1]}x{shape[0]} pixels"
            expected = f"expected one size up to {MAX_SIDE}, or a size to resize them to, say -S data.image_size=64"
            raise UserError(f"{folder}: pictures of {problem}, {expected} (32 to 96 make sense)")
        pixels[i], read[i], stored[i] = picture.pixels, True, picture.stored
        changes.update(picture.changes)
    listed = [*failed[:MAX_LISTED], *([f"and {len(failed) - MAX_LISTED} more"] if len(failed) > MAX_LISTED else [])]
    if failed and (data.unreadable == "stop" or not read.any()):
        advice = "\nRemove them, or set data.unreadable=skip" if data.unreadable == "stop" else ""
        head = f"{folder}: {len(failed)} of {len(paths)} files cannot be read:"
        raise UserError("\n  ".join([head, *listed]) + advice)
    height, width = pixels.shape[1:3]
    notes = [_describe_sizes(stored[read], (width, height), data.fit)]
    notes += [f"{change}: {count}" for change, count in sorted(changes.items())]
    resized = np.empty((0, *pixels.shape[1:]), np.uint8)
    oblong = np.flatnonzero(stored[:, 0] * height != stored[:, 1] * width)
    if size and len(oblong):
        resized = np.stack([read_picture(folder / paths[oblong[0]], size, fit).pixels for fit in HOW])
    return pixels, read, [*notes, *(f"skipped: {text}" for text in listed)], resized


def _describe_sizes(stored: np.ndarray, size: tuple[int, int], fit: Fit) -> str:
    """Describe the sizes of pictures, as `stored`, int (N, 2), and as resized, all (width, height)."""
    (least, low), (most, high) = stored.min(axis=0), stored.max(axis=0)
    sizes = f"{least}x{low}" if (least, low) == (most, high) else f"{least} to {most} x {low} to {high}"
    resized = "" if (stored == size).all() else f", resized to {size[0]}x{size[1]}: {HOW[fit]}"
    return f"{len(stored)} pictures of {sizes} pixels{resized}"
