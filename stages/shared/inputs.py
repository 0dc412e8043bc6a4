"""What a stage has read must be what DVC records: DVC hashes settings, code and data after the stage (dvc#11058)."""

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import yaml

from stages.settings import PARAMS, leaves
from stages.shared.errors import UserError

LARGEST_READ = 1_000_000  # bytes; larger files are compared by size and time
_at_start: dict[str, Any] = {}


def note() -> None:
    """Note the inputs of the stage that DVC is starting in this process, if it is one."""
    try:
        _at_start.update(_inputs())
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError):
        _at_start.clear()  # not DVC's, or something is wrong that the stage itself will refuse


def check_unchanged() -> None:
    """Raise `UserError` if an input is not what it was when the stage started, so that DVC records nothing."""
    if not _at_start:
        return
    try:
        now = _inputs()
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError):
        now = {}
    for name in {**_at_start, **now}:
        if name not in now or name not in _at_start or now[name] != _at_start[name]:
            raise UserError(f"{name}: changed while the stage ran, so nothing is recorded; type `dvc repro` again")


def _inputs() -> dict[str, Any]:
    """The files and settings that ``dvc.yaml`` names for the running stage, with hash or value."""
    running = os.environ["DVC_STAGE"]
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][running]
    params = dict(leaves(yaml.safe_load(PARAMS.read_text())))
    paths = [Path(re.sub(r"\$\{(.+?)\}", lambda found: str(params[found[1]]), dep)) for dep in stage["deps"]]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    found: dict[str, Any] = {
        file.as_posix(): _state(file, (status := file.stat()).st_size, status.st_mtime_ns)
        for file in files
        if file.is_file() and "__pycache__" not in file.parts and file.name[0] != "."
    }
    return found | {f"{key} in {PARAMS}": value for key, value in params.items() if names_setting(stage, key)}


def names_setting(stage: dict, key: str) -> bool:
    """Whether a stage of ``dvc.yaml`` names a setting, by itself, by its section, or with all of ``params.yaml``."""
    return any(isinstance(named, dict) or f"{key}.".startswith(f"{named}.") for named in stage["params"])


@functools.cache  # a file whose size and time are the same is not read again
def _state(file: Path, size: int, mtime_ns: int) -> Any:
    return hashlib.sha256(file.read_bytes()).hexdigest() if size <= LARGEST_READ else (size, mtime_ns)
