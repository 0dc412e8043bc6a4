"""Arrays in ``.npz`` files: checked before memory is taken, never unpickled, equal arrays in equal files.

Images can be larger than memory: they are written piece by piece, aligned, and mapped where they are.
"""

import struct
import zipfile
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from numpy.lib import format as npy
from tqdm import tqdm

from stages.shared.errors import UserError, one_line, shown
from stages.shared.files import PREPARED, refuse_without_room, temporary_array, whole_file
from stages.shared.process import memory

LARGEST_RATIO = 200  # of compression; images never pack that well
HARMLESS_BYTES = 2**28
PIECE = 2**22  # bytes read or written at once
ALIGNMENT = 64  # bytes, of the first element in the file: TensorFlow uses such arrays where they are


class Pieces(Protocol):
    """An array that is made piece by piece along its first axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""

    @property
    def dtype(self) -> np.dtype:
        """Of the whole."""

    def pieces(self) -> Iterator[np.ndarray]:
        """The parts, in order."""


class Header(NamedTuple):
    """What an array in a file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_npz(
    path: Path,
    keys: tuple[str, ...],
    optional: tuple[str, ...] = (),
    check: Callable[[dict[str, Header]], None] = lambda _: None,
    mapped: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Read the named arrays of an ``.npz`` file, those that are `optional` if they are there.

    Those that are `mapped` take no memory: they stay in the file, or are unpacked into a temporary one. `check` sees
    the headers before any array is read, and may raise `UserError`. Raises `UserError` with one line if the file is
    missing, damaged, too large, lacks a key or holds Python objects; no code from it is ever run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked, packed = sum(member.file_size for member in archive.infolist()), path.stat().st_size
            if unpacked > max(HARMLESS_BYTES, LARGEST_RATIO * packed):
                raise UserError(f"{path}: {packed} bytes that unpack to {unpacked}, expected images, not a zip bomb")
            read = sum(m.file_size for m in archive.infolist() if m.filename.removesuffix(".npy") not in mapped)
            if read > memory():
                raise UserError(f"{path}: unpacks to {read} bytes, expected less than the memory, {memory()}")
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if missing := ", ".join(key for key in keys if key not in names):
                raise UserError(f"{path}: {missing}: missing, expected all of {keys}; there are {shown(sorted(names))}")
            there = [key for key in (*keys, *optional) if key in names]
            check({key: _member(path, archive, key, _read_header) for key in there})
            with path.open("rb") as raw:
                how = {
                    key: _mapper(raw, archive.getinfo(f"{key}.npy")) if key in mapped else _read_array for key in there
                }
                return {key: _member(path, archive, key, how[key]) for key in there}
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
    except UserError:
        raise
    except Exception as error:  # zlib, zipfile and numpy raise a dozen kinds on damaged bytes
        raise UserError(f"{path}: {key}: {one_line(error)}, expected an array as numpy.savez writes it") from None


def _read_header(file: Any, size: int) -> Header:
    return _shape_order_type(file, size)[0]


def _shape_order_type(file: Any, size: int) -> tuple[Header, bool]:
    """What the array says of itself, and whether it is in Fortran's order."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown npy version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"holds Python objects ({dtype}), expected plain numbers or text; never unpickled")
    if min(shape, default=0) < 0 or dtype.itemsize * prod(shape) != size - file.tell():
        raise ValueError(f"header says shape {shape} {dtype}, which does not fit its length")
    return Header(shape, dtype), fortran


def _read_array(file: Any, _: int) -> np.ndarray:
    return npy.read_array(file, allow_pickle=False)  # zipfile compares the checksum at the last byte


def _mapper(raw: IO[bytes], member: zipfile.ZipInfo) -> Callable[[Any, int], np.ndarray]:
    """How to map a member of the archive that is open as `raw`."""

    def read(file: Any, size: int) -> np.ndarray:
        (shape, dtype), fortran = _shape_order_type(file, size)
        start, order = file.tell(), "F" if fortran else "C"
        stored = member.compress_type == zipfile.ZIP_STORED
        unpacked = temporary_array((size - start,), np.uint8, PREPARED) if not stored and size > start else None
        at = 0
        while piece := file.read(PIECE):  # to the end, where zipfile compares the checksum
            if unpacked is not None:
                unpacked[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
        if 0 in shape:
            return np.empty(shape, dtype)
        if unpacked is not None:
            return unpacked.view(dtype).reshape(shape, order=order)  # type: ignore[call-overload]
        raw.seek(member.header_offset + 26)
        before = 30 + sum(struct.unpack("<HH", raw.read(4)))  # local header, name and extra field
        at = member.header_offset + before + start
        return np.memmap(raw, dtype, "c", at, shape, order).view(np.ndarray)  # type: ignore[call-overload]

    return read


def write_npz(path: Path, arrays: dict[str, np.ndarray | Pieces]) -> None:
    """Write arrays to an ``.npz`` file, all or nothing, not packed; equal arrays make equal files.

    Each array's elements begin at a multiple of `ALIGNMENT` bytes, by spaces in its header. Raises `UserError` if the
    disk has no room, before anything is written.
    """
    size = sum(prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    refuse_without_room(path, size)
    progress = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False)
    with progress, whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                member.write(_header(array.shape, array.dtype, file.tell()))
                for piece in [array] if isinstance(array, np.ndarray) else array.pieces():
                    member.write(piece.tobytes())
                    progress.update(piece.nbytes)


def _header(shape: tuple[int, ...], dtype: np.dtype, at: int) -> bytes:
    """The head of an array that begins `at` a position in the file, see ``numpy.lib.format``."""
    text = repr({"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    text += " " * (-(at + 10 + len(text) + 1) % ALIGNMENT) + "\n"
    return npy.magic(1, 0) + struct.pack("<H", len(text)) + text.encode("latin1")
