"""Arrays in ``.npz`` files: checked before memory is taken, never unpickled; equal arrays make equal files."""

import struct
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from tqdm import tqdm

from stages.shared.arrays import BATCH_BYTES, LazyArray, check_free_space, temporary_array
from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import PREPARED, atomic_file
from stages.shared.machine import memory_limit

MAX_RATIO = 200  # of compression; images never compress that well
HARMLESS_BYTES = 2**28
ALIGNMENT = 64  # bytes, of an array's first element in the file: TensorFlow then uses it without a copy


class Header(NamedTuple):
    """The shape, type and memory order of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: Any = "C"


def read_npz(
    path: Path,
    keys: tuple[str, ...],
    optional: tuple[str, ...] = (),
    check: Callable[[dict[str, Header]], None] = lambda _: None,
    mapped: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Read the arrays `keys` of an ``.npz`` file, and those of `optional` that it has.

    Those in `mapped` stay in the file, or are unpacked into a temporary one. `check` gets all headers before any array
    is read and may raise `UserError`. Raises `UserError` with one line if the file is missing, damaged, too large,
    lacks a key or holds Python objects.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            _check_sizes(path, members, mapped)
            if missing := ", ".join(key for key in keys if key not in members):
                expected = f"expected all of {keys}; has {short_repr(sorted(members))}"
                raise UserError(f"{path}: {missing}: missing, {expected}")
            members = {key: members[key] for key in (*keys, *optional) if key in members}
            headers, arrays = {}, {}
            for key, member in members.items():
                where = f"{path}: {key}"
                with archive.open(member) as file:
                    headers[key] = _read_header(file, member)
            check(headers)
            for key, member in members.items():
                where = f"{path}: {key}"
                with archive.open(member) as file:  # zipfile compares the checksum at the last byte
                    arrays[key] = _map(path, file, member) if key in mapped else npy.read_array(file)
            return arrays
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{where}: too large for this machine's memory") from None
    except Exception as error:  # zlib, zipfile and numpy raise a dozen kinds on damaged bytes
        problem = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{where}: {problem}, expected an .npz file as numpy.savez writes it") from None


def is_bomb(packed: int, unpacked: int) -> bool:
    """Return whether a file of `packed` bytes unpacks to more than images or weights would."""
    return unpacked > max(HARMLESS_BYTES, MAX_RATIO * packed)


def _check_sizes(path: Path, members: dict[str, zipfile.ZipInfo], mapped: tuple[str, ...]) -> None:
    """Refuse zip bombs, and arrays that do not fit into memory."""
    unpacked, packed = sum(member.file_size for member in members.values()), path.stat().st_size
    if is_bomb(packed, unpacked):
        raise UserError(f"{path}: {packed} bytes that unpack to {unpacked}, expected images, not a zip bomb")
    read = sum(member.file_size for key, member in members.items() if key not in mapped)
    if read > memory_limit():
        raise UserError(f"{path}: unpacks to {read} bytes, expected less than the memory, {memory_limit()}")


def _read_header(file: IO[bytes], member: zipfile.ZipInfo) -> Header:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, fortran, dtype = readers[npy.read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError(f"holds Python objects ({dtype}), expected plain numbers or text; never unpickled")
    if min(shape, default=0) < 0 or dtype.itemsize * prod(shape) != member.file_size - file.tell():
        raise ValueError(f"header says shape {shape} {dtype}, which does not fit its length")
    return Header(shape, dtype, "F" if fortran else "C")


def _map(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> np.ndarray:
    """Map a stored array where it is, or unpack a compressed one into a temporary file; verify its checksum."""
    shape, dtype, order = _read_header(file, member)
    start, size = file.tell(), member.file_size - file.tell()
    if not size:
        return np.empty(shape, dtype)
    if member.compress_type == zipfile.ZIP_STORED:
        while file.read(BATCH_BYTES):  # to the end, where zipfile compares the checksum
            pass
        with path.open("rb") as raw:
            raw.seek(member.header_offset + 26)
            header = 30 + sum(struct.unpack("<HH", raw.read(4)))  # with name and extra field
            return np.memmap(raw, dtype, "c", member.header_offset + header + start, shape, order).view(np.ndarray)
    unpacked = temporary_array((size,), PREPARED)
    for at in range(0, size, BATCH_BYTES):
        file.readinto(unpacked[at : at + BATCH_BYTES].data)  # type: ignore[attr-defined]
    return unpacked.view(dtype).reshape(shape, order=order)


def write_npz(path: Path, arrays: dict[str, np.ndarray | LazyArray]) -> None:
    """Write arrays to an uncompressed ``.npz`` file, atomically.

    Each array's elements begin at a multiple of `ALIGNMENT` bytes, by spaces in its header. Raises `UserError` if the
    disk has no room, before anything is written.
    """
    size = sum(prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    check_free_space(path.parent, size)
    progress = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False, delay=1)
    with progress, atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                header = repr({"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape})
                header += " " * (-(file.tell() + 10 + len(header) + 1) % ALIGNMENT) + "\n"
                member.write(npy.magic(1, 0) + struct.pack("<H", len(header)) + header.encode("latin1"))
                for batch in [array] if isinstance(array, np.ndarray) else array.batches():
                    member.write(batch.tobytes())
                    progress.update(batch.nbytes)
