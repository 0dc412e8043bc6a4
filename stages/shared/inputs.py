"""Check a stage's inputs: tracked by Git or DVC, and unchanged while it runs.

DVC hashes settings, code and data after the stage (dvc#11058).
"""

import hashlib
import os
import re
import subprocess
from pathlib import Path
from shlex import quote
from typing import Any

from stages.settings import PARAMS, leaves
from stages.shared.errors import UserError, one_line
from stages.shared.yaml_files import parse_yaml, read_yaml

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
        files = {file.as_posix(): _state(file) for file in (*paths, *inside) if file.is_file()}
    except (OSError, LookupError, TypeError, AttributeError, ValueError, UserError):
        return {}  # DVC runs no stage, or the stage itself will report the error
    return files | {f"{key} in {PARAMS}": value for key, value in params.items() if stage_reads(stage, key)}


def stage_reads(stage: dict, key: str) -> bool:
    """Return whether a stage of ``dvc.yaml`` declares a setting: itself, its section, or all of ``params.yaml``."""
    return any(isinstance(entry, dict) or f"{key}.".startswith(f"{entry}.") for entry in stage["params"])


def _state(file: Path) -> Any:
    """Return the hash of code, and size and time of data, which may be large."""
    if file.suffix in (".py", ".md", ".html", ".yaml"):
        return hashlib.sha256(file.read_bytes()).digest()
    return file.stat().st_size, file.stat().st_mtime_ns


def is_ignored(path: Path) -> bool:
    """Return whether ``.dvcignore`` excludes a file, or a folder that it is in: hidden, caches, editors' backups."""
    return any(part[0] == "." or part == "__pycache__" or part.endswith(("~", ".swp")) for part in path.parts)


def refuse_untracked(path: Path) -> None:
    """Raise `UserError` if Git neither tracks nor ignores the file, or one in the folder, or trusts no such clone."""
    command = ["git", "ls-files", "-z", "--others", "--exclude-standard", "--", str(path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)
    except (OSError, ValueError):  # no Git, or no valid file name
        return
    if "safe.directory" in result.stderr:  # another user's clone
        raise UserError(f"{path}: Git says: {one_line(result.stderr)}")
    if found := result.stdout.partition("\0")[0]:
        problem = f"{found}: not under version control, and an experiment would put it into Git"
        raise UserError(f"{problem}: `dvc add {quote(str(path))}`, or `git add {quote(found)}` if Git has the others")
