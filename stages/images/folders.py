"""Read a folder of pictures: one sub-folder per class, or a CSV file that lists them."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from stages.images.dataset import Dataset, validate_dataset
from stages.images.pictures import read_in_parallel
from stages.settings import Data
from stages.shared.arrays import LazyArray, temporary_array
from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import PREPARED
from stages.shared.inputs import is_ignored

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
MAX_LISTED = 100  # unreadable files


def read_folder(folder: Path, size: tuple[int, int] | None, data: Data, seed: int) -> Dataset:
    """Read all pictures of a folder, in the order of their file names, resized to `size` (H, W) if given.

    A test split is made if there is none. Raises `UserError` if the folder is laid out otherwise, or with a list of
    the unreadable files, unless ``data.unreadable`` is skip.
    """
    table = _list_pictures(folder)
    pixels, changes, sizes, failed = np.empty((0, 0, 0, 3), np.uint8), Counter[str](), set[tuple[int, int]](), []
    read = np.zeros(len(table), bool)
    for i, picture in enumerate(read_in_parallel([folder / path for path in table["path"]], size)):
        if isinstance(picture, ValueError):
            failed.append(one_line(f"{table['path'][i]}: {picture}"))
            continue
        if not read.any():
            pixels = temporary_array((len(table), *picture.pixels.shape), np.uint8, PREPARED)
        if picture.pixels.shape != pixels.shape[1:]:
            expected = "expected one size, or a size to resize them to, say -S data.image_size=64 (32 to 96 make sense)"
            raise UserError(f"{folder}: pictures of different sizes, {expected}")
        pixels[i], read[i] = picture.pixels, True
        changes.update(picture.changes)
        sizes.add(picture.stored)
    failed[MAX_LISTED:] = [f"and {len(failed) - MAX_LISTED} more"] if len(failed) > MAX_LISTED else []
    if failed and (data.unreadable == "stop" or not read.any()):
        head = f"{folder}: {(~read).sum()} of {len(read)} files cannot be read:"
        raise UserError("\n  ".join([head, *failed]) + "\nRemove them, or set data.unreadable=skip")
    notes = [_describe_sizes(int(read.sum()), sizes, pixels.shape[1:3])]
    notes += [f"{change}: {count}" for change, count in sorted(changes.items())]
    notes += [f"skipped: {text}" for text in failed]
    images = LazyArray.of(pixels).take(np.flatnonzero(read))
    return _split(folder, table[read], images, data.test_fraction, seed, notes)


def _list_pictures(folder: Path) -> pd.DataFrame:
    """List the folder's pictures in the order of their names: columns path (in the folder), label, split (or empty)."""
    if links := [path.name for path in folder.iterdir() if path.is_symlink() and path.is_dir()]:
        raise UserError(f"{folder}: {short_repr(links)}: links to folders, expected folders")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = [path for path in found if path.name not in SYSTEM_FILES and not is_ignored(path)]
    lists = [path for path in files if path.suffix.lower() == ".csv" and len(path.parts) == 1]
    if lists:
        return _read_list(folder, lists)
    tops = {path.parts[0].lower() for path in files if len(path.parts) > 1}
    level = 1 if tops and tops <= set(SPLIT_NAMES) else 0
    if alone := [path.as_posix() for path in files if len(path.parts) < level + 2]:
        some = f"{len(alone)} pictures in no class's folder ({', '.join(sorted(alone)[:3])})"
        raise UserError(f"{folder}: {some}, expected {folder}/CLASS/PICTURE")
    rows = [(path.as_posix(), path.parts[level], path.parts[0].lower() if level else "") for path in files]
    return _check_table(folder, pd.DataFrame(rows, columns=["path", "label", "split"]))


def _read_list(folder: Path, lists: list[Path]) -> pd.DataFrame:
    """Read the CSV file that lists the pictures."""
    if len(lists) > 1:
        raise UserError(f"{folder}: {short_repr([str(path) for path in lists])}: expected one list of pictures (.csv)")
    path = folder / lists[0]
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {one_line(error)}, expected columns path, label and, optionally, split") from None
    if not {"path", "label"} <= set(table) <= {"path", "label", "split"}:
        raise UserError(f"{path}: columns {short_repr(list(table))}, expected path, label and, optionally, split")
    outside = [p for p in table["path"] if Path(p).is_absolute() or ".." in Path(p).parts]
    if outside:
        raise UserError(f"{path}: {short_repr(outside)}: expected paths in {folder}, which DVC tracks")
    return _check_table(folder, table if "split" in table else table.assign(split=""))


def _check_table(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Name splits train and test: val is the test split if there is no other, else trained on."""
    if table.empty:
        raise UserError(f"{folder}: no pictures, expected {folder}/CLASS/PICTURE")
    given = set(table["split"])
    if given != {""} and (unknown := given - set(SPLIT_NAMES)):
        expected = f"expected some of {list(SPLIT_NAMES)}, or none at all"
        raise UserError(f"{folder}: split {short_repr(sorted(unknown))}, {expected}")
    splits = table["split"].map(SPLIT_NAMES | {"": ""})
    splits = splits.replace({"val": "train" if "test" in set(splits) else "test"})
    if given != {""} and set(splits) != {"train", "test"}:
        raise UserError(f"{folder}: splits {sorted(given)}, expected train and test (or val), or none")
    table = table.assign(split=splits, name=[Path(path).name for path in table["path"]])
    return table.sort_values(["name", "path"], ignore_index=True)


def _describe_sizes(count: int, stored: set[tuple[int, int]], size: tuple[int, ...]) -> str:
    (least, low), (most, high) = (map(choose, zip(*stored, strict=True)) for choose in (min, max))
    sizes = f"{least}x{low}" if len(stored) == 1 else f"{least} to {most} x {low} to {high}"
    resized = "" if stored == {size[::-1]} else f", shorter side resized and centre cropped to {size[1]}x{size[0]}"
    return f"{count} pictures of {sizes} pixels{resized}"


def _split(
    folder: Path, table: pd.DataFrame, images: LazyArray, test_fraction: float, seed: int, notes: list[str]
) -> Dataset:
    """Split pictures into train and test; equal pictures, by the hash of their pixels, never cross the split."""
    names = sorted(set(table["label"]))
    labels = table["label"].map({name: i for i, name in enumerate(names)}).to_numpy()
    hashes = np.array([hashlib.sha256(image.data).hexdigest() for batch in images.batches() for image in batch])
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    if (copies := len(labels) - len(first)) > 0:
        notes.append(f"exact duplicates: {copies}")
    if table["split"].iloc[0]:
        test = (table["split"] == "test").to_numpy()
        in_test = np.isin(group, group[test]) & ~test
        if in_test.any():
            notes.append(f"left out of the training images, as they are test images, too: {in_test.sum()}")
        train = ~test & ~in_test
    else:
        rng, in_test_group = np.random.default_rng(seed), np.zeros(len(first), bool)
        for label, name in enumerate(names):
            groups = rng.permutation(np.flatnonzero(labels[first] == label))
            if len(groups) < 2:
                expected = "expected at least 2, one of them for testing"
                raise UserError(f"{folder}: class {short_repr(name)} has {len(groups)} different pictures, {expected}")
            in_test_group[groups[: min(len(groups) - 1, max(1, round(test_fraction * len(groups))))]] = True
        test = in_test_group[group]
        train = ~test
        notes.append(f"test images split off, of all classes: {test.sum()}")
    arrays = {"y_train": labels[train], "y_test": labels[test], "class_names": np.array(names)}
    x_train, x_test = (images.take(np.flatnonzero(rows)) for rows in (train, test))
    return validate_dataset(folder, x_train, x_test, arrays, tuple(notes))
