"""Artifact paths, atomic writes, checksums."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stages.shared.errors import UserError

PREPARED = Path("data/prepared")
MODELS = Path("models")
REPORTS = Path("reports")
# DVC trusts files in its cache that are write-protected, or as old as it knows them, as it does in the workspace.
HOW_TO_RESTORE = "delete it, type `find .dvc/cache/files -exec chmod u+w {} + -exec touch {} +`, then `dvc repro`"


def stage_folder(stage: str) -> Path:
    """Return a training stage's folder: ``history.csv``, ``predictions.csv``, ``gradcam.npz``, ``record.json``."""
    return REPORTS / stage


def timing_file(stage: str) -> Path:
    """Return the file with a stage's training time, apart from its folder: a rerun changes nothing else."""
    return REPORTS / "timing" / f"{stage}.json"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name when it is complete; raises `UserError` if writing fails."""
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: not a regular file, cannot be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file completely or not at all; raises `UserError` if that fails."""
    with atomic_file(path) as file:
        file.write(content)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def check_sha256(path: Path, expected: str, content: bytes) -> None:
    """Raise `UserError` if a file's content has another checksum than when it was written: DVC's cache checks none."""
    if sha256(content) != expected:
        raise UserError(f"{path}: damaged since it was written; {HOW_TO_RESTORE}")


def write_json(path: Path, values: dict) -> None:
    """Write values as JSON with their checksum under the key ``sha256``."""
    signed = values | {"sha256": sha256(json.dumps(values).encode())}
    write_atomic(path, (json.dumps(signed, indent=2) + "\n").encode())


def read_json(path: Path) -> dict:
    """Read a file that `write_json` wrote; raises `UserError` if it is damaged."""
    values = json.loads(path.read_text())
    check_sha256(path, values.pop("sha256", ""), json.dumps(values).encode())
    return values
