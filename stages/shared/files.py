"""Where artifacts are, and how they are written whole and checked."""

import hashlib
import json
import subprocess
from pathlib import Path

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


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that no part of it is ever seen under its name; raises `UserError` if that fails."""
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: not a regular file, cannot be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}") from None


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
