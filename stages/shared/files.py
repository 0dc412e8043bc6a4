"""Where artifacts are, and how they are written whole and checked."""

import hashlib
import json
import math
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from stages.shared.errors import UserError

PREPARED = Path("data/prepared")
MODELS = Path("models")
REPORTS = Path("reports")
# DVC trusts write-protected files in its cache.
HOW_TO_HEAL = "`chmod -R u+w .dvc/cache/files` makes DVC check its copies, then `dvc repro`"


def artifact(kind: str, stage: str) -> Path:
    """The file of a stage in ``reports/``; `kind` is history, predictions, gradcam, record or timing."""
    suffix = {"history": "csv", "predictions": "csv", "gradcam": "npz"}.get(kind, "json")
    return REPORTS / kind / f"{stage}.{suffix}"


def is_ignored(path: Path) -> bool:
    """Whether `.dvcignore` leaves a file out of what DVC tracks: hidden ones, caches, and what editors leave."""
    return any(part[0] == "." or part == "__pycache__" for part in path.parts) or path.name.endswith(("~", ".swp"))


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A large file to write, which gets its name once it is whole; raises `UserError` if that fails.

    Until then it has none if the system can do that (Linux), so that nothing stays behind however the process ends.
    """
    unfinished = _unfinished(path)
    try:
        try:
            file = os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
        except (AttributeError, OSError):  # another system, or file system
            file = unfinished.open("w+b")
        with file:
            yield file
            file.flush()
            if os.fstat(file.fileno()).st_nlink == 0:
                unfinished.unlink(missing_ok=True)
                # With src_dir_fd Python follows the link in /proc, see linkat(2); the path is absolute.
                os.link(f"/proc/self/fd/{file.fileno()}", unfinished, src_dir_fd=0)
            unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a small file so that no part of it is ever seen under its name; raises `UserError` if that fails."""
    unfinished = _unfinished(path)
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}") from None


def _unfinished(path: Path) -> Path:
    """The name that a file has while it is written; raises `UserError` if it cannot be written."""
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: not a regular file, cannot be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.unfinished")


def refuse_without_room(path: Path, size: int) -> None:
    """Raise `UserError` if the disk of a file or folder has no room for so many bytes; its folder is made."""
    folder = path if path.is_dir() else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{path}: takes {size / 1e9:,.1f} GB, expected less than is free there, {free / 1e9:,.1f} GB")


def temporary_array(shape: tuple[int, ...], dtype: DTypeLike, folder: Path) -> np.ndarray:
    """An array to be filled that is a file without a name in `folder`, gone with the process.

    Raises `UserError` if the disk has no room for it.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_without_room(folder, size)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Room is taken at once if the system can: a disk that fills up later would kill the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    return np.frombuffer(mapped, dtype, math.prod(shape)).reshape(shape)


def refuse_untracked(path: Path) -> None:
    """Raise `UserError` if Git sees the file, or one in the folder, but does not have it."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", str(path)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    except (OSError, ValueError):  # no Git here, or no file name
        return
    if found:
        what = f"{found}: not under version control, and an experiment would put it into Git"
        raise UserError(f"{what}: `dvc add {path}`, or `git add {found}` if Git has the others")


def write_sealed(path: Path, values: dict) -> None:
    """Write values as JSON with their checksum, as DVC does not check what it takes from its cache."""
    sealed = values | {"sha256": sha256(json.dumps(values).encode())}
    write_whole(path, (json.dumps(sealed, indent=2) + "\n").encode())


def read_sealed(path: Path) -> dict:
    """Read what `write_sealed` wrote; raises `UserError` if it is damaged."""
    values = json.loads(path.read_text())
    check_sha256(path, values.pop("sha256", ""), json.dumps(values).encode())
    return values


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def check_sha256(path: Path, expected: str, content: bytes) -> None:
    """Raise `UserError` if the bytes are not those that were written."""
    if sha256(content) != expected:
        raise UserError(f"{path}: damaged since it was written; {HOW_TO_HEAL}")
