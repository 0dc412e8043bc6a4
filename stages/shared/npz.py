"""Arrays in ``.npz`` files: checked before memory is taken, never unpickled, equal arrays in equal files."""

import io
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from stages.shared.errors import UserError, one_line, shown
from stages.shared.files import write_whole
from stages.shared.process import memory

LARGEST_RATIO = 200  # of compression; images never pack that well
HARMLESS_BYTES = 2**28


class Header(NamedTuple):
    """What an array in a file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_npz(
    path: Path,
    keys: tuple[str, ...],
    optional: tuple[str, ...] = (),
    check: Callable[[dict[str, Header]], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Read the named arrays of an ``.npz`` file, those that are `optional` if they are there.

    `check` sees the headers before any array is read, and may raise `UserError`. Raises `UserError` with one line if
    the file is missing, damaged, too large, lacks a key or holds Python objects; no code from it is ever run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked, packed = sum(member.file_size for member in archive.infolist()), path.stat().st_size
            if unpacked > max(HARMLESS_BYTES, LARGEST_RATIO * packed):
                raise UserError(f"{path}: {packed} bytes that unpack to {unpacked}, expected images, not a zip bomb")
            if unpacked > memory():
                raise UserError(f"{path}: unpacks to {unpacked} bytes, expected less than the memory, {memory()}")
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if missing := ", ".join(key for key in keys if key not in names):
                raise UserError(f"{path}: {missing}: missing, expected all of {keys}; there are {shown(sorted(names))}")
            there = [key for key in (*keys, *optional) if key in names]
            check({key: _member(path, archive, key, _read_header) for key in there})
            return {key: _member(path, archive, key, _read_array) for key in there}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected an .npz file") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: {one_line(error)}, expected an .npz file as numpy.savez writes it") from None


def _member(path: Path, archive: zipfile.ZipFile, key: str, read: Callable[[Any, int], Any]) -> Any:
    try:
        with archive.open(f"{key}.npy") as file:
            return read(file, archive.getinfo(f"{key}.npy").file_size)
    except MemoryError:
        raise UserError(f"{path}: {key}: too large for this machine's memory") from None
    except Exception as error:  # zlib, zipfile and numpy raise a dozen kinds on damaged bytes
        raise UserError(f"{path}: {key}: {one_line(error)}, expected an array as numpy.savez writes it") from None


def _read_header(file: Any, size: int) -> Header:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown npy version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"holds Python objects ({dtype}), expected plain numbers or text; never unpickled")
    if min(shape, default=0) < 0 or dtype.itemsize * prod(shape) != size - file.tell():
        raise ValueError(f"header says shape {shape} {dtype}, which does not fit its length")
    return Header(shape, dtype)


def _read_array(file: Any, _: int) -> np.ndarray:
    return npy.read_array(file, allow_pickle=False)  # zipfile compares the checksum at the last byte


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an ``.npz`` file, all or nothing; equal arrays make equal files."""
    buffer = io.BytesIO()
    in_order: dict[str, Any] = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    np.savez(buffer, **in_order)
    write_whole(path, buffer.getbuffer())
