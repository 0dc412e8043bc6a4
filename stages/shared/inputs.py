"""Check a stage's inputs: tracked by Git or DVC, and unchanged while it runs.

DVC hashes settings, code and data after the stage (dvc#11058).
"""

import functools
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from stages.settings import PARAMS, leaves
from stages.shared.errors import UserError
from stages.shared.yaml_files import parse_yaml, read_yaml

MAX_HASHED = 1_000_000  # bytes; data and larger files are compared by size and time
_at_start: dict[str, Any] = {}


def take_snapshot() -> None:
    """Note the inputs of the stage that DVC is starting in this process, if it is one."""
    _at_start.update(_inputs())


def check_unchanged() -> None:
    """Raise `UserError` if an input has changed since the stage started, so that DVC records nothing."""
    now = _inputs() if _at_start else {}
    for name in {**_at_start, **now}:
        if name not in now or name not in _at_start or now[name] != _at_start[name]:
            raise UserError(f"{name}: changed while the stage ran, so nothing is recorded; type `dvc repro` again")


def _inputs() -> dict[str, Any]:
    """Return the state of each file and setting that ``dvc.yaml`` declares for the running stage."""
    try:
        stage = parse_yaml(Path("dvc.yaml").read_text(), aliases=True)["stages"][os.environ["DVC_STAGE"]]
        params = dict(leaves(read_yaml(PARAMS, "the settings")))
        paths = [Path(re.sub(r"\$\{(.+?)\}", lambda found: str(params[found[1]]), dep)) for dep in stage["deps"]]
        inside = [file for path in paths for file in path.rglob("*") if not is_ignored(file.relative_to(path))]
        files = {file.as_posix(): _state(file, file.stat()) for file in (*paths, *inside) if file.is_file()}
    except (OSError, LookupError, TypeError, AttributeError, ValueError, UserError, yaml.YAMLError):
        return {}  # DVC runs no stage, or the stage itself will report the error
    return files | {f"{key} in {PARAMS}": value for key, value in params.items() if stage_reads(stage, key)}


def stage_reads(stage: dict, key: str) -> bool:
    """Return whether a stage of ``dvc.yaml`` declares a setting: itself, its section, or all of ``params.yaml``."""
    return any(isinstance(entry, dict) or f"{key}.".startswith(f"{entry}.") for entry in stage["params"])


def _state(file: Path, status: os.stat_result) -> Any:
    small = file.suffix in (".py", ".md", ".html", ".yaml") and status.st_size <= MAX_HASHED
    return _hash(file, status.st_mtime_ns) if small else (status.st_size, status.st_mtime_ns)


@functools.cache  # by time: an unchanged file is read once
def _hash(file: Path, mtime_ns: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_ignored(path: Path) -> bool:
    """Return whether ``.dvcignore`` excludes a file: hidden files, caches, editors' backups."""
    return any(part[0] == "." or part == "__pycache__" for part in path.parts) or path.name.endswith(("~", ".swp"))


def refuse_untracked(path: Path) -> None:
    """Raise `UserError` if Git neither tracks nor ignores the file, or one in the folder."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", str(path)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    except (OSError, ValueError):  # no Git, or no valid file name
        return
    if found:
        problem = f"{found}: not under version control, and an experiment would put it into Git"
        raise UserError(f"{problem}: `dvc add {path}`, or `git add {found}` if Git has the others")
