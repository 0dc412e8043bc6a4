"""List the pictures of a folder, with their labels: one sub-folder per class, or a CSV file that names them."""

import csv
import io
import os
from pathlib import Path, PureWindowsPath

import pandas as pd

from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.inputs import is_ignored

SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
COLUMNS = {  # of a list, by the headings that are in use
    "path": ("path", "file_name", "filename", "file", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "set", "subset"),
    "group": ("group",),
}


def list_pictures(folder: Path) -> pd.DataFrame:
    """List the folder's pictures in the order of their file names.

    Columns: path (in the folder), label, split (train, validation, test, or empty), group (or empty), name (of the
    file); attribute ``unused``: other columns of a list. Raises `UserError` if folder or list are laid out otherwise.
    """
    files = list_files(folder)
    lists = [path for path in files if path.suffix.lower() == ".csv" and len(path.parts) == 1]
    if len(lists) > 1:
        raise UserError(f"{folder}: {short_repr([str(path) for path in lists])}: expected one list of pictures (.csv)")
    table = _read_list(folder, folder / lists[0]) if lists else _read_layout(folder, files)
    if table.empty:
        raise UserError(f"{folder}: no pictures, expected {folder}/CLASS/PICTURE")
    given = table["split"].str.strip().str.lower()
    split = given.map(SPLIT_NAMES | {"": ""})
    if given.any() and (unknown := set(given) - set(SPLIT_NAMES)):
        expected = f"expected some of {list(SPLIT_NAMES)}, or none at all"
        raise UserError(f"{folder}: split {short_repr(sorted(unknown))}, {expected}")
    if given.any() and "train" not in set(split):
        raise UserError(f"{folder}: splits {sorted(set(given))}, expected train and, optionally, validation and test")
    table = table.assign(split=split, label=table["label"].str.normalize("NFC"))
    table["name"] = [Path(path).name for path in table["path"]]
    return table.sort_values(["name", "path"], ignore_index=True)


def list_files(folder: Path) -> list[Path]:
    """List the files below a folder, relative to it; hidden ones and those of the system are left out.

    Raises `UserError` for an entry that would be lost without a word: an empty or unreadable folder, one that is a link
    or has a name that ``.dvcignore`` excludes (DVC looks into neither), and a pipe, socket or device.
    """
    found: list[Path] = []
    for path, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        files = [name for name in names if name not in SYSTEM_FILES and not is_ignored(Path(name))]
        for entry in (Path(path, name) for name in (*folders, *files)):
            if entry.is_dir() and (entry.is_symlink() or is_ignored(Path(entry.name))):
                why = "a link to a folder" if entry.is_symlink() else "excluded by .dvcignore"
                raise UserError(f"{entry}: {why}, which DVC does not look into; expected a folder, under another name")
            if entry.exists() and not (entry.is_dir() or entry.is_file()):
                raise UserError(f"{entry}: not a regular file, expected a picture")
        if not folders and not files and Path(path) != folder:
            raise UserError(f"{path}: an empty folder, expected pictures, or no such folder")
        found += [Path(path, name).relative_to(folder) for name in files]
    return found


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}, expected a folder that can be read")


def _read_layout(folder: Path, files: list[Path]) -> pd.DataFrame:
    """Read labels, and splits if all folders at the top are named like some, from the names of folders."""
    tops = {path.parts[0].lower() for path in files if len(path.parts) > 1}
    level = 1 if tops and tops <= set(SPLIT_NAMES) else 0
    if alone := [path.as_posix() for path in files if len(path.parts) < level + 2]:
        some = f"{len(alone)} pictures in no class's folder ({', '.join(sorted(alone)[:3])})"
        raise UserError(f"{folder}: {some}, expected {folder}/CLASS/PICTURE")
    rows = [(path.as_posix(), path.parts[level], path.parts[0] if level else "", "") for path in files]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _read_list(folder: Path, path: Path) -> pd.DataFrame:
    """Read the CSV file that lists the pictures: UTF-8, separated by commas, semicolons or tabs."""
    expected = "expected columns path, label and, optionally, split and group"
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except (OSError, ValueError, csv.Error) as error:
        problem = "not UTF-8 (in Excel: CSV UTF-8)" if isinstance(error, UnicodeDecodeError) else one_line(error)
        raise UserError(f"{path}: {problem}, {expected}") from None
    header = [heading.strip().lower() for heading in rows[0]] if rows else []
    found = {name: [header.index(h) for h in headings if h in header] for name, headings in COLUMNS.items()}
    if not found["path"] or not found["label"] or max(map(len, found.values())) > 1 or "" in header:
        raise UserError(f"{path}: columns {short_repr(header)}, {expected}, each once")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path}: row {number} has {len(row)} values, expected {len(header)}, as the heading")
    table = pd.DataFrame({k: [row[i[0]] if i else "" for row in rows[1:]] for k, i in found.items()}, dtype=str)
    table.attrs["unused"] = [heading for i, heading in enumerate(header) if [i] not in found.values()]
    return table.assign(path=[_inside(folder, path, given) for given in table["path"]])


def _inside(folder: Path, path: Path, given: str) -> str:
    """Return a listed path relative to the folder; Windows' notation and absolute paths are understood."""
    parts = PureWindowsPath(given).parts
    if not PureWindowsPath(given).anchor and not (folder / given).is_file():
        given = "/".join(parts)
    elif folder.name in parts and (folder / (end := "/".join(parts[-parts[::-1].index(folder.name) :]))).is_file():
        given = end  # of an absolute path
    if not (folder / given).parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: {short_repr(given)}: expected paths in {folder}, which DVC tracks")
    return given
