"""Datasets as ``.npz`` files: checked when they are read, deterministic and whole when they are written."""

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.settings import UserError

# DEFLATE packs at most about 1000 to 1; images that pack better than this are no images.
LARGEST_RATIO = 200
HARMLESS_BYTES = 2**28


@dataclass(frozen=True)
class Dataset:
    """Images and labels as they came.

    x_train, x_test: uint8 (N, H, W, C), 0-255. y_train, y_test: int64 (N,), indices into `class_names`.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_size(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse what would not fit in memory before anything is unpacked."""
    unpacked, packed = sum(m.file_size for m in archive.infolist()), path.stat().st_size
    if unpacked > max(HARMLESS_BYTES, LARGEST_RATIO * packed):
        raise UserError(f"{path}: {packed} bytes that unpack to {unpacked}, expected images, not a zip bomb")
    if unpacked > _memory_bytes():
        raise UserError(f"{path}: unpacks to {unpacked} bytes, expected less than this machine's memory")


def _read_member(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """One array, its header compared with the bytes that are there before memory is taken for it."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if version[0] not in read_header:
            raise ValueError(f"unknown npy version {version}")
        shape, fortran_order, dtype = read_header[version[0]](file)
        if dtype.hasobject:
            raise ValueError(f"holds Python objects ({dtype}), expected plain numbers or text; never unpickled")
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if any(n < 0 for n in shape) or size != archive.getinfo(f"{key}.npy").file_size - file.tell():
            raise ValueError(f"header says shape {shape} {dtype}, which does not fit its length")
        array = np.empty(size, dtype=np.uint8)
        if file.readinto(memoryview(array)) != size:
            raise ValueError("ends too early")
        if file.read(1):  # reaches the end of the member, where zipfile compares the checksum
            raise ValueError("is longer than its header says")
    return array.view(dtype).reshape(shape, order="F" if fortran_order else "C")


def read_npz(path: Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Read the named arrays of an ``.npz`` file without running any code from it.

    Raises `UserError` with one line when the file is missing, damaged, too large, lacks a key or holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, archive)
            names = set(archive.namelist())
            missing = [key for key in keys if f"{key}.npy" not in names]
            if missing:
                there = sorted(name.removesuffix(".npy") for name in names)
                raise UserError(f"{path}: {', '.join(missing)}: missing, expected {', '.join(keys)}; there are {there}")
            return {k: _read_checked(path, archive, k) for k in (*keys, *optional) if f"{k}.npy" in names}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected an .npz file") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: {_one_line(error)}, expected an .npz file as numpy.savez writes it") from None


def _read_checked(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    try:
        return _read_member(archive, key)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: {key}: too large for this machine's memory") from None
    except Exception as error:  # zlib, zipfile and numpy raise a dozen kinds on damaged bytes
        raise UserError(f"{path}: {key}: {_one_line(error)}, expected an array as numpy.savez writes it") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _checked_images(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
        raise UserError(f"{path}: {key}: was {x.dtype} {x.shape}, expected uint8 images (N, H, W, C) or (N, H, W)")
    return x if x.ndim == 4 else x[..., None]


def _checked_labels(path: Path, key: str, y: np.ndarray, images: int) -> np.ndarray:
    if y.dtype.kind not in "iu" or y.shape not in ((images,), (images, 1)):
        raise UserError(f"{path}: {key}: was {y.dtype} {y.shape}, expected whole numbers ({images},), one per image")
    if y.min() < 0 or y.max() > np.iinfo(np.int64).max:
        raise UserError(f"{path}: {key}: labels {y.min()} to {y.max()}, expected 0 or more")
    return y.reshape(-1).astype(np.int64)


def _checked_names(path: Path, names: np.ndarray | None, largest: int) -> list[str]:
    if names is None:
        if largest >= 10_000:
            raise UserError(f"{path}: labels up to {largest}, expected label numbers below 10000, or class_names")
        return [str(label) for label in range(largest + 1)]
    try:
        texts = names.tolist()
        fits = (
            names.dtype.kind == "U" and names.ndim == 1 and len({text.encode() for text in texts} - {b""}) == len(texts)
        )
    except (ValueError, SystemError):  # numbers that are no characters
        fits = False
    if not fits:
        raise UserError(f"{path}: class_names: was {names.dtype} {names.shape}, expected different texts (classes,)")
    if largest >= len(texts):
        raise UserError(f"{path}: label {largest}, expected less than the number of class_names, {len(texts)}")
    return texts


def read_dataset(path: Path, class_names: list[str] | None = None) -> Dataset:
    """Read and check a dataset: ``x_train y_train x_test y_test`` and optionally ``class_names``.

    Images are uint8 (N, H, W, C) or (N, H, W), labels whole numbers (N,) or (N, 1).
    Raises `UserError` with one line naming file, key, what was found and what is expected.
    """
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"), optional=("class_names",))
    if class_names is not None:
        arrays.setdefault("class_names", np.array(class_names))
    return checked_dataset(path, arrays)


def checked_dataset(path: Path, arrays: dict[str, np.ndarray]) -> Dataset:
    """Check arrays from the file `path` and bring them into one shape; see `read_dataset`."""
    x_train, x_test = (_checked_images(path, key, arrays[key]) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(f"{path}: x_test: images {x_test.shape[1:]}, expected {x_train.shape[1:]} as in x_train")
    y_train = _checked_labels(path, "y_train", arrays["y_train"], len(x_train))
    y_test = _checked_labels(path, "y_test", arrays["y_test"], len(x_test))
    names = _checked_names(path, arrays.get("class_names"), int(max(y_train.max(), y_test.max())))
    return Dataset(x_train, y_train, x_test, y_test, names)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an ``.npz`` file, all or nothing; equal arrays make equal files."""
    buffer = io.BytesIO()
    np.savez(buffer, **{key: np.asarray(array, order="C") for key, array in arrays.items()})
    write_whole(path, buffer.getbuffer())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that no half of it is ever seen under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}") from None


def write_sealed(path: Path, values: dict) -> None:
    """Write values as JSON with a checksum of them: DVC does not look at what it hands out from its cache."""
    sealed = values | {"sha256": sha256(json.dumps(values).encode())}
    write_whole(path, (json.dumps(sealed, indent=2) + "\n").encode())


def read_sealed(path: Path) -> dict:
    """Read what `write_sealed` wrote; raises `UserError` when it is damaged."""
    values = json.loads(path.read_text())
    check_sha256(path, values.pop("sha256", ""), json.dumps(values).encode())
    return values


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_sha256(path: Path, expected: str, content: bytes) -> None:
    """Raise `UserError` where the bytes are not those that were written."""
    if sha256(content) != expected:
        raise UserError(
            f"{path}: damaged since it was written; `chmod -R u+w .dvc/cache/files` makes DVC look at its copies, "
            "then `dvc repro`"
        )
