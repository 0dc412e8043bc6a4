"""What a stage has read must be what DVC records: DVC hashes settings, code and data after the stage (dvc#11058)."""

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import yaml

from stages.settings import PARAMS, leaves, read_yaml
from stages.shared.errors import UserError
from stages.shared.files import is_ignored

LARGEST_READ = 1_000_000  # bytes; data and larger files are compared by size and time
_at_start: dict[str, Any] = {}


def note() -> None:
    """Note the inputs of the stage that DVC is starting in this process, if it is one."""
    _at_start.update(_inputs())


def check_unchanged() -> None:
    """Raise `UserError` if an input is not what it was when the stage started, so that DVC records nothing."""
    now = _inputs() if _at_start else {}
    for name in {**_at_start, **now}:
        if name not in now or name not in _at_start or now[name] != _at_start[name]:
            raise UserError(f"{name}: changed while the stage ran, so nothing is recorded; type `dvc repro` again")


def _inputs() -> dict[str, Any]:
    """What `_named` finds; nothing if DVC runs no stage, or if something is wrong that the stage itself will refuse."""
    try:
        return _named()
    except (OSError, LookupError, TypeError, AttributeError, ValueError, UserError, yaml.YAMLError):
        return {}


def _named() -> dict[str, Any]:
    """The files and settings that ``dvc.yaml`` names for the running stage, with what they hold."""
    running = os.environ["DVC_STAGE"]
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][running]
    params = dict(leaves(read_yaml(PARAMS, "the settings")))
    paths = [Path(re.sub(r"\$\{(.+?)\}", lambda found: str(params[found[1]]), dep)) for dep in stage["deps"]]
    inside = (file for path in paths for file in path.rglob("*") if not is_ignored(file.relative_to(path)))
    files = [path for path in (*paths, *inside) if path.is_file()]
    found: dict[str, Any] = {
        file.as_posix(): _state(file, (status := file.stat()).st_size, status.st_mtime_ns) for file in files
    }
    return found | {f"{key} in {PARAMS}": value for key, value in params.items() if names_setting(stage, key)}


def names_setting(stage: dict, key: str) -> bool:
    """Whether a stage of ``dvc.yaml`` names a setting, by itself, by its section, or with all of ``params.yaml``."""
    return any(isinstance(named, dict) or f"{key}.".startswith(f"{named}.") for named in stage["params"])


@functools.cache  # a file whose size and time are the same is not read again
def _state(file: Path, size: int, mtime_ns: int) -> Any:
    small = file.suffix in (".py", ".md", ".html", ".yaml") and size <= LARGEST_READ
    return hashlib.sha256(file.read_bytes()).hexdigest() if small else (size, mtime_ns)
